"""Optimizer transformations that optax lacks: Langevin noise, a median filter, learning rates per part."""

from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import optax

from jaxinvert.nn import draws
from jaxinvert.types import Array, ArrayTree, Key, Scalar


def signed_adam(learning_rate: optax.ScalarOrSchedule) -> optax.GradientTransformation:
    """Adam on the signs of the gradient (Geiping et al. 2020): a step depends on no scale of the attack loss."""
    return optax.chain(optax.scale_by_sign(), optax.scale_by_adam(), optax.scale_by_learning_rate(learning_rate))


def langevin_noise(scale: Scalar) -> optax.GradientTransformationExtraArgs:
    """Adds `scale * N(0, 1)` to the steps, from the key that the search passes to the optimizer (Yin et al. 2021)."""

    def update(
        updates: Any, state: Any, params: ArrayTree | None = None, *, key: Key, **extra: object
    ) -> tuple[Any, Any]:
        del params, extra
        leaves, structure = jax.tree.flatten(updates)
        keys = jax.random.split(key, len(leaves))
        noisy = [leaf + scale * draws.normal(k, leaf.shape, leaf.dtype) for k, leaf in zip(keys, leaves)]
        return jax.tree.unflatten(structure, noisy), state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), cast(Any, update))


class StepCount(NamedTuple):
    """The number of steps so far."""

    count: Array


def scale_by_rates(rates: ArrayTree) -> optax.GradientTransformation:
    """Multiplies the step of each part of the variables by its own negative learning rate; a rate of 0 freezes it.

    Args:
      rates: schedules, `count -> []`, in a tree that is a prefix of the variables' tree.
    """

    def init(params: ArrayTree) -> StepCount:
        del params
        return StepCount(jnp.zeros((), jnp.int32))

    def update(updates: ArrayTree, state: StepCount, params: ArrayTree | None = None) -> tuple[ArrayTree, StepCount]:
        del params

        def scaled(schedule: optax.Schedule, part: ArrayTree) -> ArrayTree:
            rate = jnp.asarray(schedule(state.count))
            return jax.tree.map(lambda leaf: jnp.asarray(-rate * leaf, leaf.dtype), part)

        return jax.tree.map(scaled, rates, updates), StepCount(state.count + 1)

    return optax.GradientTransformation(init, cast(Any, update))


def median_filter(*, every: int) -> optax.GradientTransformation:
    """Replaces the images by their 3 x 3 medians after every `every`-th step (Geiping et al. 2020, optional there).

    It must be last in a chain. The variables are images `[B, H, W, C]`; the border is padded with its edge values.
    """
    if every < 1:
        raise ValueError(f"median_filter expects every to be at least 1, got {every}")

    def init(params: ArrayTree) -> StepCount:
        del params
        return StepCount(jnp.zeros((), jnp.int32))

    def update(updates: ArrayTree, state: StepCount, params: ArrayTree | None = None) -> tuple[ArrayTree, StepCount]:
        if params is None:
            raise ValueError("median_filter needs the images: optimizer.update(updates, state, images)")
        count = state.count + 1

        def filtered(step: Array, images: Array) -> Array:
            return median_of_neighbors(images + step) - images

        updates = jax.lax.cond(count % every == 0, lambda: jax.tree.map(filtered, updates, params), lambda: updates)
        return updates, StepCount(count)

    return optax.GradientTransformation(init, cast(Any, update))


def median_of_neighbors(images: Array) -> Array:
    """The median of each pixel and its eight neighbors, per channel: `[B, H, W, C] -> [B, H, W, C]`."""
    height, width = images.shape[1:3]
    padded = jnp.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
    shifted = [padded[:, y : y + height, x : x + width] for y in range(3) for x in range(3)]
    return jnp.median(jnp.stack(shifted), axis=0)
