"""Independent component analysis (FastICA) of images that a dense layer's gradient holds as linear mixtures.

Only the mixtures `R = Q X [B, features]` are known. Photographs are nearly independent of each other, and their
*spatial differences* are sparse, hence far from normal. After whitening, `Z Z^T / N = 1`, the rotation `W` with the
sparsest components `W Z` separates them. FastICA finds it as the fixed point of

    W <- E[g(W Z) Z^T] - diag(E[g'(W Z)]) W,    W <- (W W^T)^(-1/2) W,    g(u) = u exp(-u^2 / 2).

References:
  Hyvarinen: Fast and robust fixed-point algorithms for independent component analysis. IEEE Transactions on Neural
  Networks 10(3), 1999: the fixed point, and `g` for sparse components.
  Kariyappa, Guo, Maeng, Xiong, Suh, Qureshi, Lee: Cocktail Party Attack. ICML 2023, arXiv:2209.05578: a dense layer's
  gradient as such a mixture.
"""

import math

import jax.numpy as jnp
from jax import lax

from jaxinvert.types import Array, Shape

_WEAK = 1e-2


def spatial_differences(rows: Array, image_shape: Shape) -> Array:
    """Centered differences of vertical and horizontal neighbors; for single pixels, the centered rows themselves.

    Args:
      rows: `[B, features]`.
      image_shape: `(H, W, C)`.

    Returns:
      `[B, N]`.
    """
    images = rows.reshape(-1, *image_shape)
    parts = [jnp.diff(images, axis=1), jnp.diff(images, axis=2)] if math.prod(image_shape[:2]) > 1 else [images]
    samples = jnp.concatenate([part.reshape(len(rows), -1) for part in parts], axis=1)
    return samples - jnp.mean(samples, axis=1, keepdims=True)


def balanced_channels(samples: Array, num_channels: int) -> Array:
    """Scales channels to equal strength, so that a few strong ones do not dominate; very weak ones stay weak.

    Args:
      samples: `[B, N]`, channels last in `N`.
      num_channels: divides `N`.
    """
    by_channel = samples.reshape(len(samples), -1, num_channels)
    strength = jnp.sqrt(jnp.mean(jnp.square(by_channel), axis=(0, 1)))
    # An almost dead channel holds only rounding errors, which must not be amplified.
    scale = strength + _WEAK * jnp.max(strength)
    return (by_channel / jnp.where(scale > 0, scale, 1.0)[None, None]).reshape(samples.shape)


def independent_components(
    start: Array, samples: Array, *, num_components: Array | int, num_steps: int, tolerance: float = 0.0
) -> Array:
    """FastICA of mixtures that may span fewer dimensions than there are rows.

    Args:
      start: `[B, B]` normal noise, the start of the rotation.
      samples: `[B, N]` centered mixtures of `num_components` sources.
      num_components: `[]`, at most `B`; may be traced.
      num_steps: fixed-point iterations, at most.
      tolerance: ends earlier once the components turn by less, as the mean of `1 - |cos|` of their angles.

    Returns:
      `[B, B]` unmixing matrix: its last `num_components` rows times the mixtures are the sources, in any order and
      scale; its other rows are 0.
    """
    size, num_samples = samples.shape
    variances, axes = jnp.linalg.eigh(samples @ samples.T / num_samples)  # ascending
    active = (jnp.arange(size) >= size - num_components) & (variances > 0)
    whitening = jnp.where(active[:, None], axes.T / jnp.sqrt(jnp.where(active, variances, 1.0))[:, None], 0.0)
    white = whitening @ samples
    both_active = active[:, None] & active[None, :]

    def decorrelated(rotation: Array) -> Array:
        left, _, right = jnp.linalg.svd(jnp.where(both_active, rotation, jnp.eye(size, dtype=rotation.dtype)))
        return left @ right

    def is_turning(state: tuple[Array, Array, Array]) -> Array:
        _, turn, i = state
        return (i < num_steps) & (turn >= tolerance)

    def step(state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        rotation, _, i = state
        sources = rotation @ white
        bump = jnp.exp(-(sources**2) / 2)
        slope = jnp.mean((1 - sources**2) * bump, axis=1)
        turned = decorrelated((sources * bump) @ white.T / num_samples - slope[:, None] * rotation)
        turn = jnp.abs(1 - jnp.mean(jnp.abs(jnp.sum(turned * rotation, axis=1))))
        return turned, jnp.where(jnp.isfinite(turn), turn, 0.0).astype(turned.dtype), i + 1

    first = (decorrelated(start), jnp.full((), jnp.inf, start.dtype), jnp.int32(0))
    rotation, _, _ = lax.while_loop(is_turning, step, first)
    return rotation @ whitening
