"""Residual networks: three-stage CIFAR ResNets (depth 6n + 2, any width) and four-stage ImageNet ResNets.

Convolutions have no bias and a Kaiming-normal initialization with fan-out, BatchNorm starts at scale 1 and bias 0,
and the dense layer has PyTorch's default: the usual choices of PyTorch programs, including the one that produced the
published "Inverting Gradients" numbers. If a block changes the shape, its shortcut is a 1x1 convolution with
BatchNorm.

References:
  He, Zhang, Ren, Sun: Deep Residual Learning for Image Recognition. CVPR 2016, arXiv:1512.03385.
  Geiping, Bauermeister, Droege, Moeller: Inverting Gradients. NeurIPS 2020, arXiv:2003.14053 (ResNet20-4,
  32-10).
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import linen

from jaxinvert import nn
from jaxinvert.models.layers import ConvolutionFn, LayerFn, batch_norm_layer, dense_like_torch, unknown_value
from jaxinvert.models.model import Model, from_linen
from jaxinvert.types import Array


class BasicBlock(linen.Module):
    """Two 3x3 convolutions with a shortcut; `width` output channels."""

    width: int
    stride: int
    conv: LayerFn
    norm: LayerFn

    @linen.compact
    def __call__(self, x: Array) -> Array:
        """Features `[B, h, w, c]` to `[B, ceil(h / stride), ceil(w / stride), width]`."""
        y = self.conv(self.width, (3, 3), strides=self.stride, padding=1, name="conv_0")(x)
        y = linen.relu(self.norm(name="norm_0")(y))
        y = self.conv(self.width, (3, 3), padding=1, name="conv_1")(y)
        y = self.norm(name="norm_1")(y)
        return linen.relu(y + _shortcut(self.conv, self.norm, x, self.width, self.stride))


class Bottleneck(linen.Module):
    """Convolutions 1x1, 3x3, 1x1 with a shortcut; `4 * width` output channels.

    The 3x3 convolution has the stride, as in common PyTorch code; in the paper the first 1x1 convolution has it.
    """

    width: int
    stride: int
    conv: LayerFn
    norm: LayerFn

    @linen.compact
    def __call__(self, x: Array) -> Array:
        """Features `[B, h, w, c]` to `[B, ceil(h / stride), ceil(w / stride), 4 * width]`."""
        y = self.conv(self.width, (1, 1), padding=0, name="conv_0")(x)
        y = linen.relu(self.norm(name="norm_0")(y))
        y = self.conv(self.width, (3, 3), strides=self.stride, padding=1, name="conv_1")(y)
        y = linen.relu(self.norm(name="norm_1")(y))
        y = self.conv(4 * self.width, (1, 1), padding=0, name="conv_2")(y)
        y = self.norm(name="norm_2")(y)
        return linen.relu(y + _shortcut(self.conv, self.norm, x, 4 * self.width, self.stride))


def _shortcut(conv: LayerFn, norm: LayerFn, x: Array, channels: int, stride: int) -> Array:
    """The identity, or a 1x1 convolution with BatchNorm if the shape changes. Call it inside a block."""
    if stride == 1 and x.shape[-1] == channels:
        return x
    x = conv(channels, (1, 1), strides=stride, padding=0, name="shortcut_conv")(x)
    return norm(name="shortcut_norm")(x)


class ResNet(linen.Module):
    """Stem, stages of blocks with width, 2 width, 4 width, ..., global mean, head.

    Every stage but the first halves the resolution. The "cifar" stem is a 3x3 convolution; the "imagenet"
    stem a 7x7 convolution of stride 2 and a 3x3 max-pool of stride 2.
    """

    num_classes: int
    width: int
    block: type[BasicBlock] | type[Bottleneck]
    num_blocks: tuple[int, ...]
    stem: str
    conv: LayerFn
    norm: LayerFn

    @linen.compact
    def __call__(self, x: Array) -> Array:
        """Normalized inputs `[B, H, W, C]` to logits `[B, K]`."""
        kernel, stride, padding = (7, 2, 3) if self.stem == "imagenet" else (3, 1, 1)
        x = self.conv(self.width, (kernel, kernel), strides=stride, padding=padding, name="stem_conv")(x)
        x = linen.relu(self.norm(name="stem_norm")(x))
        if self.stem == "imagenet":
            x = nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))
        for stage, num_blocks in enumerate(self.num_blocks):
            for i in range(num_blocks):
                stride = 2 if stage > 0 and i == 0 else 1
                width = self.width * 2**stage
                name = f"stage_{stage}_block_{i}"
                x = self.block(width, stride, self.conv, self.norm, name=name)(x)
        x = jnp.mean(x, axis=(1, 2))
        return dense_like_torch(self.num_classes, x.shape[-1], name="head")(x)


def resnet_cifar(
    *,
    depth: int = 20,
    width: int = 64,
    input_shape: Sequence[int] = (32, 32, 3),
    num_classes: int = 10,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    batch_norm: str = "eval",
    conv_general_dilated: ConvolutionFn = nn.conv_general_dilated,
) -> Model:
    """A ResNet with three stages of `(depth - 2) / 6` basic blocks with width, 2 width, 4 width.

    "ResNet20-4" of the literature is depth 20 and width 64 = 4 * 16; "ResNet32-10" depth 32 and width 160.

    Args:
      depth: 6n + 2 with n >= 1.
      width: channels of the stem and the first stage.
      input_shape: `(H, W, C)` of one example.
      num_classes: `K`.
      mean: per-channel mean; `None` = no shift.
      std: per-channel standard deviation; `None` = no scale.
      batch_norm: "eval" (running statistics) or "train" (the batch's own).
      conv_general_dilated: replaces the convolution, for example by `jax.lax.conv_general_dilated`.

    Returns:
      The model "resnet<depth>-<width / 16>".

    Raises:
      ValueError: for another depth, a width below 1, or another `batch_norm`.
    """
    if depth < 8 or depth % 6 != 2:
        raise ValueError(f"depth must be 6n + 2 with n >= 1 (8, 14, 20, ...), got {depth}")
    return _resnet(
        f"resnet{depth}-{width / 16:g}",
        width=width,
        block=BasicBlock,
        num_blocks=((depth - 2) // 6,) * 3,
        stem="cifar",
        input_shape=input_shape,
        num_classes=num_classes,
        mean=mean,
        std=std,
        batch_norm=batch_norm,
        conv_general_dilated=conv_general_dilated,
    )


_IMAGENET = {
    18: (BasicBlock, (2, 2, 2, 2)),
    34: (BasicBlock, (3, 4, 6, 3)),
    50: (Bottleneck, (3, 4, 6, 3)),
}


def resnet_imagenet(
    *,
    depth: int = 18,
    width: int = 64,
    stem: str = "imagenet",
    input_shape: Sequence[int] = (32, 32, 3),
    num_classes: int = 10,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    batch_norm: str = "eval",
    conv_general_dilated: ConvolutionFn = nn.conv_general_dilated,
) -> Model:
    """ResNet-18, -34 or -50: four stages, basic blocks for the first two and bottlenecks for the last.

    Args:
      depth: 18, 34 or 50.
      width: channels of the stem; the published networks have 64.
      stem: "imagenet" (7x7 convolution and max-pool, resolution / 4) or "cifar" (3x3 convolution at full
        resolution: the ResNet-18 that "Inverting Gradients" uses on CIFAR).
      input_shape: `(H, W, C)` of one example; (224, 224, 3) for ImageNet.
      num_classes: `K`; 1,000 for ImageNet.
      mean: per-channel mean; `None` = no shift.
      std: per-channel standard deviation; `None` = no scale.
      batch_norm: "eval" (running statistics) or "train" (the batch's own).
      conv_general_dilated: replaces the convolution, for example by `jax.lax.conv_general_dilated`.

    Returns:
      The model "resnet<depth>"; another width or stem is appended to the name.

    Raises:
      ValueError: for another depth, stem or `batch_norm`, or a width below 1.
    """
    if depth not in _IMAGENET:
        raise unknown_value("depth", depth, map(str, _IMAGENET))
    if stem not in ("imagenet", "cifar"):
        raise unknown_value("stem", stem, ("imagenet", "cifar"))
    block, num_blocks = _IMAGENET[depth]
    name = f"resnet{depth}"
    if width != 64:
        name += f"-width{width}"
    if stem != "imagenet":
        name += f"-{stem}-stem"
    return _resnet(
        name,
        width=width,
        block=block,
        num_blocks=num_blocks,
        stem=stem,
        input_shape=input_shape,
        num_classes=num_classes,
        mean=mean,
        std=std,
        batch_norm=batch_norm,
        conv_general_dilated=conv_general_dilated,
    )


def _resnet(
    name: str,
    *,
    width: int,
    block: type[BasicBlock] | type[Bottleneck],
    num_blocks: tuple[int, ...],
    stem: str,
    input_shape: Sequence[int],
    num_classes: int,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    batch_norm: str,
    conv_general_dilated: ConvolutionFn,
) -> Model:
    """Common part of both kinds: the layers and their initialization."""
    if width < 1:
        raise ValueError(f"width must be at least 1, got {width}")
    conv = functools.partial(
        linen.Conv,
        use_bias=False,
        kernel_init=jax.nn.initializers.variance_scaling(2.0, "fan_out", "normal"),
        conv_general_dilated=conv_general_dilated,
    )
    module = ResNet(num_classes, width, block, num_blocks, stem, conv, batch_norm_layer(batch_norm))
    return from_linen(module, name=name, input_shape=input_shape, num_classes=num_classes, mean=mean, std=std)
