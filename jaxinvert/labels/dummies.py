"""Dummy inputs for label rules, in place of the private images: noise, or the attacker's public images.

A rule estimates the model's outputs on the private images from its outputs on dummies. Dummies come in `F` families
of `N`. The images of a family share a style (brightness, contrast, smoothness, color); the variation between families
estimates the uncertainty about the style of the private images.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxinvert.nn import draws
from jaxinvert.observation.observe import require
from jaxinvert.types import Array, Key, Observation, Shape

Dummies = Callable[[Observation], Array]
"""`observation -> [F, N, H, W, C]` in [0, 1]."""


_MAX_PIXELS = 2**22


def white_noise(key: Key, *, input_shape: Shape, num_inputs: int = 512) -> Dummies:
    """Independent pixels `N(1/2, 1/4)`, clipped to [0, 1]: the standard normal inputs of the published rules.

    Args:
      key: used once, when the factory is called, so that the rule is a pure function.
      input_shape: `(H, W, C)`.
      num_inputs: `N`; one family.
    """
    images = jnp.clip(0.5 + 0.25 * draws.normal(key, (1, num_inputs, *input_shape)), 0.0, 1.0)
    return lambda observation: images


def natural_noise(key: Key, *, input_shape: Shape, num_families: int = 32, num_inputs: int | None = None) -> Dummies:
    """Noise with the second-order statistics of photographs: amplitude 1/f^a, correlated colors, random styles.

    Natural images have amplitude spectra near 1/f (Field 1987). Exponent, brightness, contrast and tint vary between
    families, brightness and contrast also between images. No data are used.

    Args:
      key: used once, when the factory is called.
      input_shape: `(H, W, C)`.
      num_families: `F`.
      num_inputs: `N` of each family; by default 32, reduced for large images to no less than 4.
    """
    height, width, channels = input_shape
    if num_inputs is None:
        num_inputs = max(4, min(32, _MAX_PIXELS // (num_families * height * width)))
    noise_key, slope_key, level_key, tint_key, contrast_key, own_key = jax.random.split(key, 6)
    styles = (num_families, 1, 1, 1, 1)
    frequency = jnp.sqrt(jnp.fft.fftfreq(height)[:, None] ** 2 + jnp.fft.fftfreq(width)[None, :] ** 2)
    frequency = jnp.maximum(frequency, 1 / max(height, width))[None, None, :, :, None]
    slope = draws.uniform(slope_key, styles, minval=0.8, maxval=1.6)
    # One luminance plane and one plane per color channel.
    white = draws.normal(noise_key, (num_families, num_inputs, height, width, 1 + channels))
    smooth = jnp.real(jnp.fft.ifft2(jnp.fft.fft2(white, axes=(2, 3)) / frequency**slope, axes=(2, 3)))
    smooth = smooth / jnp.std(smooth, axis=(1, 2, 3, 4), keepdims=True)
    texture = jnp.sqrt(0.9) * smooth[..., :1] + jnp.sqrt(0.1) * smooth[..., 1:]
    level = 0.47 + 0.05 * draws.normal(level_key, styles)
    tint = 0.03 * draws.normal(tint_key, (num_families, 1, 1, 1, channels))
    own = jnp.exp(0.3 * draws.normal(own_key, (num_families, num_inputs, 1, 1, 1)))
    contrast = draws.uniform(contrast_key, styles, minval=0.18, maxval=0.3) * own
    images = jnp.clip(level + tint + contrast * texture, 0.0, 1.0)
    return lambda observation: images


def surrogate_images(*, max_inputs: int = 2048) -> Dummies:
    """The first `max_inputs` of the attacker's public images, as one family."""

    def dummies(observation: Observation) -> Array:
        return require(observation, "surrogate", attack="a rule with surrogate dummies")[None, :max_inputs]

    return dummies


def surrogate_gaussian(key: Key, *, num_inputs: int = 1024, max_components: int = 256) -> Dummies:
    """Gaussian images with the mean and the leading covariance of the surrogate images, clipped to [0, 1].

    Args:
      key: used on every call, with the same result.
      num_inputs: `N`; one family.
      max_components: principal components kept, at most the number of surrogate images.
    """

    def dummies(observation: Observation) -> Array:
        images = require(observation, "surrogate", attack="a rule with surrogate dummies")
        flat = images.reshape(images.shape[0], -1)
        mean = jnp.mean(flat, axis=0, keepdims=True)
        _, sizes, directions = jnp.linalg.svd(flat - mean, full_matrices=False)
        scales = sizes[:max_components, None] / jnp.sqrt(images.shape[0])
        weights = draws.normal(key, (num_inputs, scales.shape[0]))
        samples = mean + weights @ (scales * directions[:max_components])
        return jnp.clip(samples, 0.0, 1.0).reshape(1, num_inputs, *images.shape[1:])

    return dummies
