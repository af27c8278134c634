"""A MobileNet-like network: depthwise 3 x 3 and pointwise 1 x 1 convolutions in turn, with BatchNorm and ReLU.

Howard et al.: MobileNets: Efficient Convolutional Neural Networks for Mobile Vision Applications. 2017,
arXiv:1704.04861; fewer and narrower blocks, for small images.
"""

import functools
from collections.abc import Callable, Sequence

import jax.numpy as jnp
from flax import linen

from jaxinvert import models, nn
from jaxinvert.types import Array

BLOCKS = ((32, 64, 1), (64, 128, 2), (128, 128, 1), (128, 256, 2), (256, 256, 1))
"""Channels of the depthwise convolution, channels after the pointwise one, stride."""


class Mobile(linen.Module):
    """Stem, blocks, global mean, head."""

    num_classes: int
    blocks: tuple[tuple[int, int, int], ...]
    convolution: Callable[..., Array]

    @linen.compact
    def __call__(self, x: Array) -> Array:
        """Normalized inputs `[B, H, W, C]` to logits `[B, K]`."""
        conv = functools.partial(linen.Conv, use_bias=False, conv_general_dilated=self.convolution)
        norm = functools.partial(linen.BatchNorm, use_running_average=True, epsilon=1e-5, use_fast_variance=False)
        x = linen.relu(norm(name="stem_norm")(conv(self.blocks[0][0], (3, 3), padding=1, name="stem_conv")(x)))
        for i, (channels, width, stride) in enumerate(self.blocks):
            depthwise = conv(
                channels, (3, 3), strides=stride, padding=1, feature_group_count=channels, name=f"depthwise_{i}"
            )
            x = linen.relu(norm(name=f"depthwise_norm_{i}")(depthwise(x)))
            x = linen.relu(norm(name=f"norm_{i}")(conv(width, (1, 1), padding=0, name=f"pointwise_{i}")(x)))
        return linen.Dense(self.num_classes, name="head")(jnp.mean(x, axis=(1, 2)))


def mobile(
    *,
    input_shape: Sequence[int] = (32, 32, 3),
    num_classes: int = 10,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    blocks: tuple[tuple[int, int, int], ...] = BLOCKS,
    conv_general_dilated: Callable[..., Array] = nn.conv_general_dilated,
) -> models.Model:
    """The network with running statistics (BatchNorm in eval mode).

    Args:
      input_shape: `(H, W, C)` of one example.
      num_classes: `K`.
      mean: per-channel mean; `None` = no shift.
      std: per-channel standard deviation; `None` = no scale.
      blocks: see `BLOCKS`.
      conv_general_dilated: replaces the convolution, for example by `jax.lax.conv_general_dilated`.
    """
    return models.from_linen(
        Mobile(num_classes, blocks, conv_general_dilated),
        name="mobile",
        input_shape=input_shape,
        num_classes=num_classes,
        mean=mean,
        std=std,
    )
