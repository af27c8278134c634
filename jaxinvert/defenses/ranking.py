"""Percentiles and ranks of an update's entries, computed without sorting.

Non-negative floats have the same order as their bit patterns read as integers. An order statistic is found bit by
bit, by counting the entries below a candidate. The result is exact and its rank may be traced. XLA's sort is slow on
CPU: with many clients side by side it would dominate a round.
"""

import jax
import jax.numpy as jnp
from jax import lax

from jaxinvert.types import Array, Scalar


def order_statistic(sizes: Array, rank: Scalar) -> Array:
    """The entry at position `rank` in ascending order, `[]`; its derivative is zero.

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
    """`jnp.percentile(sizes, percent)` of non-negative floats, with linear interpolation: `[]`.

    Args:
      sizes: array of any shape.
      percent: 0 ... 100; may be traced.
    """
    place = jnp.asarray(percent) / 100 * (sizes.size - 1)
    below = jnp.clip(jnp.floor(place), 0, sizes.size - 1).astype(jnp.int32)
    ranks = jnp.stack([below, jnp.minimum(below + 1, sizes.size - 1)])
    low, high = jax.vmap(order_statistic, in_axes=(None, 0))(sizes.ravel(), ranks)
    return (low + (place - below) * (high - low)).astype(sizes.dtype)


def among_largest(sizes: Array, keep: Scalar) -> Array:
    """Mask of the `max(1, round(keep N))` largest entries; among equal entries the first ones are taken.

    Args:
      sizes: `[N]` non-negative floats.
      keep: fraction in (0, 1]; may be traced.
    """
    num_kept = jnp.maximum(1, jnp.round(keep * sizes.size)).astype(jnp.int32)
    least = order_statistic(sizes, sizes.size - num_kept)
    above, equal = sizes > least, sizes == least
    return above | (equal & (jnp.cumsum(equal) <= num_kept - jnp.sum(above)))
