"""BatchNorm's running statistics: how local training updates them, and how to recover batch statistics from them.

Every local step moves the running mean and variance of each BatchNorm layer toward those of its mini-batch,

    r_s = m r_(s-1) + (1 - m) b_s,    so    r_S = m^S r_0 + (1 - m^S) b,

where `b` is a weighted mean of the steps' batch statistics, with the largest weight on the last step. The server
knows `r_0`, which it sent, and computes `b` from `r_S`; for `S = 1` it is exactly the private batch's mean and
variance.

Conventions differ between frameworks and are never inferred here:

|                              | Flax, and this package      | PyTorch                       |
|------------------------------|-----------------------------|-------------------------------|
| momentum is the share of the | old value (0.9)             | new value (0.1)               |
| running variance             | biased, `sum (x - mean)^2 / n` | unbiased, `.../ (n - 1)`   |

Statistics are trees like `params["batch_stats"]`, as `Model.batch_statistics` returns them.

References:
  Hatamizadeh, Yin, Molchanov, Myronenko, Li, Dogra, Feng, Flores, Kautz, Xu, Roth: Do gradient inversion attacks
  make federated learning unsafe? IEEE Transactions on Medical Imaging 2023, arXiv:2202.06924.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.core import Tracer

from jaxinvert.types import Array, ArrayTree, Scalar


def advance(running: ArrayTree, batch_statistics: ArrayTree, *, momentum: Scalar) -> ArrayTree:
    """Running statistics after local steps: `r_s = m r_(s-1) + (1 - m) b_s` for `s = 1 ... S`.

    Args:
      running: `r_0`, leaves `[C]`.
      batch_statistics: `b_1 ... b_S`, the same tree with leaves `[S, C]`: `clients.local_batch_statistics`.
      momentum: `m` in [0, 1), the share of the *old* value (Flax's convention); 0.9 in this package's models.

    Returns:
      `r_S`, with the tree and shapes of `running`.

    Raises:
      ValueError: for a momentum outside [0, 1) (unless it is traced).
    """
    _check_momentum(momentum)

    def step(running: ArrayTree, new: ArrayTree) -> tuple[ArrayTree, None]:
        moved = jax.tree.map(lambda r, b: (momentum * r + (1 - momentum) * b).astype(r.dtype), running, new)
        return moved, None

    return lax.scan(step, jax.tree.map(jnp.asarray, running), batch_statistics)[0]


def recover(sent: ArrayTree, initial: ArrayTree, *, momentum: Scalar, num_steps: Scalar = 1) -> ArrayTree:
    """Recovers batch statistics from running statistics: `(r_S - m^S r_0) / (1 - m^S)` (Hatamizadeh et al. 2022).

    | steps                                | result                                                             |
    |--------------------------------------|--------------------------------------------------------------------|
    | S = 1                                | the private batch's own statistics                                 |
    | S > 1, the same statistics each step | these statistics                                                   |
    | S > 1                                | their mean with weights proportional to `m^(S - s)`                |
    | m near 1                             | rounding of `r` grows by `1 / (1 - m^S)`: tenfold at m = 0.9, S = 1 |

    Args:
      sent: `r_S`, the running statistics that the client returned, leaves `[C]`.
      initial: `r_0`, the running statistics that the server sent, same tree.
      momentum: `m` in [0, 1), the share of the *old* value; see `convert_momentum`.
      num_steps: `S`, at least 1.

    Returns:
      Batch statistics, with the tree and shapes of `sent`; variances are biased or unbiased like those in `sent`.

    Raises:
      ValueError: for a momentum outside [0, 1) or fewer than one step (unless they are traced).
    """
    _check_momentum(momentum)
    if not isinstance(num_steps, Tracer) and num_steps < 1:
        raise ValueError(f"num_steps must be at least 1, got {num_steps}")
    old = momentum**num_steps
    return jax.tree.map(lambda r, r_0: ((r - old * r_0) / (1 - old)).astype(r.dtype), sent, initial)


def relative_distance(found: ArrayTree, wanted: ArrayTree) -> Array:
    """Distance of statistics `found` from `wanted`, relative to the variances in `wanted`: `[]`, 0 if equal.

    The mean over layers of

        sum_c ((mean_c - mean*_c)^2 + (std_c - std*_c)^2)  /  2 sum_c var*_c,

    which for normal features is the squared 2-Wasserstein distance (summed over channels) divided by twice their
    variance.

    Args:
      found: tree of layers `{"mean": [C], "var": [C]}`, differentiable.
      wanted: the same tree; negative variances, as noise can cause, count as 0.

    >>> layer = {"mean": jnp.zeros(2), "var": jnp.ones(2)}
    >>> round(float(relative_distance({"mean": jnp.ones(2), "var": jnp.ones(2)}, layer)), 4)
    0.5
    """

    def std(variance: Array) -> Array:
        return jnp.sqrt(jnp.maximum(variance, 0) + _SMALL)  # the square root has no derivative at 0

    def one_layer(found: Any, wanted: Any) -> Array:
        gap = jnp.square(found["mean"] - wanted["mean"]) + jnp.square(std(found["var"]) - std(wanted["var"]))
        return jnp.sum(gap) / (2 * jnp.sum(jnp.square(std(wanted["var"]))))

    def is_layer(node: Any) -> bool:
        return isinstance(node, Mapping) and "mean" in node

    layers = jax.tree.leaves(jax.tree.map(one_layer, found, wanted, is_leaf=is_layer))
    return sum(layers, start=jnp.zeros(())) / max(len(layers), 1)


_SMALL = 1e-5
"""Added to variances, as in BatchNorm itself."""


def convert_momentum(momentum: Scalar) -> Scalar:
    """Converts between Flax's momentum (share of the old value) and PyTorch's (share of the new): `1 - momentum`."""
    return 1 - momentum


def unbiased_variance(variance: Array, count: Scalar) -> Array:
    """`variance n / (n - 1)`: converts biased batch variances to the unbiased ones in PyTorch's running variance.

    Args:
      variance: `[C]` biased variances.
      count: `n > 1` values per variance: `B h w` for features `[B, h, w, C]`, so it differs between layers.
    """
    return variance * (count / (count - 1))


def biased_variance(variance: Array, count: Scalar) -> Array:
    """`variance (n - 1) / n`, the inverse of `unbiased_variance`.

    For statistics of a PyTorch client, first `recover` (the server's `r_0` is no variance of these `n` values), then
    convert the result.

    Args:
      variance: `[C]` unbiased variances.
      count: `n > 1` values per variance: `B h w` for features `[B, h, w, C]`, so it differs between layers.
    """
    return variance * ((count - 1) / count)


def _check_momentum(momentum: Scalar) -> None:
    if not isinstance(momentum, Tracer) and not 0 <= momentum < 1:
        raise ValueError(f"momentum must be in [0, 1), the share of the old value, got {momentum}")
