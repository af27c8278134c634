"""DCGAN's generator: one dense layer, then upsampling and convolutions that double the size at each level.

Untrained, it is the deep image prior, in which only the weights are optimized; trained on gradients, it is GIML's.

Alec Radford, Luke Metz, Soumith Chintala: "Unsupervised Representation Learning with Deep Convolutional Generative
Adversarial Networks", ICLR 2016, arXiv:1511.06434. Dmitry Ulyanov, Andrea Vedaldi, Victor Lempitsky: "Deep Image
Prior", CVPR 2018, arXiv:1711.10925. Nearest-neighbor upsampling and plain convolutions replace transposed ones, whose
uneven overlap causes checkerboard artifacts. There is no BatchNorm: an image must not depend on its batch.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen

from jaxinvert import nn
from jaxinvert.models.layers import ConvolutionFn
from jaxinvert.priors.generators.generator import Generator, Latents, halved
from jaxinvert.types import Array, Key, Params, Shape


class _Upsampling(linen.Module):
    """Latents `[B, D]` to images `[B, H, W, C]` in (0, 1)."""

    base: tuple[int, int]
    num_doublings: int
    channels: int
    width: int
    conv: Callable

    @linen.compact
    def __call__(self, latent: Array) -> Array:
        count = latent.shape[0]
        height, width_px = self.base
        features = linen.Dense(height * width_px * self.width, name="dense")(latent)
        x = linen.silu(features.reshape(count, height, width_px, self.width))
        for i in range(self.num_doublings):
            x = jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)
            width = max(self.width >> (i + 1), 8)
            x = linen.silu(self.conv(width, (3, 3), name=f"conv_{i}")(x))
            x = linen.LayerNorm(name=f"norm_{i}", reduction_axes=(1, 2, 3), feature_axes=-1)(x)
        return linen.sigmoid(self.conv(self.channels, (3, 3), name="to_pixels")(x))


def convolutional(
    *,
    output_shape: Shape = (32, 32, 3),
    num_latents: int = 128,
    width: int = 64,
    conv_general_dilated: ConvolutionFn = nn.conv_general_dilated,
) -> Generator:
    """Builds the generator for images whose sides halve evenly down to 4 ... 7 pixels.

    Args:
      output_shape: `(H, W, C)`.
      num_latents: `D`.
      width: channels at the coarsest level, halved at each finer level, but at least 8.
      conv_general_dilated: the convolution.

    Raises:
      ValueError: for other image sizes.
    """
    height, width_px, channels = (int(size) for size in output_shape)
    num_doublings, base = halved(output_shape)
    conv = functools.partial(linen.Conv, conv_general_dilated=conv_general_dilated)
    module = _Upsampling(base, num_doublings, channels, width, conv)

    def init(key: Key) -> Params:
        return module.lazy_init(key, jax.ShapeDtypeStruct((1, num_latents), jnp.float32))["params"]

    def apply(params: Params, latents: Latents) -> Array:
        return module.apply({"params": params}, latents[0])  # type: ignore[return-value]

    return Generator("convolutional", (height, width_px, channels), ((num_latents,),), init, apply)
