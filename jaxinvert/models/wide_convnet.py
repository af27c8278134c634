"""A convnet with a wide hidden dense layer, as in VGG, whose gradient holds many mixtures of a batch's features."""

import functools
from collections.abc import Sequence

from flax import linen

from jaxinvert import nn
from jaxinvert.models.layers import ConvolutionFn, LayerFn, conv_like_torch, dense_like_torch
from jaxinvert.models.model import Model, from_linen
from jaxinvert.types import Array


class WideConvNet(linen.Module):
    """Two convolutions, the second with stride 2, a hidden layer `dense` on all features, and the head."""

    num_classes: int
    units: int
    channels: int
    conv: LayerFn

    @linen.compact
    def __call__(self, x: Array) -> Array:
        """Normalized inputs `[B, H, W, C]` to logits `[B, K]`."""
        for i, stride in enumerate((1, 2)):
            layer = conv_like_torch(
                self.conv, self.channels, (3, 3), x.shape[-1], padding=1, strides=stride, name=f"conv_{i}"
            )
            x = linen.relu(layer(x))
        x = x.reshape(x.shape[0], -1)
        x = linen.relu(dense_like_torch(self.units, x.shape[-1], name="dense")(x))
        return dense_like_torch(self.num_classes, x.shape[-1], name="head")(x)


def wide_convnet(
    *,
    units: int = 512,
    channels: int = 32,
    input_shape: Sequence[int] = (32, 32, 3),
    num_classes: int = 10,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    conv_general_dilated: ConvolutionFn = nn.conv_general_dilated,
) -> Model:
    """The convnet, with PyTorch's default initialization.

    Args:
      units: width of the hidden layer.
      channels: channels of every convolution.
      input_shape: `(H, W, C)` of one example.
      num_classes: `K`.
      mean: per-channel mean; `None` = no shift.
      std: per-channel standard deviation; `None` = no scale.
      conv_general_dilated: replaces the convolution, for example by `jax.lax.conv_general_dilated`.

    Returns:
      The model "wide-convnet", with the units appended unless they are 512, and the channels unless they are 32.

    Raises:
      ValueError: for fewer than one unit or channel.
    """
    if min(units, channels) < 1:
        raise ValueError(f"units and channels must be at least 1, got {units} and {channels}")
    conv = functools.partial(linen.Conv, conv_general_dilated=conv_general_dilated)
    name = "wide-convnet" if units == 512 else f"wide-convnet-{units}"
    return from_linen(
        WideConvNet(num_classes, units, channels, conv),
        name=name if channels == 32 else f"{name}-channels{channels}",
        input_shape=input_shape,
        num_classes=num_classes,
        mean=mean,
        std=std,
    )
