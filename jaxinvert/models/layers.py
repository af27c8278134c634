"""Layers shared by the networks: PyTorch-like initial distributions and BatchNorm with an explicit mode.

The difficulty of attacks on *untrained* networks depends on the initial distribution, so published numbers are only
comparable with the same one. Flax's defaults (LeCun normal, zero biases) are not used.
"""

import difflib
import functools
import math
from collections.abc import Callable, Iterable
from typing import Any

import jax.numpy as jnp
from flax import linen
from jax.typing import DTypeLike

from jaxinvert.nn import draws
from jaxinvert.types import Array, Key, Shape

ConvolutionFn = Callable[..., Array]
"""Anything with the signature of `jax.lax.conv_general_dilated`."""
LayerFn = Callable[..., Any]
"""Constructs a Flax layer: a module class with some of its fields set."""


def uniform(bound: float) -> Callable[..., Array]:
    """Initializer U(-bound, bound)."""

    def init(key: Key, shape: Shape, dtype: DTypeLike = jnp.float32) -> Array:
        return draws.uniform(key, shape, dtype, minval=-bound, maxval=bound)

    return init


def conv_like_torch(conv: LayerFn, features: int, kernel_size: tuple[int, int], in_channels: int, **options) -> Any:
    """A convolution with bias and PyTorch's default initialization: kernel and bias U(-1, 1) / sqrt(fan_in).

    PyTorch calls it Kaiming uniform with a = sqrt(5); `fan_in = in_channels * kernel height * kernel width`.
    """
    init = uniform(1 / math.sqrt(in_channels * math.prod(kernel_size)))
    return conv(features, kernel_size, kernel_init=init, bias_init=init, **options)


def dense_like_torch(features: int, in_features: int, *, name: str, use_bias: bool = True) -> linen.Dense:
    """A dense layer with PyTorch's default initialization: kernel and bias U(-1, 1) / sqrt(in_features)."""
    init = uniform(1 / math.sqrt(in_features))
    return linen.Dense(features, use_bias=use_bias, kernel_init=init, bias_init=init, name=name)


BATCH_NORM_MOMENTUM = 0.9
"""Share of the old value in running statistics; PyTorch calls this 0.1."""


def batch_norm_layer(mode: str) -> LayerFn:
    """BatchNorm in one of two modes, with PyTorch's momentum and epsilon.

    The mode is an important assumption of gradient inversion, often left unstated: a client in "eval" mode is far
    easier to attack; in "train" mode the examples of a batch share statistics that the attacker does not know.

    Args:
      mode: "eval" uses the running statistics in `batch_stats`, "train" those of the batch itself.

    Returns:
      A layer function that needs only `name`.

    Raises:
      ValueError: for any other mode.
    """
    if mode not in ("eval", "train"):
        raise unknown_value("batch_norm", mode, ("eval", "train"))
    return functools.partial(
        linen.BatchNorm,
        use_running_average=mode == "eval",
        momentum=BATCH_NORM_MOMENTUM,
        epsilon=1e-5,
        # E[x^2] - E[x]^2 cancels in float32 and is clipped at zero, where derivatives vanish; attacks need two.
        use_fast_variance=False,
    )


def unknown_value(what: str, value: object, known: Iterable[str]) -> ValueError:
    """The error for a value outside a known set: names the value, the set and the closest member."""
    known = sorted(known)
    closest = difflib.get_close_matches(str(value), known, n=1, cutoff=0.0)
    hint = f"; did you mean {closest[0]!r}?" if closest else ""
    return ValueError(f"unknown {what} {value!r}; known: {', '.join(known) or 'none'}{hint}")
