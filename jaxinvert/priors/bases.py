"""Orthonormal bases in which photographs are sparse: cosine transform and opponent colors."""

import jax.numpy as jnp

from jaxinvert.types import Array


def cosine_basis(size: int) -> Array:
    """The orthonormal cosine transform (DCT-II): row `k` of `[size, size]` has `k` half periods."""
    half_periods, position = jnp.arange(size)[:, None], jnp.arange(size)[None, :] + 0.5
    waves = jnp.sqrt(2 / size) * jnp.cos(jnp.pi * half_periods * position / size)
    return waves.at[0].divide(jnp.sqrt(2.0))


def opponent_colors(channels: int) -> Array:
    """Brightness, red against blue, and green against both, `[3, 3]`; the identity unless there are 3 channels."""
    if channels != 3:
        return jnp.eye(channels)
    opponents = jnp.array([[1.0, 1.0, 1.0], [1.0, 0.0, -1.0], [1.0, -2.0, 1.0]])
    return opponents / jnp.sqrt(jnp.sum(jnp.square(opponents), axis=1, keepdims=True))
