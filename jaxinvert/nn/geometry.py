"""`Geometry`, the static description of a convolution: sizes, strides, padding and dilation of its spatial axes."""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple


class _Axis(NamedTuple):
    size: int
    taps: int
    out: int
    stride: int
    low: int
    high: int
    spread: int
    hole: int


class Geometry(NamedTuple):
    """A convolution over `D` spatial axes, without its numbers of lanes, examples, channels and features.

    The three operands have a fixed layout, with `G` independent lanes first: inputs `x [G, N, *input_shape, C]`,
    kernels `w [G, *kernel_shape, C, O]`, outputs `y [G, N, *output_shape, O]`.

    Attributes:
      input_shape: `D` sizes, in pixels.
      kernel_shape: `D` numbers of kernel taps.
      output_shape: `D` sizes, in pixels.
      strides: `D` steps between windows, in (dilated) pixels.
      padding: `D` pairs (low, high) of zeros, which may be negative, as in `jax.lax.conv_general_dilated`.
      input_dilation: `D` steps between input pixels.
      kernel_dilation: `D` steps between kernel taps.
      precision: as in `jax.lax.conv_general_dilated`.
    """

    input_shape: tuple[int, ...]
    kernel_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    strides: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    input_dilation: tuple[int, ...]
    kernel_dilation: tuple[int, ...]
    precision: Any

    @property
    def axes(self) -> Iterator[_Axis]:
        """Iterates over the spatial axes."""
        for size, taps, out, stride, (low, high), spread, hole in zip(*self[:-1], strict=True):
            yield _Axis(size, taps, out, stride, low, high, spread, hole)

    @property
    def transposed(self) -> "Geometry":
        """The geometry of the input transpose, a convolution of the outputs with the flipped kernel."""
        padding = []
        for axis in self.axes:
            reach = (axis.taps - 1) * axis.hole
            low = reach - axis.low
            high = (axis.size - 1) * axis.spread - (axis.out - 1) * axis.stride + reach - low
            padding.append((low, high))
        return self._replace(
            input_shape=self.output_shape,
            output_shape=self.input_shape,
            strides=self.input_dilation,
            padding=tuple(padding),
            input_dilation=self.strides,
        )

    @property
    def num_tiles(self) -> int:
        """Number of tiles, of two outputs along each axis, that cover the outputs."""
        return math.prod(-(-out // 2) for out in self.output_shape)
