"""The dead leaves model: random opaque shapes drawn over each other, with the image statistics of photographs.

Sizes follow the power law that makes the image statistics scale-invariant: few large shapes, many small ones. Edges,
flat areas and the decay of the spectrum then resemble those of photographs, without using any photograph.

References:
  Lee, Mumford, Huang: Occlusion models for natural images: a statistical study of a scale-invariant dead leaves
  model. International Journal of Computer Vision 41, 2001.
"""

import jax
import jax.numpy as jnp

from jaxinvert.nn import draws
from jaxinvert.types import Array, Key, Shape

_SMALLEST, _LARGEST = 0.08, 0.75
"""Radii, in units of the picture's longer side."""
_ELONGATION = 0.6
"""The longest shapes are `exp(2 * 0.6)` times as long as wide."""
_SHADING, _COLOR = 0.1, 0.1
"""Standard deviations of the brightness gradient within a leaf, per radius, and of a leaf's color around gray."""


def dead_leaves(key: Key, batch_shape: Shape, *, num_leaves: int = 40) -> Array:
    """Draws pictures `[B, H, W, C]` in [0, 1].

    Args:
      key: draws all leaves.
      batch_shape: `(B, H, W, C)`.
      num_leaves: ellipses and rectangles drawn on each picture.
    """
    batch_size, height, width, channels = batch_shape
    side = max(height, width)
    rows, columns = jnp.arange(height)[None, :, None] / side, jnp.arange(width)[None, None, :] / side
    chance_key, slope_key, color_key = jax.random.split(key, 3)
    chances = draws.uniform(chance_key, (num_leaves, 7, batch_size, 1, 1))
    slopes = _SHADING * draws.normal(slope_key, (num_leaves, 2, batch_size, 1, 1))
    colors = _COLOR * draws.normal(color_key, (num_leaves, batch_size, 1, 1, channels))
    colors -= jnp.mean(colors, axis=-1, keepdims=True)  # brightness is drawn separately

    def fall(pictures: Array, leaf: tuple[Array, Array, Array]) -> tuple[Array, None]:
        (size, row, column, turn, elongation, shape, brightness), (down, across), color = leaf
        radius = _SMALLEST / jnp.sqrt(1 - size * (1 - (_SMALLEST / _LARGEST) ** 2))  # density ~ radius^-3
        angle, longer = jnp.pi * turn, jnp.exp(_ELONGATION * (2 * elongation - 1))
        y, x = rows - (1.5 * row - 0.25) * height / side, columns - (1.5 * column - 0.25) * width / side
        u = (y * jnp.cos(angle) + x * jnp.sin(angle)) / radius
        v = (x * jnp.cos(angle) - y * jnp.sin(angle)) / radius
        ellipse = jnp.square(u / longer) + jnp.square(v * longer)
        rectangle = jnp.square(jnp.maximum(jnp.abs(u / longer), jnp.abs(v * longer)))
        inside = jax.nn.sigmoid((1 - jnp.where(shape < 0.5, ellipse, rectangle)) * radius * side)[..., None]
        painted = (brightness + down * u + across * v)[..., None] + color
        return pictures + inside * (painted - pictures), None

    ground = jnp.full(batch_shape, 0.5)
    pictures, _ = jax.lax.scan(fall, ground, (chances, slopes, colors))
    return jnp.clip(pictures, 0.0, 1.0)
