"""Lowerings of the three convolution primitives: XLA convolution, GEMM over patches, Winograd, or shifted products.

All take operands in the layout of `Geometry`:

* `xla_*`: one convolution, in the only order of axes (`N...C`, `...IO`) for which XLA:CPU always uses its fast
  kernels; other orders, such as `lax`'s own transposes, run as a naive loop inside a `while` (25 to 100 times slower
  on jax 0.10). Lanes with different kernels become a grouped convolution.
* `gemm_*`: one matrix product per lane over *patches*, the `K` stacked shifted copies of the inputs.
* Winograd's F(2x2, 3x3): fewer multiplications, for 3 x 3 kernels with many channels at stride 1.
* `depthwise`: sums of shifted elementwise products, for many lanes with one or two channels and features each.

On CPU, Winograd and shifted products are used where they apply; else GEMM for kernel gradients, for kernels that
differ per lane, for small images with few channels and for input transposes with fewer positions than features; else
one convolution. Other backends use `xla_*`.
"""

import contextlib
import contextvars
import functools
import math
from collections.abc import Iterator

import jax
import jax.numpy as jnp
from jax import lax

from jaxinvert.nn import depthwise, strides, winograd
from jaxinvert.nn.geometry import Geometry
from jaxinvert.types import Array

# Winograd expands every kernel to 16 / 9 of its size and every image to 4 times its size. Below these sizes the
# matrix products are too small to make up for that (measured on two Zen 5 cores).
_MIN_CHANNELS = 32
_MIN_TILES = 32

# The lanes are what shifted products are vectorized over: below, or with more channels or features, GEMM is faster.
_MIN_DEPTHWISE_LANES = 8
_MAX_DEPTHWISE_CHANNELS = 2

# With so few channels in the result, and patches that fit the cache, XLA:CPU's convolution takes up to three times as
# long as GEMM, whose patches the kernel gradient shares: it packs channels one by one unless eight divide them. With
# more channels or larger patches it is up to three times as fast (both measured on two AVX2 cores).
_MOST_NARROW_CHANNELS = 16
_MOST_NARROW_PATCHES = 2**16

_COMPILE_FAST = contextvars.ContextVar("compile_fast", default=False)


@contextlib.contextmanager
def compile_fast() -> Iterator[None]:
    """Programs lowered inside do without Winograd: a deep network compiles in two thirds of the time.

    For programs that take a few dozen steps, where the steps saved do not pay for the longer compilation.
    """
    before = _COMPILE_FAST.set(True)
    try:
        yield
    finally:
        _COMPILE_FAST.reset(before)


def cpu_convolve(x: Array, w: Array, *, geometry: Geometry) -> Array:
    """Computes the outputs from inputs `x` and kernels `w`."""
    if _is_winograd(geometry, x, *w.shape[-2:]):
        products = _matmul(winograd.lift_inputs(x, geometry), winograd.lift_kernels(w), (2, 1), geometry)
        return winograd.unlift_outputs(products, geometry, x.shape[0])
    if _is_depthwise(x.shape[0], *w.shape[-2:]):
        return depthwise.convolve(x, w, geometry=geometry)
    by_gemm = x.shape[0] > 1 or _is_narrow(geometry, x, w.shape[-1])
    return (gemm_convolve if by_gemm else xla_convolve)(x, w, geometry=geometry)


def cpu_input_transpose(y: Array, w: Array, *, geometry: Geometry) -> Array:
    """Computes inputs from outputs `y`: the transpose of `cpu_convolve` in its inputs."""
    if _is_winograd(geometry, y, *w.shape[-2:]):
        products = _matmul(winograd.lift_outputs(y, geometry), winograd.lift_kernels(w), (2, 2), geometry)
        return winograd.unlift_inputs(products, geometry, y.shape[0])
    if _is_depthwise(y.shape[0], *w.shape[-2:]):
        return depthwise.input_transpose(y, w, geometry=geometry)
    if strides.is_foldable(geometry):
        without_strides = strides.folded(geometry).transposed
        if _is_narrow(without_strides, y, w.shape[-2]):
            flipped = _flipped(strides.fold_kernels(w, geometry))
            return strides.unfold_inputs(gemm_convolve(y, flipped, geometry=without_strides), geometry)
    # A convolution needs flipped and transposed kernels, which does not pay off for few positions.
    num_positions = y.shape[1] * math.prod(geometry.output_shape)
    if y.shape[0] > 1 or num_positions < y.shape[-1]:
        return gemm_input_transpose(y, w, geometry=geometry)
    return xla_convolve(y, _flipped(w), geometry=geometry.transposed)


