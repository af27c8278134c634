"""ConvNet of "Inverting Gradients": eight 3x3 convolutions with BatchNorm and ReLU, two max-pools, dense.

References:
  Geiping, Bauermeister, Droege, Moeller: Inverting Gradients - How easy is it to break privacy in federated
  learning? NeurIPS 2020, arXiv:2003.14053.
"""

import functools
from collections.abc import Sequence

from flax import linen

from jaxinvert import nn
from jaxinvert.models.layers import ConvolutionFn, LayerFn, batch_norm_layer, conv_like_torch, dense_like_torch
from jaxinvert.models.model import Model, from_linen
from jaxinvert.types import Array

_BEFORE_POOLS = ((1, 2, 2, 4, 4, 4), (4, 4))
"""Channels of the convolutions before each of the two pools, in units of the width."""


class ConvNet(linen.Module):
    """Convolutions w, 2w, 2w, 4w, 4w, 4w, pool, 4w, 4w, pool; 36w features for 32x32 inputs."""

    num_classes: int
    width: int
    conv: LayerFn
    norm: LayerFn

    @linen.compact
    def __call__(self, x: Array) -> Array:
        """Normalized inputs `[B, H, W, C]` to logits `[B, K]`."""
        i = 0
        for multiples in _BEFORE_POOLS:
            for multiple in multiples:
                x = conv_like_torch(
                    self.conv, multiple * self.width, (3, 3), x.shape[-1], padding=1, name=f"conv_{i}"
                )(x)
                x = linen.relu(self.norm(name=f"norm_{i}")(x))
                i += 1
            x = nn.max_pool(x, (3, 3), (3, 3), "VALID")
        x = x.reshape(x.shape[0], -1)
        return dense_like_torch(self.num_classes, x.shape[-1], name="head")(x)


def convnet(
    *,
    width: int = 64,
    input_shape: Sequence[int] = (32, 32, 3),
    num_classes: int = 10,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    batch_norm: str = "eval",
    conv_general_dilated: ConvolutionFn = nn.conv_general_dilated,
) -> Model:
    """ConvNet of any width (published: 64), with PyTorch's default initialization like the authors' program.

    Args:
      width: channels of the first convolution.
      input_shape: `(H, W, C)` of one example, H and W at least 9 (two pools by 3).
      num_classes: `K`.
      mean: per-channel mean; `None` = no shift.
      std: per-channel standard deviation; `None` = no scale.
      batch_norm: "eval" (running statistics) or "train" (the batch's own).
      conv_general_dilated: replaces the convolution, for example by `jax.lax.conv_general_dilated`.

    Returns:
      The model "convnet<width>".

    Raises:
      ValueError: for a width below 1, inputs below 9x9, or another `batch_norm`.
    """
    if width < 1:
        raise ValueError(f"width must be at least 1, got {width}")
    if min(input_shape[:2]) < 9:
        raise ValueError(f"convnet pools by 3 twice: inputs must be at least 9x9, got {tuple(input_shape)}")
    conv = functools.partial(linen.Conv, conv_general_dilated=conv_general_dilated)
    return from_linen(
        ConvNet(num_classes, width, conv, batch_norm_layer(batch_norm)),
        name=f"convnet{width}",
        input_shape=input_shape,
        num_classes=num_classes,
        mean=mean,
        std=std,
    )
