"""Max-pooling with a correct and fast second derivative."""

import functools
from collections.abc import Sequence

import jax.numpy as jnp
from jax import lax

from jaxinvert.types import Array


def max_pool(
    inputs: Array,
    window_shape: Sequence[int],
    strides: Sequence[int] | None = None,
    padding: str | Sequence[tuple[int, int]] = "VALID",
) -> Array:
    """`flax.linen.max_pool`, as maxima of shifted slices along one spatial axis after the other.

    Derivatives of all orders are selections among slices, which XLA fuses. The second derivative of
    `lax.reduce_window` is a window reduction over indices and a gather (four to ten times slower on CPU). As in
    `flax`, the gradient of equal values goes to the first of the window in row-major order, and NaN propagates.

    Args:
      inputs: `[..., *spatial, C]` floats, `D = len(window_shape)` spatial axes.
      window_shape: `D` window sizes, in pixels.
      strides: `D` steps between windows, in pixels; by default 1.
      padding: `"SAME"`, `"VALID"` or `D` pairs (low, high), in pixels; padding is never the maximum.

    Returns:
      `[..., *pooled, C]` the largest value of each window.

    Raises:
      ValueError: if `strides` or `padding` do not have one entry per window axis, or `inputs` has too few axes.
    """
    window_shape = tuple(window_shape)
    strides = tuple(strides) if strides else (1,) * len(window_shape)
    first = inputs.ndim - 1 - len(window_shape)
    if first < 0:
        raise ValueError(f"inputs {inputs.shape} have no {len(window_shape)} spatial axes and a channel axis")
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(inputs.shape[first:-1], window_shape, strides, padding)
    if not len(window_shape) == len(strides) == len(padding):
        raise ValueError(
            f"expected one stride and one padding pair per axis of window {window_shape}, "
            f"got strides {strides} and padding {padding}"
        )
    if any(low or high for low, high in padding):
        wide = [(0, 0, 0)] * first + [(low, high, 0) for low, high in padding] + [(0, 0, 0)]
        inputs = lax.pad(inputs, jnp.array(-jnp.inf, inputs.dtype), wide)
    # The last axis first: ties are then broken as in a row-major scan of the window.
    for axis, size, stride in reversed(list(zip(range(first, inputs.ndim), window_shape, strides))):
        span = (inputs.shape[axis] - size) // stride * stride + 1
        slices = [lax.slice_in_dim(inputs, i, i + span, stride, axis) for i in range(size)]
        inputs = functools.reduce(_larger, slices)
    return inputs


def _larger(a: Array, b: Array) -> Array:
    return jnp.where((a >= b) | jnp.isnan(a), a, b)