def cpu_kernel_gradient(x: Array, y: Array, *, geometry: Geometry) -> Array:
    """Computes kernels from inputs `x` and outputs `y`: the transpose of `cpu_convolve` in its kernels."""
    if _is_winograd(geometry, x, x.shape[-1], y.shape[-1]):
        lifted = winograd.lift_inputs(x, geometry), winograd.lift_outputs(y, geometry)
        return winograd.unlift_kernels(_matmul(*lifted, (1, 1), geometry), x.shape[0])
    if _is_depthwise(x.shape[0], x.shape[-1], y.shape[-1]):
        return depthwise.kernel_gradient(x, y, geometry=geometry)
    return gemm_kernel_gradient(x, y, geometry=geometry)


def xla_convolve(x: Array, w: Array, *, geometry: Geometry) -> Array:
    """`cpu_convolve` as one convolution, grouped if there are several lanes."""
    spatial = "".join(chr(ord("a") + axis) for axis in range(len(geometry.input_shape)))

    def one_lane(x: Array, w: Array) -> Array:
        return lax.conv_general_dilated(
            x,
            w,
            geometry.strides,
            geometry.padding,
            geometry.input_dilation,
            geometry.kernel_dilation,
            (f"N{spatial}C", f"{spatial}IO", f"N{spatial}C"),
            precision=geometry.precision,
        )

    return one_lane(x[0], w[0])[None] if x.shape[0] == 1 else jax.vmap(one_lane)(x, w)


def xla_input_transpose(y: Array, w: Array, *, geometry: Geometry) -> Array:
    """`cpu_input_transpose` as one convolution."""
    x = jax.ShapeDtypeStruct((*y.shape[:2], *geometry.input_shape, w.shape[-2]), y.dtype)
    return jax.linear_transpose(lambda x: xla_convolve(x, w, geometry=geometry), x)(y)[0]


def xla_kernel_gradient(x: Array, y: Array, *, geometry: Geometry) -> Array:
    """`cpu_kernel_gradient` as one convolution."""
    w = jax.ShapeDtypeStruct((x.shape[0], *geometry.kernel_shape, x.shape[-1], y.shape[-1]), x.dtype)
    return jax.linear_transpose(lambda w: xla_convolve(x, w, geometry=geometry), w)(y)[0]


def gemm_convolve(x: Array, w: Array, *, geometry: Geometry) -> Array:
    """`cpu_convolve` as one matrix product per lane."""
    patches = _patches(x, geometry)
    lanes, depth, features = patches.shape[0], patches.shape[1], w.shape[-1]
    kernels = jnp.swapaxes(w.reshape(lanes, depth, features), 1, 2)
    # There are few features and many positions here: with positions last, XLA:CPU multiplies four times faster.
    y = _gemm(kernels, patches.reshape(lanes, depth, -1), (2, 1), geometry)
    return jnp.moveaxis(y.reshape(lanes, features, *patches.shape[2:]), 1, -1)


def gemm_input_transpose(y: Array, w: Array, *, geometry: Geometry) -> Array:
    """`cpu_input_transpose` as one matrix product per lane; overlapping patches are summed."""
    lanes, features = y.shape[0], y.shape[-1]
    patches = _gemm(w.reshape(lanes, -1, features), y.reshape(lanes, -1, features), (2, 2), geometry)
    x = jax.ShapeDtypeStruct((*y.shape[:2], *geometry.input_shape, w.shape[-2]), y.dtype)
    gather = functools.partial(_patches, geometry=geometry)
    return jax.linear_transpose(gather, x)(patches.reshape(lanes, -1, *y.shape[1:-1]))[0]


