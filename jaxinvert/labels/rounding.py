"""Rounds real-valued class counts to integers that sum to the number of examples; converts counts to labels."""

import jax.numpy as jnp
from jax import lax

from jaxinvert.types import Array


def project_counts(estimate: Array, num_examples: int | Array) -> Array:
    """Euclidean projection of `estimate` onto the real-valued counts `{n >= 0, sum n = B}`.

    If the estimate sums to `B` but has negative entries, the projection sets these to 0 and subtracts the excess
    evenly from the positive entries (Held, Wolfe, Crowder 1974).

    Args:
      estimate: `[K]` floats; entries that are not finite count as 0.
      num_examples: `B >= 0`, may be traced.
    """
    estimate = jnp.where(jnp.isfinite(estimate), estimate, 0.0)
    descending = -jnp.sort(-estimate)
    excess = jnp.cumsum(descending) - num_examples
    rank = jnp.arange(1, estimate.size + 1)
    last = jnp.max(jnp.where(descending - excess / rank > 0, rank, 1))
    return jnp.maximum(estimate - excess[last - 1] / last, 0.0)


def round_counts(estimate: Array, num_examples: int | Array) -> Array:
    """Rounds to integer counts: projects, floors, adds 1 to the largest fractions (Geng et al. 2021).

    | estimate                 | B | counts       |
    |--------------------------|---|--------------|
    | 1.2, 0.7, 0.1            | 2 | 1, 1, 0      |
    | 2.4, -0.4, 1.0           | 3 | 2, 0, 1      |
    | 0, 0, 0 (uninformative)  | 2 | 1, 1, 0      |
    | NaN, 1, 1                | 2 | 0, 1, 1      |

    Args:
      estimate: `[K]` floats.
      num_examples: `B >= 0`, may be traced.

    Returns:
      `[K]` int32, non-negative, sum exactly `B`.
    """
    projected = project_counts(estimate, num_examples)
    # Rounding errors must not turn an exact 2, computed as 1.9999998, into a candidate for the remainder.
    whole = jnp.floor(projected + 1e-4)
    missing = num_examples - jnp.sum(whole).astype(jnp.int32)
    fraction_rank = _rank(-(projected - whole))
    whole = whole.astype(jnp.int32)
    size = estimate.size
    # Usually 0 <= missing < K; the general form keeps the sum exact if float32 cannot represent the counts.
    return whole + missing // size + (fraction_rank < missing % size)


def round_counts_above(estimate: Array, at_least: Array, num_examples: int | Array) -> Array:
    """`round_counts` subject to the lower bounds `at_least [K]` (non-negative integers).

    Bounds whose sum exceeds `num_examples`, as a defense's noise can cause, are ignored.
    """
    at_least = jnp.where(jnp.sum(at_least) <= num_examples, at_least, 0).astype(jnp.int32)
    return at_least + round_counts(estimate - at_least, num_examples - jnp.sum(at_least))


def hard_counts(smoothed: Array, num_examples: int | Array, smoothing: float) -> Array:
    """The class counts `n` behind the sums of smoothed labels, `(1 - a) n + a B / K`, for label smoothing `a`."""
    if not smoothing:
        return smoothed
    return (smoothed - smoothing * num_examples / smoothed.size) / (1 - smoothing)


def proven_counts(bias_gradient: Array, num_examples: int | Array, smoothing: float = 0.0) -> Array:
    """Lower bounds `[K]` on the counts, for any model output: `B db_n = sum_i p_in - count_n >= -count_n`.

    A negative entry proves presence; above that, rounding errors of a thousandth of an example are tolerated. Local
    steps on all examples average such gradients, so the bound also holds for them.

    | B db    | proven |
    |---------|--------|
    | 0.3     | 0      |
    | -0.0002 | 1      |
    | -2.0002 | 2      |
    | -2.3    | 3      |
    """
    excess = hard_counts(-num_examples * bias_gradient, num_examples, smoothing)
    return jnp.where(excess > 0, jnp.maximum(jnp.ceil(excess - 1e-3), 1.0), 0.0)


def lowest(values: Array, num_examples: int | Array) -> Array:
    """Counts `[K]` that assign `B` labels to the classes with the lowest `values [K]`, each once if `B <= K`."""
    return (num_examples // values.size + (_rank(values) < num_examples % values.size)).astype(jnp.int32)


def repeated_argmin(values: Array, impact: Array, counts: Array, num_examples: int | Array) -> Array:
    """Emits the class with the lowest value and subtracts `impact` from it, until there are `B` labels (LLG's loop).

    Args:
      values: `[K]`, remaining signal of each class.
      impact: `[]`, the (negative) contribution of one example.
      counts: `[K]` int32, labels emitted before.
      num_examples: `B`, may be traced.

    Returns:
      `[K]` int32, with sum `max(B, sum of counts)`.
    """

    def emit(_: Array, state: tuple[Array, Array]) -> tuple[Array, Array]:
        left, emitted = state
        chosen = jnp.argmin(left)
        return left.at[chosen].add(-impact), emitted.at[chosen].add(1)

    start = jnp.sum(counts)
    return lax.fori_loop(start, jnp.maximum(num_examples, start), emit, (values, counts))[1]


def labels_from_counts(counts: Array, num_examples: int) -> Array:
    """Converts counts to a sorted list of labels, the form that an attack on the images takes.

    Args:
      counts: `[K]` non-negative integers that sum to `num_examples`.
      num_examples: `B`, static: the length of the result.

    Returns:
      `[B]` int32, ascending.

    >>> labels_from_counts(jnp.array([2, 0, 1]), 3).tolist()
    [0, 0, 2]
    """
    return jnp.repeat(jnp.arange(counts.size, dtype=jnp.int32), counts, total_repeat_length=num_examples)


def _rank(values: Array) -> Array:
    """`[K]` position of every entry in ascending order; ties keep their order."""
    return jnp.argsort(jnp.argsort(values))
