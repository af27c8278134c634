"""Small convolutional networks that are inverted in seconds: three 3x3 convolutions of stride 1, ReLU, a dense layer.

There is no pooling or stride and the dense layer is wide, so that the gradient of one image determines it almost
exactly. For demonstrations, tests and positive controls; not from a paper. One of the two kinds has BatchNorm and is
the shallowest network here whose clients send running statistics.
"""

import functools
from collections.abc import Sequence
from typing import Any

from flax import linen

from jaxinvert import nn
from jaxinvert.models.layers import ConvolutionFn, LayerFn, batch_norm_layer, conv_like_torch, dense_like_torch
from jaxinvert.models.model import Model, from_linen
from jaxinvert.types import Array


class SmallConvNet(linen.Module):
    """Three convolutions at full resolution, then a head on all `H * W * width` features."""

    num_classes: int
    width: int
    conv: LayerFn
    norm: LayerFn | None = None

    @linen.compact
    def __call__(self, x: Array) -> Array:
        """Normalized inputs `[B, H, W, C]` to logits `[B, K]`."""
        for i in range(3):
            x = conv_like_torch(self.conv, self.width, (3, 3), x.shape[-1], padding=1, name=f"conv_{i}")(x)
            x = linen.relu(x if self.norm is None else self.norm(name=f"norm_{i}")(x))
        x = x.reshape(x.shape[0], -1)
        return dense_like_torch(self.num_classes, x.shape[-1], name="head")(x)


def small_convnet(
    *,
    width: int = 32,
    input_shape: Sequence[int] = (32, 32, 3),
    num_classes: int = 10,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    conv_general_dilated: ConvolutionFn = nn.conv_general_dilated,
) -> Model:
    """The small network, with PyTorch's default initialization.

    Args:
      width: channels of every convolution.
      input_shape: `(H, W, C)` of one example.
      num_classes: `K`.
      mean: per-channel mean; `None` = no shift.
      std: per-channel standard deviation; `None` = no scale.
      conv_general_dilated: replaces the convolution, for example by `jax.lax.conv_general_dilated`.

    Returns:
      The model "small-convnet", with the width appended unless it is 32.

    Raises:
      ValueError: for a width below 1.
    """
    return _small(
        "small-convnet",
        width,
        None,
        conv_general_dilated,
        input_shape=input_shape,
        num_classes=num_classes,
        mean=mean,
        std=std,
    )


def small_convnet_bn(
    *,
    width: int = 32,
    input_shape: Sequence[int] = (32, 32, 3),
    num_classes: int = 10,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    batch_norm: str = "eval",
    conv_general_dilated: ConvolutionFn = nn.conv_general_dilated,
) -> Model:
    """The small network with BatchNorm between every convolution and its ReLU.

    Args:
      width: channels of every convolution.
      input_shape: `(H, W, C)` of one example.
      num_classes: `K`.
      mean: per-channel mean; `None` = no shift.
      std: per-channel standard deviation; `None` = no scale.
      batch_norm: "eval" (running statistics) or "train" (the batch's own).
      conv_general_dilated: replaces the convolution, for example by `jax.lax.conv_general_dilated`.

    Returns:
      The model "small-convnet-bn", with the width appended unless it is 32.

    Raises:
      ValueError: for a width below 1, or another `batch_norm`.
    """
    return _small(
        "small-convnet-bn",
        width,
        batch_norm_layer(batch_norm),
        conv_general_dilated,
        input_shape=input_shape,
        num_classes=num_classes,
        mean=mean,
        std=std,
    )


def _small(
    name: str,
    width: int,
    norm: LayerFn | None,
    conv_general_dilated: ConvolutionFn,
    *,
    num_classes: int,
    **facts: Any,
) -> Model:
    """Common part of both kinds."""
    if width < 1:
        raise ValueError(f"width must be at least 1, got {width}")
    conv = functools.partial(linen.Conv, conv_general_dilated=conv_general_dilated)
    return from_linen(
        SmallConvNet(num_classes, width, conv, norm),
        name=name if width == 32 else f"{name}{width}",
        num_classes=num_classes,
        **facts,
    )
