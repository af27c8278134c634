"""Learning-rate schedules over the `horizon` of an attack; every argument may be traced."""

import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from jaxinvert.types import Array, Scalar


def step_decay(learning_rate: Scalar, horizon: Scalar) -> optax.Schedule:
    """Divides the learning rate by ten at 3/8, 5/8 and 7/8 of the horizon (Geiping et al. 2020).

    >>> schedule = step_decay(1.0, 8)
    >>> [round(float(schedule(step)), 6) for step in (0, 2, 3, 5, 7)]
    [1.0, 1.0, 0.1, 0.01, 0.001]
    """

    def schedule(count: ArrayLike) -> Array:
        milestones = jnp.floor(jnp.array([3 / 8, 5 / 8, 7 / 8]) * horizon)
        return learning_rate * 0.1 ** jnp.sum(jnp.asarray(count) >= milestones)

    return schedule


def warmup_cosine(learning_rate: Scalar, horizon: Scalar, *, warmup: Scalar) -> optax.Schedule:
    """Increases linearly over `warmup` steps, then decays to zero along half a cosine (Yin et al. 2021).

    >>> schedule = warmup_cosine(1.0, 12, warmup=4)
    >>> [round(float(schedule(step)), 6) for step in (0, 1, 3, 4, 8, 12)]
    [0.25, 0.5, 1.0, 1.0, 0.5, 0.0]
    """

    def schedule(count: ArrayLike) -> Array:
        rising = (jnp.asarray(count) + 1) / jnp.maximum(warmup, 1)
        return learning_rate * jnp.minimum(rising, 1.0) * _half_cosine(count, warmup, horizon)

    return schedule


def cosine_decay(learning_rate: Scalar, horizon: Scalar, *, begin: Scalar = 0.0) -> optax.Schedule:
    """Zero before step `begin`, then decays from the learning rate to zero along half a cosine.

    >>> schedule = cosine_decay(1.0, 12, begin=4)
    >>> [round(float(schedule(step)), 6) for step in (0, 3, 4, 8, 12, 13)]
    [0.0, 0.0, 1.0, 0.5, 0.0, 0.0]
    """

    def schedule(count: ArrayLike) -> Array:
        return jnp.where(jnp.asarray(count) < begin, 0.0, learning_rate * _half_cosine(count, begin, horizon))

    return schedule


def _half_cosine(count: ArrayLike, begin: Scalar, end: Scalar) -> Array:
    """1 until `begin`, 0 from `end` on, half a cosine between."""
    share = jnp.clip((jnp.asarray(count) - begin) / jnp.maximum(end - begin, 1), 0.0, 1.0)
    return 0.5 * (1 + jnp.cos(jnp.pi * share))
