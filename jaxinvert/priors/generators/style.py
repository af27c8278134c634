r"""A small StyleGAN2: a style computed from the latent scales the channels of convolutions on a learned constant.

    s_l = A_l f(z / |z|),    y = conv(x, k'),    k'_cf = s_c k_cf / sqrt(sum_c s_c^2 |k_cf|^2 + epsilon)

for the input channels `c` and the features `f` of every 3 x 3 convolution: modulation by the style, demodulation to
features of unit size. A separate kernel for every image would be a grouped convolution, which is slow on all backends
and which could not be vmapped for GI-w, where every image already has its own weights. Instead the scales move out of
the kernel,

    y_f = conv(s x, k)_f / sqrt(sum_c s_c^2 |k_cf|^2 + epsilon),

which gives the same result with one shared kernel (`modulated_convolution`). A noise map for each convolution models
random details. Every level adds its own image to the upsampled image of the previous level (the paper's skip
connections), so that coarse images are learned first without training stages.

Latents are `z [D]`, of which only the direction matters, and the noise maps of each level's convolutions, whose mean
is zero. Kernels are stored with unit variance and scaled at use, so that all layers learn at the same rate (equalized
learning rate, Karras et al. 2018).

Omitted: blur filters around up- and downsampling (bilinear upsampling replaces them), path length regularization,
style mixing.

Tero Karras, Samuli Laine, Miika Aittala, Janne Hellsten, Jaakko Lehtinen, Timo Aila: "Analyzing and Improving the
Image Quality of StyleGAN", CVPR 2020, arXiv:1912.04958.
"""

import math

import jax
import jax.numpy as jnp
from flax import linen

from jaxinvert import nn
from jaxinvert.models.layers import ConvolutionFn
from jaxinvert.priors.generators.generator import Generator, Latents, halved
from jaxinvert.types import Array, Key, Params, Shape

_SMALL = 1e-8
_WIDEST = 4
"""Channels of the coarsest levels, in units of the finest level's."""
_NUM_MAPPING_LAYERS = 3
_PIXEL_SPREAD = 0.25


