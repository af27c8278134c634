"""Objectives of an attacker who knows what a defense did to the observed update: likelihoods and restrictions."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxinvert.attacks.objectives import masked
from jaxinvert.trees import tree_squared_norm, tree_sum
from jaxinvert.types import Array, ArrayTree, Objective, Scalar, Update


def gaussian_likelihood(spread: Callable[[Array], Scalar]) -> Objective:
    """`sum_l |g_l - g*_l|^2 / (2 sigma_l^2)`: minus the logarithm of the likelihood under known normal noise.

    At the truth twice its value is chi-squared, with as many degrees of freedom as the update has entries.

    Args:
      spread: `sigma_l` of an observed tensor, `[...] -> []` in units of the update; where it is 0, the tensor is left
        out (a tensor that is not trained has neither gradient nor noise in units of it).
    """

    def unlikely(g: Array, g_star: Array) -> Array:
        return 0.5 * tree_squared_norm((g - g_star) * _inverse(spread(g_star), g.dtype))

    return lambda simulated, observed: tree_sum(jax.tree.map(unlikely, simulated, observed))


def whitened_l2(scales: ArrayTree) -> Objective:
    """`sum_l |g_l - g*_l|^2 / (2 sigma_l^2)` as `gaussian_likelihood`, for deviations that are known beforehand.

    Args:
      scales: `sigma_l`, a scalar for every tensor of the update; where it is 0, the tensor is left out.
    """

    def unlikely(g: Array, g_star: Array, scale: Array) -> Array:
        return 0.5 * tree_squared_norm((g - g_star) * _inverse(scale, g.dtype))

    return lambda simulated, observed: tree_sum(jax.tree.map(unlikely, simulated, observed, scales))


def laplace_likelihood(spread: Callable[[Array], Scalar]) -> Objective:
    """`sum_l |g_l - g*_l|_1 / b_l`: minus the logarithm of the likelihood under known Laplace noise.

    Args:
      spread: `b_l` of an observed tensor, the noise's mean absolute value; else as in `gaussian_likelihood`.
    """

    def unlikely(g: Array, g_star: Array) -> Array:
        return jnp.sum(jnp.abs(g - g_star)) * _inverse(spread(g_star), g.dtype)

    return lambda simulated, observed: tree_sum(jax.tree.map(unlikely, simulated, observed))


def _inverse(spread: Scalar, dtype: jnp.dtype) -> Array:
    """`1 / spread`, 0 for 0."""
    spread = jnp.asarray(spread, dtype)
    return jnp.where(spread > 0, 1 / jnp.where(spread > 0, spread, 1), 0)


def relative(objective: Objective) -> Objective:
    """`objective(g, g*) / objective(0, g*)`: 1 for an update of nothing, whatever the units of the objective.

    The order of reconstructions stays; the weight of a regularizer means the same for every strength of the noise.
    """

    def share(simulated: Update, observed: Update) -> Array:
        nothing = objective(jax.tree.map(jnp.zeros_like, observed), observed)
        return objective(simulated, observed) / jnp.where(nothing == 0, 1.0, nothing)

    return share


def of_unknown_scale(distance: Callable[..., Array]) -> Callable[..., Array]:
    """`log distance`, for residuals whose size is not known: a prior then has the same say at every distance.

    If an objective sums squares of `n` normal residuals whose variance is set to its most likely value, minus the
    logarithm of their likelihood is `n/2` times this, plus a constant. Its gradient does not shrink as the distance
    does; at 1e-12 and below there is none.

    Args:
      distance: an objective, or another function whose value is not negative.
    """

    def logarithm(*compared: ArrayTree) -> Array:
        return jnp.log(jnp.maximum(distance(*compared), 1e-12))

    return logarithm


def transmitted(objective: Objective) -> Objective:
    """Restricts an objective to the entries that were sent, which are those observed as other than zero."""

    def restricted(simulated: Update, observed: Update) -> Array:
        sent = jax.tree.map(lambda g_star: (g_star != 0).astype(g_star.dtype), observed)
        return masked(objective, sent)(simulated, observed)

    return restricted


def largest_sent(objective: Objective, *, of_tensors: bool = False) -> Objective:
    """Takes entries observed as zero for "no larger than the smallest that was sent".

    Says more than `transmitted` where the largest entries were sent as they are, and is as exact at the truth.

    Args:
      objective: compares the simulated update, less what entries that were not sent may be, with the observed one.
      of_tensors: whether each tensor's largest were sent, or those of the whole update.
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
    """Takes observed entries of size `bound` for "at least as large": a simulated one beyond them agrees.

    Other entries are compared as they are, so that a simulated one that is wrongly beyond has a gradient, which it
    would not if the simulation clipped, too.
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
    """`-sum log (1 - |g - g*| / step_l)`: minus the logarithm of the likelihood under unbiased random rounding.

    What lies between two levels is rounded to each with the probability by which it is nearer to it. Where that is
    below 1/10, the logarithm goes on as its tangent: a start far from the truth has a finite loss.

    Args:
      step: the distance of two levels in an observed tensor, `[...] -> []`; where it is 0, the tensor is left out.
    """

    def unlikely(g: Array, g_star: Array) -> Array:
        distance = jnp.abs(g - g_star) * _inverse(step(g_star), g.dtype)
        near = jnp.minimum(distance, 0.9)
        return jnp.sum(10 * (distance - near) - jnp.log1p(-near))

    return lambda simulated, observed: tree_sum(jax.tree.map(unlikely, simulated, observed))
