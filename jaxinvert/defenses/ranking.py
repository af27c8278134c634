"""Percentiles and ranks of an update's entries, without sorting them.

The bits of non-negative floats, read as an integer, are in the order of the floats: an order statistic is found
bit by bit, each bit by counting what lies below. That is exact, its rank may be traced, and it spares XLA's sorts,
slow on CPU: with many clients side by side they would dominate a round.
"""

import jax
import jax.numpy as jnp
from jax import lax

from jaxinvert.types import Array, Scalar


def order_statistic(sizes: Array, rank: Scalar) -> Array:
    """The entry that stands at `rank` in ascending order, `[]`; its derivative is zero.

    Args:
      sizes: `[N]` non-negative floats.
      rank: integer in [0, N); may be traced.
    """
    sizes = sizes.astype(jnp.promote_types(sizes.dtype, jnp.float32))
    num_bits = 8 * sizes.dtype.itemsize
    ordered = lax.bitcast_convert_type(lax.stop_gradient(sizes), jnp.dtype(f"int{num_bits}"))

    def settle(bit: Array, found: Array) -> Array:
        candidate = found | (jnp.ones_like(found) << (num_bits - 2 - bit).astype(found.dtype))
        return jnp.where(jnp.sum(ordered < candidate) <= rank, candidate, found)

    # The highest bit is the sign.
    found = lax.fori_loop(0, num_bits - 1, settle, jnp.zeros((), ordered.dtype))
    return lax.bitcast_convert_type(found, sizes.dtype)


def percentile(sizes: Array, percent: Scalar) -> Array:
    """`jnp.percentile(sizes, percent)` of non-negative floats, linear between the entries: `[]`.

    Args:
      sizes: of any shape.
      percent: 0 ... 100; may be traced.
    """
    place = jnp.asarray(percent) / 100 * (sizes.size - 1)
    below = jnp.clip(jnp.floor(place), 0, sizes.size - 1).astype(jnp.int32)
    ranks = jnp.stack([below, jnp.minimum(below + 1, sizes.size - 1)])
    low, high = jax.vmap(order_statistic, in_axes=(None, 0))(sizes.ravel(), ranks)
    return (low + (place - below) * (high - low)).astype(sizes.dtype)


def among_largest(sizes: Array, keep: Scalar) -> Array:
    """Whether an entry is one of the `round(keep N)` largest, at least one; of equal ones those that come first.

    Args:
      sizes: `[N]` non-negative floats.
      keep: share in (0, 1]; may be traced.
    """
    num_kept = jnp.maximum(1, jnp.round(keep * sizes.size)).astype(jnp.int32)
    least = order_statistic(sizes, sizes.size - num_kept)
    above, equal = sizes > least, sizes == least
    return above | (equal & (jnp.cumsum(equal) <= num_kept - jnp.sum(above)))