def gemm_kernel_gradient(x: Array, y: Array, *, geometry: Geometry) -> Array:
    """`cpu_kernel_gradient` as one matrix product per lane."""
    patches = _patches(x, geometry)
    lanes, depth, features = patches.shape[0], patches.shape[1], y.shape[-1]
    w = _gemm(patches.reshape(lanes, depth, -1), y.reshape(lanes, -1, features), (2, 1), geometry)
    return w.reshape(lanes, *geometry.kernel_shape, x.shape[-1], features)


def _patches(x: Array, geometry: Geometry) -> Array:
    """`[G, K * C, N, *output_shape]`: the inputs of each output, for each kernel tap.

    Shifted along one spatial axis after the other: as many copies as taps along the axes, not `K`.
    """
    lanes, num_axes = x.shape[0], len(geometry.input_shape)
    pads = [(side.low, side.high, side.spread - 1) for side in geometry.axes]
    x = jnp.moveaxis(lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), (0, 0, 0), *pads, (0, 0, 0)]), -1, 1)
    for place, side in reversed(list(enumerate(geometry.axes))):
        axis, span = x.ndim - num_axes + place, (side.out - 1) * side.stride + 1
        starts = [tap * side.hole for tap in range(side.taps)]
        x = jnp.stack([lax.slice_in_dim(x, start, start + span, side.stride, axis) for start in starts], 1)
    return x.reshape(lanes, -1, *x.shape[2 + num_axes :])


def _is_winograd(geometry: Geometry, operand: Array, channels: int, features: int) -> bool:
    return (
        not _COMPILE_FAST.get()
        and geometry.kernel_shape == (3, 3)
        and geometry.strides == geometry.input_dilation == geometry.kernel_dilation == (1, 1)
        and min(channels, features) >= _MIN_CHANNELS
        and operand.shape[1] * geometry.num_tiles >= _MIN_TILES
        # Narrower floats would also round the lifted operands, not only the sums.
        and operand.dtype in (jnp.float32, jnp.float64)
    )


def _flipped(w: Array) -> Array:
    """The kernels of the input transpose as a convolution."""
    return lax.rev(jnp.swapaxes(w, -1, -2), tuple(range(1, w.ndim - 2)))


def _is_narrow(geometry: Geometry, operand: Array, result_channels: int) -> bool:
    """Whether GEMM over patches of `operand` is faster than XLA's convolution."""
    num_positions = operand.shape[1] * math.prod(geometry.output_shape)
    size = math.prod(geometry.kernel_shape) * operand.shape[-1] * num_positions
    return result_channels <= _MOST_NARROW_CHANNELS and size <= _MOST_NARROW_PATCHES


def _is_depthwise(num_lanes: int, channels: int, features: int) -> bool:
    return num_lanes >= _MIN_DEPTHWISE_LANES and max(channels, features) <= _MAX_DEPTHWISE_CHANNELS


def _matmul(
    left: winograd.Lifted, right: winograd.Lifted, contract: tuple[int, int], geometry: Geometry
) -> winograd.Lifted:
    return [_gemm(a, b, contract, geometry) for a, b in zip(left, right)]


def _gemm(a: Array, b: Array, contract: tuple[int, int], geometry: Geometry) -> Array:
    """Multiplies `[G, ., .]` by `[G, ., .]` per lane, contracting one axis of each; no batch axis for one lane."""
    axis_a, axis_b = contract
    if a.shape[0] == 1:
        dimensions = ((axis_a - 1,), (axis_b - 1,)), ((), ())
        return lax.dot_general(a[0], b[0], dimensions, precision=geometry.precision)[None]
    dimensions = ((axis_a,), (axis_b,)), ((0,), (0,))
    return lax.dot_general(a, b, dimensions, precision=geometry.precision)
