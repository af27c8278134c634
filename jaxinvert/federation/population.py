"""Distributes examples over simulated clients, either IID or with different class distributions.

References:
  Hsu, Qi, Brown: Measuring the effects of non-identical data distribution for federated visual classification.
  2019, arXiv:1909.06335.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxinvert.types import Array, Batch


class Population(NamedTuple):
    """The data of all `N` clients.

    Attributes:
      examples: examples of all clients, `inputs [M, ...]` and `labels [M]`.
      members: `[N, L]` indices into `examples`; client `c` holds the first `sizes[c]` of its row, the rest is
        padding.
      sizes: `[N]` numbers of examples, at least 1.
    """

    examples: Batch
    members: Array
    sizes: Array


def dirichlet_split(
    generator: np.random.Generator,
    labels: np.ndarray,
    *,
    concentration: float,
    num_clients: int | None = None,
    sizes: Sequence[int] | None = None,
) -> tuple[np.ndarray, ...]:
    """Distributes examples over clients with different class distributions (Hsu, Qi, Brown 2019).

    Client `c` draws its class distribution `q_c ~ Dirichlet(concentration * p)`, where `p` is the distribution of all
    examples, and then draws its examples from `q_c` without replacement. When a class is exhausted, the other classes
    take its share; later clients therefore deviate from `q_c`.

    | concentration | clients                                                   |
    |---------------|-----------------------------------------------------------|
    | near 0        | one class each, until its examples are exhausted          |
    | large         | like independent draws from `p`                           |
    | inf           | IID: consecutive parts of a random permutation            |

    Args:
      generator: source of all draws.
      labels: `[M]` integer classes.
      concentration: above 0; may be `inf`.
      num_clients: `N` clients with sizes that differ by at most 1; or
      sizes: the clients' numbers of examples, at least 1 each, with sum `M`.

    Returns:
      `N` ascending arrays of indices; every index of `labels` is in exactly one.

    Raises:
      ValueError: for a concentration that is not positive, both or none of `num_clients` and `sizes`, or sizes that
        do not fit.
    """
    labels = np.asarray(labels)
    if not concentration > 0:
        raise ValueError(f"concentration must be positive, got {concentration}")
    if (num_clients is None) == (sizes is None):
        raise ValueError(f"expected one of num_clients and sizes, got num_clients={num_clients} and sizes={sizes}")
    if num_clients is not None:
        if not 1 <= num_clients <= len(labels):
            raise ValueError(f"num_clients must be in [1, {len(labels)}], the number of examples, got {num_clients}")
        sizes = [len(part) for part in np.array_split(labels, num_clients)]
    amounts = np.array(sizes)
    if np.min(amounts, initial=1) < 1 or np.sum(amounts) != len(labels):
        raise ValueError(f"sizes must be at least 1 each and {len(labels)} together, got {sizes}")

    if np.isinf(concentration):
        parts = np.split(generator.permutation(len(labels)), np.cumsum(amounts)[:-1])
        return tuple(np.sort(part) for part in parts)
    classes, counts = np.unique(labels, return_counts=True)
    left = [list(generator.permutation(np.flatnonzero(labels == label))) for label in classes]
    share = counts / len(labels)
    clients = []
    for amount in amounts:
        distribution = generator.dirichlet(concentration * share)
        of_classes = _of_classes(generator, distribution, amount, np.array([*map(len, left)]))
        clients.append(np.sort([remaining.pop() for remaining, n in zip(left, of_classes) for _ in range(n)]))
    return tuple(clients)


def populate(examples: Batch, clients: Sequence[np.ndarray]) -> Population:
    """Builds a `Population` from the examples and each client's indices.

    Args:
      examples: examples of all clients, `inputs [M, ...]` and `labels [M]`.
      clients: indices of each client's examples, such as from `dirichlet_split`.

    Raises:
      ValueError: for no clients, a client without examples, or indices outside [0, M).
    """
    sizes = np.array([len(client) for client in clients])
    if min(sizes, default=0) < 1:
        raise ValueError(f"every client needs at least one example, got clients of {sizes.tolist()}")
    members = np.stack([np.resize(client, max(sizes)) for client in clients])
    if members.min() < 0 or members.max() >= len(examples.labels):
        raise ValueError(
            f"clients hold indices {members.min()} ... {members.max()}, expected [0, {len(examples.labels)})"
        )
    return Population(jax.tree.map(jnp.asarray, examples), jnp.asarray(members, jnp.int32), jnp.asarray(sizes))


def _of_classes(generator: np.random.Generator, shares: np.ndarray, size: int, left: np.ndarray) -> np.ndarray:
    """Counts per class of `size` draws from `shares`; draws from an exhausted class are repeated."""
    taken = np.zeros_like(left)
    while missing := size - taken.sum():
        weights = np.where(left > taken, shares, 0.0)
        if not weights.any():
            weights = left - taken
        drawn = generator.multinomial(missing, weights / weights.sum())
        taken += np.minimum(drawn, left - taken)
    return taken
