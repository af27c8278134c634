r"""Contrast where gradients of kernels do not tell it: a test whether it is so, and the contrast that biases tell.

Let `x` be a picture around the mean color that the network subtracts. Behind ReLU layers with zero biases, kernels'
gradients at `c x` are those at `x` times one factor, if the error is one number: a cosine of kernels is the same at
every contrast `c`. Gradients of biases lack the factor `c`. A descent on both has to cross the kinks of ReLU, where
gradients jump, and may end before the right one. On the ray `c x` no unit changes its sign: after a descent in which
biases count little, `c` minimizes, along the ray,

    D(c) = 1 - cos(g(c x), g*),   biases and norms multiplied as in `objectives.balanced_cosine`
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxinvert.attacks import objectives
from jaxinvert.attacks.problem import Problem
from jaxinvert.priors import parametrizations
from jaxinvert.trees import of_what_was_sent, tree_inner, tree_norm, tree_squared_norm
from jaxinvert.types import Array, Batch, Observation, Update

_BLIND = 1e-3
"""Cosine distance between kernels' gradients at a contrast and at half of it: below, they do not tell contrast."""
_TELLS = 1e-5
"""The same with biases: above, they tell it; less may be rounding errors."""
_DEVIATION = 0.25
"""Of the random picture's pixels, about that of photographs."""
_FIRST, _FARTHEST, _FOUND = -0.1, 0.7, 1e-3
"""Steps of the logarithm of the contrast: the first, the largest, and the last one that is followed by another."""


def kernels_are_blind(problem: Problem, observation: Observation) -> Array:
    """Whether gradients of biases and norms tell contrast and those of kernels do not: bool `[]`.

    Compares the gradients of a random picture with those at half its contrast. False where nothing tells contrast, as
    behind BatchNorm in train mode. Reads the parameters and, if they are there, the labels.
    """
    picture = parametrizations.spectrum(problem.batch_shape)
    inputs = picture.decode(picture.init(jax.random.key(0)))
    inputs = scaled(problem, inputs, _DEVIATION / jnp.std(inputs))  # else small biases seem to tell contrast
    labels = jnp.zeros(problem.num_examples, int) if observation.labels is None else observation.labels

    def at_contrast(factor: Array) -> Update:
        return problem.client_update(observation.params, Batch(scaled(problem, inputs, factor), labels))

    both = lax.map(at_contrast, jnp.array([1.0, 0.5]))  # one trace, which is compiled once
    both = of_what_was_sent(both, observation.update)
    full, half = (jax.tree.map(lambda leaf, place=place: leaf[place], both) for place in (0, 1))
    by_kernels = objectives.kernel_cosine(half, full)
    by_all = objectives.balanced_cosine(half, full)
    return (by_kernels < _BLIND) & (by_all > _TELLS) & (by_all > 10 * by_kernels)


class _Search(NamedTuple):
    """Step, logarithm of the contrast, the previous one with its residual, and the best so far with its distance."""

    step: Array
    log: Array
    previous_log: Array
    previous: Update
    best_log: Array
    distance: Array


def with_fitted_contrast(
    problem: Problem, observation: Observation, batch: Batch, *, num_steps: int = 16
) -> tuple[Array, Array]:
    """The images at the contrast that minimizes `D`, and `D` there, with `num_steps` simulated updates.

    Gauss-Newton on the logarithm of the contrast; the derivative of the residual is that between the last two steps.

    Args:
      problem: gives the client's update and the mean color.
      observation: its parameters and its update are read.
      batch: images `[B, H, W, C]` right but for a common factor around the mean color, and their labels.
      num_steps: one simulated update each.

    Returns:
      Images `[B, H, W, C]`, not clipped, and the distance `[]` in [0, 2].
    """

    def residual(log: Array) -> Update:
        moved = Batch(scaled(problem, batch.inputs, jnp.exp(log)), batch.labels)
        sent = observation.update
        simulated = of_what_was_sent(problem.client_update(observation.params, moved), sent)
        return jax.tree.map(jnp.subtract, *map(_unit, objectives.balanced(simulated, sent)))

    dtype = jnp.promote_types(batch.inputs.dtype, jnp.float32)

    def step(search: _Search, _: None) -> tuple[_Search, None]:
        now = residual(search.log)
        distance = 0.5 * tree_squared_norm(now).astype(dtype)
        apart = search.log - search.previous_log
        slope = jax.tree.map(lambda a, b: (a - b) / jnp.where(apart == 0, 1.0, apart), now, search.previous)
        steepness = tree_squared_norm(slope)
        newton = jnp.clip(-tree_inner(slope, now) / jnp.where(steepness == 0, 1.0, steepness), -_FARTHEST, _FARTHEST)
        found = jnp.abs(apart) < _FOUND  # the next derivative would divide rounding errors by each other
        change = jnp.where(search.step == 0, _FIRST, jnp.where(found, 0.0, newton)).astype(dtype)
        previous_log = jnp.where(found & (search.step > 0), search.previous_log, search.log)
        best_log = jnp.where(distance < search.distance, search.log, search.best_log)
        best = jnp.minimum(distance, search.distance)
        return _Search(search.step + 1, search.log + change, previous_log, now, best_log, best), None

    zero = jnp.zeros((), dtype)
    none = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(residual, zero))
    start = _Search(jnp.zeros((), int), zero, zero, none, zero, jnp.asarray(jnp.inf, dtype))
    end, _ = lax.scan(step, start, None, length=num_steps)
    return scaled(problem, batch.inputs, jnp.exp(end.best_log)), end.distance


def scaled(problem: Problem, inputs: Array, factor: Array) -> Array:
    """Images at `factor` times their contrast around the mean color that the network subtracts."""
    return problem.mean_image + factor * (inputs - problem.mean_image)


def _unit(update: Update) -> Update:
    norm = tree_norm(update)
    return jax.tree.map(lambda leaf: leaf / jnp.where(norm == 0, 1.0, norm).astype(leaf.dtype), update)
