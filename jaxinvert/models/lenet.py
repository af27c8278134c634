"""LeNet of the DLG paper: three convolutions with sigmoid and a dense layer, all parameters from U(-1/2, 1/2).

It uses sigmoid, and strides instead of pooling, because DLG's L-BFGS needs a network that is twice differentiable
everywhere.

References:
  Zhu, Liu, Han: Deep Leakage from Gradients. NeurIPS 2019, arXiv:1906.08935.
"""

import functools
from collections.abc import Sequence

from flax import linen

from jaxinvert import nn
from jaxinvert.models.layers import ConvolutionFn, LayerFn, uniform
from jaxinvert.models.model import Model, from_linen
from jaxinvert.types import Array


class LeNet(linen.Module):
    """Convolutions 5x5 with 12 channels, padding 2 and strides 2, 2, 1; 768 features for 32x32 inputs."""

    num_classes: int
    conv: LayerFn

    @linen.compact
    def __call__(self, x: Array) -> Array:
        """Normalized inputs `[B, H, W, C]` to logits `[B, K]`."""
        init = uniform(0.5)
        conv = functools.partial(self.conv, kernel_init=init, bias_init=init)
        for i, stride in enumerate((2, 2, 1)):
            x = linen.sigmoid(conv(12, (5, 5), strides=stride, padding=2, name=f"conv_{i}")(x))
        x = x.reshape(x.shape[0], -1)
        return linen.Dense(self.num_classes, kernel_init=init, bias_init=init, name="head")(x)


def lenet(
    *,
    input_shape: Sequence[int] = (32, 32, 3),
    num_classes: int = 10,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    conv_general_dilated: ConvolutionFn = nn.conv_general_dilated,
) -> Model:
    """The DLG paper's LeNet.

    DLG uses pixels in [0, 1] without normalization (the default); "Inverting Gradients" uses normalized data: pass
    the data set's `mean` and `std` for that.

    Args:
      input_shape: `(H, W, C)` of one example.
      num_classes: `K`.
      mean: per-channel mean; `None` = no shift.
      std: per-channel standard deviation; `None` = no scale.
      conv_general_dilated: replaces the convolution, for example by `jax.lax.conv_general_dilated`.

    Returns:
      The model "lenet".
    """
    conv = functools.partial(linen.Conv, conv_general_dilated=conv_general_dilated)
    return from_linen(
        LeNet(num_classes, conv),
        name="lenet",
        input_shape=input_shape,
        num_classes=num_classes,
        mean=mean,
        std=std,
    )
