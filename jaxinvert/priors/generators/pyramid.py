r"""A normalizing flow over an image pyramid: the details of each level are normal, given the coarser image.

The coarsest image is normal with a full covariance. An inverse Haar transform leads from level `l` to the next,

    x_(l+1) = Haar^-1(x_l, d_l),    d_l = mu_l(x_l) + sigma_l(x_l) z_l,    z_l ~ N(0, I),

where small convolutional networks predict the mean of the details from the coarse image (an edge continues) and their
standard deviation (large at edges, small in the sky). The map from latents to images is one-to-one, so that

    -log p(x) = sum_l  |z_l|^2 / 2 + sum log sigma_l(x_l) + constant

is exact: training is maximum likelihood, without discriminator or encoder, and takes minutes on two cores. As a prior
for gradient inversion it can represent every image. Latents at zero give the expected details, so optimizing coarse
latents first is a coarse-to-fine search. Internally, colors are three orthonormal opponent channels. Its samples are
textures with the statistics of photographs, not objects: it models local statistics and is not a realistic generator.

Based on Jason J. Yu, Konstantinos G. Derpanis, Marcus A. Brubaker: "Wavelet Flow: Fast Training of High Resolution
Normalizing Flows", NeurIPS 2020, arXiv:2010.13821; here each level is one conditional normal step.
"""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen

from jaxinvert import nn
from jaxinvert.models.layers import ConvolutionFn
from jaxinvert.priors.bases import opponent_colors
from jaxinvert.priors.generators.generator import Generator, Latents, halved
from jaxinvert.types import Array, Key, Params, Shape

_SMALLEST_SPREAD = 0.003
"""Just below the rounding of 8-bit pixels; without this bound a flat patch has infinite likelihood."""
_USUAL_SPREAD = 0.05
_PIXEL_SPREAD = 0.25


class Pyramid(NamedTuple):
    """A pyramid generator with its training functions.

    Attributes:
      generator: the map from latents to images.
      loss: `(params, images [N, H, W, C]) -> []`, `-log p` in nats per pixel and channel, without its constant.
      fit_base: `(params, images [N, H, W, C]) -> params`, fits the coarsest image's mean and covariance in closed
        form.
    """

    generator: Generator
    loss: Callable[[Params, Array], Array]
    fit_base: Callable[[Params, Array], Params]


class _Details(linen.Module):
    """`mu` and `sigma` of the details `[N, h, w, 3 C]`, given the coarse image `[N, h, w, C]`."""

    width: int
    conv: Callable

    @linen.compact
    def __call__(self, coarse: Array) -> tuple[Array, Array]:
        channels = 3 * coarse.shape[-1]
        hidden = linen.silu(self.conv(self.width, (3, 3), name="conv_0")(coarse / _PIXEL_SPREAD))
        hidden = linen.silu(self.conv(self.width, (3, 3), name="conv_1")(hidden))
        small = linen.initializers.variance_scaling(0.01, "fan_in", "normal")
        both = self.conv(2 * channels, (3, 3), kernel_init=small, name="conv_2")(hidden)
        mean, spread = jnp.split(both, 2, axis=-1)
        return 2 * _USUAL_SPREAD * mean, _SMALLEST_SPREAD + _USUAL_SPREAD * linen.softplus(spread)


def pyramid(
    *,
    output_shape: Shape = (32, 32, 3),
    width: int = 32,
    conv_general_dilated: ConvolutionFn = nn.conv_general_dilated,
) -> Pyramid:
    """Builds a pyramid for images whose sides are one power of two times 1, 3, 5 or 7.

    Args:
      output_shape: `(H, W, C)`.
      width: channels of the networks' hidden layers.
      conv_general_dilated: the convolution; training is faster with `jax.lax.conv_general_dilated`.

    Raises:
      ValueError: for sides that cannot be halved down to 4 ... 7 pixels.
    """
    height, width_px, channels = (int(size) for size in output_shape)
    num_levels, coarsest = halved(output_shape, at_least=1)
    base = (*coarsest, channels)
    size = math.prod(base)
    conv = functools.partial(linen.Conv, conv_general_dilated=conv_general_dilated)
    levels = [_Details(width, conv) for _ in range(num_levels)]
    opponent = opponent_colors(channels)
    shapes = [(size,), *((base[0] << i, base[1] << i, 3 * channels) for i in range(num_levels))]

    def init(key: Key) -> Params:
        keys = jax.random.split(key, num_levels)
        details = {}
        for level in range(num_levels):  # lazy: draws the initial values without running a convolution
            coarse = jax.ShapeDtypeStruct((1, *shapes[level + 1][:2], channels), jnp.float32)
            details[f"level_{level}"] = levels[level].lazy_init(keys[level], coarse)["params"]
        return {"base": {"mean": jnp.zeros(size), "root": _PIXEL_SPREAD * jnp.eye(size)}, **details}

    def details_of(params: Params, level: int, coarse: Array) -> tuple[Array, Array]:
        return levels[level].apply({"params": params[f"level_{level}"]}, coarse)  # type: ignore[return-value]

    def apply(params: Params, latents: Latents) -> Array:
        images = latents[0] @ params["base"]["root"] + params["base"]["mean"][None]
        images = images.reshape(-1, *base)
        for level in range(num_levels):
            mean, spread = details_of(params, level, images)
            images = _finer(images, mean + spread * latents[level + 1])
        return images @ opponent + 0.5

    def loss(params: Params, images: Array) -> Array:
        coarse, unlikely = (images - 0.5) @ opponent.T, jnp.zeros(())
        for level in reversed(range(num_levels)):
            coarse, details = _coarser(coarse)
            mean, spread = details_of(params, level, coarse)
            nats = 0.5 * jnp.square((details - mean) / spread) + jnp.log(spread)
            unlikely += jnp.sum(nats) / images.size
        return unlikely

    def fit_base(params: Params, images: Array) -> Params:
        coarse = (images - 0.5) @ opponent.T
        for _ in range(num_levels):
            coarse, _ = _coarser(coarse)
        flat = np.asarray(coarse, np.float64).reshape(len(images), -1)
        variances, directions = np.linalg.eigh(np.cov(flat.T))
        root = (directions * np.sqrt(np.maximum(variances, _SMALLEST_SPREAD**2))).T
        fitted = {"mean": flat.mean(axis=0), "root": root}
        return {**params, "base": jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), fitted)}

    return Pyramid(Generator("pyramid", (height, width_px, channels), tuple(shapes), init, apply), loss, fit_base)


def _coarser(images: Array) -> tuple[Array, Array]:
    """Means of 2 x 2 pixels `[N, h, w, C]` and their horizontal, vertical and diagonal details `[N, h, w, 3 C]`."""
    a, b, c, d = (images[:, row::2, column::2] for row in range(2) for column in range(2))
    details = [a - b + c - d, a + b - c - d, a - b - c + d]
    return (a + b + c + d) / 4, jnp.concatenate(details, axis=-1) / 4


def _finer(coarse: Array, details: Array) -> Array:
    """The inverse of `_coarser`."""
    across, down, diagonal = jnp.split(details, 3, axis=-1)
    upper = jnp.stack([coarse + across + down + diagonal, coarse - across + down - diagonal], axis=3)
    lower = jnp.stack([coarse + across - down - diagonal, coarse - across - down + diagonal], axis=3)
    count, height, width, channels = coarse.shape
    return jnp.stack([upper, lower], axis=2).reshape(count, 2 * height, 2 * width, channels)
