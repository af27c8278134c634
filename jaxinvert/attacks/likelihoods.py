"""Objectives for an attacker who knows the client's defense: likelihoods of its noise, and restricted objectives."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxinvert.attacks.objectives import masked
from jaxinvert.trees import tree_squared_norm, tree_sum
from jaxinvert.types import Array, ArrayTree, Objective, Scalar, Update


def gaussian_likelihood(spread: Callable[[Array], Scalar]) -> Objective:
    """`sum_l |g_l - g*_l|^2 / (2 sigma_l^2)`: the negative log-likelihood under known normal noise.

    At the truth, twice its value is chi-squared with as many degrees of freedom as the update has entries.

    Args:
      spread: `sigma_l` of an observed tensor, `[...] -> []` in units of the update; a tensor with 0 is ignored (a
        tensor that is not trained has no gradient, and no noise relative to it).
    """

    def unlikely(g: Array, g_star: Array) -> Array:
        return 0.5 * tree_squared_norm((g - g_star) * _inverse(spread(g_star), g.dtype))

    return lambda simulated, observed: tree_sum(jax.tree.map(unlikely, simulated, observed))


def whitened_l2(scales: ArrayTree) -> Objective:
    """`sum_l |g_l - g*_l|^2 / (2 sigma_l^2)`: `gaussian_likelihood` with standard deviations given in advance.

    Args:
      scales: `sigma_l`, a scalar for every tensor of the update; a tensor with 0 is ignored.
    """

    def unlikely(g: Array, g_star: Array, scale: Array) -> Array:
        return 0.5 * tree_squared_norm((g - g_star) * _inverse(scale, g.dtype))

    return lambda simulated, observed: tree_sum(jax.tree.map(unlikely, simulated, observed, scales))


def laplace_likelihood(spread: Callable[[Array], Scalar]) -> Objective:
    """`sum_l |g_l - g*_l|_1 / b_l`: the negative log-likelihood under known Laplace noise.

    Args:
      spread: `b_l` of an observed tensor, the noise's mean absolute value; otherwise see `gaussian_likelihood`.
    """

    def unlikely(g: Array, g_star: Array) -> Array:
        return jnp.sum(jnp.abs(g - g_star)) * _inverse(spread(g_star), g.dtype)

    return lambda simulated, observed: tree_sum(jax.tree.map(unlikely, simulated, observed))


def _inverse(spread: Scalar, dtype: jnp.dtype) -> Array:
    """`1 / spread`, 0 for 0."""
    spread = jnp.asarray(spread, dtype)
    return jnp.where(spread > 0, 1 / jnp.where(spread > 0, spread, 1), 0)


def relative(objective: Objective) -> Objective:
    """`objective(g, g*) / objective(0, g*)`: 1 for a zero update, in any units of the objective.

    The ranking of reconstructions does not change. A regularizer's weight has the same effect at every noise level.
    """

    def share(simulated: Update, observed: Update) -> Array:
        nothing = objective(jax.tree.map(jnp.zeros_like, observed), observed)
        return objective(simulated, observed) / jnp.where(nothing == 0, 1.0, nothing)

    return share


def of_unknown_scale(distance: Callable[..., Array]) -> Callable[..., Array]:
    """`log distance`, for residuals of unknown size: a prior then has the same influence at every distance.

    If an objective sums squares of `n` normal residuals, whose variance is set to its maximum-likelihood value, the
    negative log-likelihood is `n/2` times this, plus a constant. Its gradient does not shrink with the distance; at
    1e-12 and below it is zero.

    Args:
      distance: an objective, or another non-negative function.
    """

    def logarithm(*compared: ArrayTree) -> Array:
        return jnp.log(jnp.maximum(distance(*compared), 1e-12))

    return logarithm


def transmitted(objective: Objective) -> Objective:
    """Restricts an objective to the sent entries: those observed as nonzero."""

    def restricted(simulated: Update, observed: Update) -> Array:
        sent = jax.tree.map(lambda g_star: (g_star != 0).astype(g_star.dtype), observed)
        return masked(objective, sent)(simulated, observed)

    return restricted


def largest_sent(objective: Objective, *, of_tensors: bool = False) -> Objective:
    """Treats entries observed as zero as "no larger in size than the smallest sent entry".

    Uses more information than `transmitted` if the largest entries were sent unchanged, and is as exact at the truth.

    Args:
      objective: compares the observed update with the simulated one, where an entry that was not sent counts only by
        its excess over the smallest sent entry.
      of_tensors: whether the largest entries of each tensor were sent, or those of the whole update.
    """

    def smallest_sent(g_star: Array) -> Array:
        return jnp.min(jnp.abs(g_star), initial=jnp.inf, where=g_star != 0)

    def restricted(simulated: Update, observed: Update) -> Array:
        smallest = jax.tree.map(smallest_sent, observed)
        if not of_tensors:
            of_all = jnp.min(jnp.stack(jax.tree.leaves(smallest)))
            smallest = jax.tree.map(lambda _: of_all, smallest)

        def beyond(g: Array, g_star: Array, limit: Array) -> Array:
            return jnp.where(g_star != 0, g, jnp.sign(g) * jnp.maximum(jnp.abs(g) - limit, 0)).astype(g.dtype)

        return objective(jax.tree.map(beyond, simulated, observed, smallest), observed)

    return restricted


def censored(objective: Objective, bound: Scalar) -> Objective:
    """Treats observed entries of size `bound` as "at least as large": a larger simulated entry agrees.

    Other entries are compared unchanged, so a simulated entry that wrongly exceeds the bound has a gradient. It would
    have none if the simulation clipped, too.
    """

    def restricted(simulated: Update, observed: Update) -> Array:
        def within(g: Array, g_star: Array) -> Array:
            limit = jnp.asarray(bound, g_star.dtype)
            return jnp.where(
                g_star >= limit, jnp.minimum(g, limit), jnp.where(g_star <= -limit, jnp.maximum(g, -limit), g)
            )

        return objective(jax.tree.map(within, simulated, observed), observed)

    return restricted


def rounding_likelihood(step: Callable[[Array], Scalar]) -> Objective:
    """`-sum log (1 - |g - g*| / step_l)`: the negative log-likelihood under unbiased stochastic rounding.

    A value between two levels is rounded to either with a probability of one minus its distance in steps. Where the
    probability is below 1/10, the logarithm continues as its tangent, which keeps the loss far from the truth finite.

    Args:
      step: distance between two levels in an observed tensor, `[...] -> []`; a tensor with 0 is ignored.
    """

    def unlikely(g: Array, g_star: Array) -> Array:
        distance = jnp.abs(g - g_star) * _inverse(step(g_star), g.dtype)
        near = jnp.minimum(distance, 0.9)
        return jnp.sum(10 * (distance - near) - jnp.log1p(-near))

    return lambda simulated, observed: tree_sum(jax.tree.map(unlikely, simulated, observed))
