"""Who holds what: examples dealt to simulated clients, alike or with classes of their own.

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
      examples: those of all clients together, `inputs [M, ...]` and `labels [M]`.
      members: `[N, L]` indices into `examples`; of client `c` the first `sizes[c]` count, the others fill up.
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
    """Deals examples to clients whose classes differ (Hsu, Qi, Brown 2019).

    Client `c` draws its class distribution `q_c ~ Dirichlet(concentration * p)` around that of all examples, `p`,
    then its examples from `q_c`, without replacement; of a class that is used up the others take the share. The
    later clients therefore depart from `q_c`: they get what is left.

    | concentration | clients                                                   |
    |---------------|-----------------------------------------------------------|
    | near 0        | one class each, as long as there are examples of it       |
    | large         | like independent draws from `p`                           |
    | inf           | IID: a random permutation, cut                            |

    Args:
      generator: of all draws.
      labels: `[M]` integer classes.
      concentration: above 0, `inf` included.
      num_clients: `N` of sizes as equal as can be; or
      sizes: their numbers of examples, at least 1 each and `M` together.

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
    """The clients' data in arrays of one shape.

    Args:
      examples: those of all clients, `inputs [M, ...]` and `labels [M]`.
      clients: for each client the indices of its examples, as from `dirichlet_split`.

    Raises:
      ValueError: for no client, one without examples, or indices outside [0, M).
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
    """How many of each class `size` draws from `shares` take; draws from a class that is used up are repeated."""
    taken = np.zeros_like(left)
    while missing := size - taken.sum():
        weights = np.where(left > taken, shares, 0.0)
        if not weights.any():
            weights = left - taken
        drawn = generator.multinomial(missing, weights / weights.sum())
        taken += np.minimum(drawn, left - taken)
    return taken