def modulated_convolution(
    inputs: Array, kernel: Array, style: Array, *, conv_general_dilated: ConvolutionFn = nn.conv_general_dilated
) -> Array:
    """Convolves every image with its own kernel, `style` times `kernel` at unit norm, without forming these kernels.

    Args:
      inputs: `[N, h, w, C]`.
      kernel: `[k, k, C, F]`, shared.
      style: `[N, C]`, scale of each input channel for each image.
      conv_general_dilated: the convolution.

    Returns:
      `[N, h, w, F]`.
    """
    features = conv_general_dilated(
        inputs * style[:, None, None], kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    norms = jnp.sqrt(jnp.square(style) @ jnp.sum(jnp.square(kernel), axis=(0, 1)) + _SMALL)
    return features / norms[:, None, None]


class _Dense(linen.Module):
    """A dense layer whose kernel is stored with unit variance: `[..., C]` to `[..., F]`."""

    features: int
    bias: float = 0.0

    @linen.compact
    def __call__(self, x: Array) -> Array:
        unit, constant = linen.initializers.normal(1.0), linen.initializers.constant(self.bias)
        linen.share_scope(self, dense := linen.Dense(self.features, kernel_init=unit, bias_init=constant))
        return dense(x / math.sqrt(x.shape[-1]))


class _StyledConvolution(linen.Module):
    """Features `[N, h, w, C]` to `[N, h, w, F]`, with the style of `latent [N, D]` and noise `[N, h, w, 1]`."""

    features: int
    conv: ConvolutionFn

    @linen.compact
    def __call__(self, x: Array, latent: Array, noise: Array) -> Array:
        channels = x.shape[-1]
        kernel = self.param("kernel", linen.initializers.normal(1.0), (3, 3, channels, self.features))
        strength = self.param("noise", linen.initializers.zeros, (1,))
        bias = self.param("bias", linen.initializers.zeros, (self.features,))
        style = _Dense(channels, bias=1.0, name="style")(latent)
        x = modulated_convolution(x, kernel / math.sqrt(9 * channels), style, conv_general_dilated=self.conv)
        return _activation(x + strength[None, None, None] * noise + bias[None, None, None])


class _ToColors(linen.Module):
    """Features `[N, h, w, C]` to an image of the level, `[N, h, w, channels]`: modulated, but not demodulated."""

    channels: int

    @linen.compact
    def __call__(self, x: Array, latent: Array) -> Array:
        style = _Dense(x.shape[-1], bias=1.0, name="style")(latent)
        return _Dense(self.channels, name="colors")(x * style[:, None, None])


class _Synthesis(linen.Module):
    """Latents to images `[N, H, W, channels]`."""

    base: tuple[int, int]
    widths: tuple[int, ...]
    channels: int
    conv: ConvolutionFn

    @linen.compact
    def __call__(self, latents: Latents) -> Array:
        z, *noises = latents
        latent = z * jax.lax.rsqrt(jnp.mean(jnp.square(z), axis=-1, keepdims=True) + _SMALL)
        for i in range(_NUM_MAPPING_LAYERS):
            latent = _activation(_Dense(z.shape[-1], name=f"mapping_{i}")(latent))

        constant = self.param("constant", linen.initializers.normal(1.0), (*self.base, self.widths[0]))
        x = jnp.broadcast_to(constant[None], (z.shape[0], *constant.shape))
        x = _StyledConvolution(self.widths[0], self.conv, name="level_0_conv_0")(x, latent, noises[0])
        image = _ToColors(self.channels, name="level_0_colors")(x, latent)
        for level, (width, noise) in enumerate(zip(self.widths[1:], noises[1:]), start=1):
            x, image = _enlarged(x), _enlarged(image)
            for i, one_map in enumerate(jnp.split(noise, 2, axis=-1)):
                x = _StyledConvolution(width, self.conv, name=f"level_{level}_conv_{i}")(x, latent, one_map)
            image += _ToColors(self.channels, name=f"level_{level}_colors")(x, latent)
        return 0.5 + _PIXEL_SPREAD * image


def style(
    *,
    output_shape: Shape = (32, 32, 3),
    num_latents: int = 128,
    width: int = 16,
    conv_general_dilated: ConvolutionFn = nn.conv_general_dilated,
) -> Generator:
    """Builds the generator for images whose sides halve evenly down to 4 ... 7 pixels; pixels near [0, 1].

    Args:
      output_shape: `(H, W, C)`.
      num_latents: `D`, also the width of the mapping network.
      width: channels at the finest level, doubled at each coarser level up to four times.
      conv_general_dilated: the convolution; training is faster with `jax.lax.conv_general_dilated`.

    Raises:
      ValueError: for other image sizes.
    """
    height, width_px, channels = (int(size) for size in output_shape)
    num_doublings, base = halved(output_shape)
    widths = tuple(width * min(1 << (num_doublings - level), _WIDEST) for level in range(num_doublings + 1))
    shapes = [(num_latents,), (*base, 1), *((base[0] << i, base[1] << i, 2) for i in range(1, num_doublings + 1))]
    module = _Synthesis(base, widths, channels, conv_general_dilated)

    def init(key: Key) -> Params:
        return module.lazy_init(key, tuple(jax.ShapeDtypeStruct((1, *shape), jnp.float32) for shape in shapes))[
            "params"
        ]

    def apply(params: Params, latents: Latents) -> Array:
        return module.apply({"params": params}, latents)  # type: ignore[return-value]

    return Generator("style", (height, width_px, channels), tuple(shapes), init, apply)


def _activation(x: Array) -> Array:
    """Leaky ReLU, scaled to preserve the variance."""
    return math.sqrt(2) * linen.leaky_relu(x, 0.2)


def _enlarged(x: Array) -> Array:
    """Bilinear upsampling by 2."""
    count, height, width, channels = x.shape
    return jax.image.resize(x, (count, 2 * height, 2 * width, channels), "bilinear")
