"""Depthwise convolution, as a lowering of all three convolution primitives: sums of shifted elementwise products.

With few channels `C` and features `O` per lane, where lanes are the groups of a grouped convolution, there is nothing
to multiply as matrices. Over lanes `g`, positions `p` and kernel taps `t`,

    y_go(p) = sum_ti x_gi(p + t) w_gio(t)
    x_gi(p) = sum_to y_go(p - t) w_gio(t)
    w_gio(t) = sum_p x_gi(p + t) y_go(p)

with lanes as the last, contiguous axis of every array, along which XLA:CPU vectorizes. The first two compile to one
loop over the result. The sum over positions is a product with a row of ones: XLA:CPU's own reduction over leading
axes is up to twelve times slower.
"""

import functools
import itertools
import operator
from collections.abc import Sequence

import jax.numpy as jnp
from jax import lax

from jaxinvert.nn.geometry import Geometry
from jaxinvert.types import Array


def convolve(x: Array, w: Array, *, geometry: Geometry) -> Array:
    """Computes outputs `[G, N, *output_shape, O]` from inputs `[G, N, *input_shape, C]` and kernels."""
    shifted = [shifted_inputs(channel, geometry, axis=1) for channel in _lanes_last(x)]
    taps = jnp.moveaxis(w.reshape(w.shape[0], -1, *w.shape[-2:]), 0, -1)
    taps = jnp.expand_dims(taps, range(3, 3 + shifted[0][0].ndim - 1))
    return _lanes_first(
        [
            _sum([part[tap] * taps[tap, i, o] for i, part in enumerate(shifted) for tap in range(len(taps))])
            for o in range(w.shape[-1])
        ]
    )


def input_transpose(y: Array, w: Array, *, geometry: Geometry) -> Array:
    """Computes inputs from outputs: the transpose of `convolve` in its inputs, itself a convolution."""
    flipped = lax.rev(jnp.swapaxes(w, -1, -2), tuple(range(1, w.ndim - 2)))
    return convolve(y, flipped, geometry=geometry.transposed)


def kernel_gradient(x: Array, y: Array, *, geometry: Geometry) -> Array:
    """Computes kernels `[G, *kernel_shape, C, O]` from inputs and outputs: the transpose of `convolve` in them."""
    shifted = [shifted_inputs(channel, geometry, axis=1) for channel in _lanes_last(x)]
    outputs = _lanes_last(y)
    ones = jnp.ones((1, outputs[0].size // y.shape[0]), y.dtype)

    def over_positions(product: Array) -> Array:
        return lax.dot(ones, product.reshape(-1, y.shape[0]), precision=geometry.precision)[0]

    taps = [
        jnp.stack([jnp.stack([over_positions(part[tap] * output) for output in outputs], -1) for part in shifted], -2)
        for tap in range(len(shifted[0]))
    ]
    return jnp.stack(taps, 1).reshape(y.shape[0], *geometry.kernel_shape, x.shape[-1], y.shape[-1])


def shifted_inputs(x: Array, geometry: Geometry, *, axis: int) -> list[Array]:
    """For each kernel tap, the inputs that it multiplies: the spatial axes, from `axis` on, become `output_shape`."""
    before, after = [(0, 0, 0)] * axis, [(0, 0, 0)] * (x.ndim - axis - len(geometry.input_shape))
    pads = [(side.low, side.high, side.spread - 1) for side in geometry.axes]
    x = lax.pad(x, jnp.zeros((), x.dtype), [*before, *pads, *after])
    shifted = []
    for tap in itertools.product(*map(range, geometry.kernel_shape)):
        starts, stops, steps = [0] * x.ndim, list(x.shape), [1] * x.ndim
        for place, (index, side) in enumerate(zip(tap, geometry.axes), axis):
            starts[place], steps[place] = index * side.hole, side.stride
            stops[place] = starts[place] + (side.out - 1) * side.stride + 1
        shifted.append(lax.slice(x, starts, stops, steps))
    return shifted


def _lanes_last(operand: Array) -> list[Array]:
    """`[G, N, *spatial, C]` as `C` arrays `[N, *spatial, G]`."""
    return [jnp.moveaxis(operand[..., i], 0, -1) for i in range(operand.shape[-1])]


def _lanes_first(channels: Sequence[Array]) -> Array:
    """The inverse of `_lanes_last`."""
    return jnp.stack([jnp.moveaxis(channel, -1, 0) for channel in channels], -1)


def _sum(terms: Sequence[Array]) -> Array:
    return functools.reduce(operator.add, terms)
