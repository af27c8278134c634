"""Winograd's minimal filtering F(2x2, 3x3), as a lowering of all three convolution primitives.

Two outputs of a 3-tap filter over 4 inputs are the trilinear form `sum_m (B x)_m (G w)_m (A y)_m` with 4
products `m` instead of 6 (S. Winograd, "Arithmetic Complexity of Computations", 1980; A. Lavin and S. Gray,
"Fast Algorithms for Convolutional Neural Networks", 2016, arXiv:1509.09308). Because it is trilinear, it applies to
all three primitives: *lift* the two given operands, multiply, and map the products back by the transpose of the third
map (*unlift*). In two dimensions this is 16 matrix products over channels per 2 x 2 tile of outputs, 2.25 times fewer
multiplications than the definition. XLA shares a lifted operand between primitives and orders of differentiation.

Rounding errors grow little, as all constants are 0, 1 and 1/2: about 5e-7 relative in float32 with 256 channels. A
non-finite input affects every output of its tile.

A lifted operand is a list of four arrays, one per row of the 4 x 4 products, each with the row's four products
stacked along the lanes. These operations are few and large, so XLA compiles them quickly and uses all cores.
"""

from collections.abc import Callable, Sequence

import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxinvert.nn.geometry import Geometry
from jaxinvert.types import Array

Line = Sequence[Array]
Lifted = list[Array]


def lift_inputs(x: Array, geometry: Geometry) -> Lifted:
    """`B x B^T` of each 4 x 4 window of inputs `[G, N, H, W, C]`: four arrays `[4 G, N * tiles, C]`."""
    pads, grid = [], []
    for axis in geometry.axes:
        tiles = -(-axis.out // 2)
        pads.append((axis.low, 2 * tiles + 2 - axis.size - axis.low, 0))
        grid.append([slice(offset, offset + 2 * tiles - 1, 2) for offset in range(4)])
    x = _pad(_materialize(x), pads)
    windows = [[x[:, :, rows, columns] for columns in grid[1]] for rows in grid[0]]
    return _stack_rows(_along_both(_b, windows))


def lift_kernels(w: Array) -> Lifted:
    """`G w G^T` of kernels `[G, 3, 3, C, O]`: four arrays `[4 G, C, O]`.

    Computed as matrix products over the nine taps: inputs and results have similar sizes, so memory bandwidth, not
    arithmetic, limits the speed.
    """
    taps = w.reshape(w.shape[0], 9, -1)
    rows = jnp.asarray(np.einsum("ai,bj->abij", _G, _G).reshape(4, 4, 9), w.dtype)
    contract_taps = ((1,), (1,)), ((), ())
    return [lax.dot_general(row, taps, contract_taps).reshape(-1, *w.shape[-2:]) for row in rows]


def lift_outputs(y: Array, geometry: Geometry) -> Lifted:
    """`A y A^T` of each 2 x 2 tile of outputs `[G, N, H, W, O]`: four arrays `[4 G, N * tiles, O]`."""
    y = _pad(_materialize(y), [(0, axis.out % 2, 0) for axis in geometry.axes])
    return _stack_rows(_along_both(_a, [[y[:, :, i::2, j::2] for j in range(2)] for i in range(2)]))


def unlift_inputs(products: Lifted, geometry: Geometry, num_lanes: int) -> Array:
    """The transpose of `lift_inputs`: overlapping windows are summed."""
    grid = _unstack_rows(products, geometry, num_lanes)
    x = _overlap_add(_b_transposed([_overlap_add(_b_transposed(row), 3) for row in grid]), 2)
    crops = [(-axis.low, axis.size + axis.low - size, 0) for axis, size in zip(geometry.axes, x.shape[2:])]
    return _pad(x, crops)


def unlift_kernels(products: Lifted, num_lanes: int) -> Array:
    """The transpose of `lift_kernels`."""
    grid = [_unstack(row, num_lanes) for row in products]
    return jnp.stack([jnp.stack(row, 1) for row in _along_both(_g_transposed, grid)], 1)


def unlift_outputs(products: Lifted, geometry: Geometry, num_lanes: int) -> Array:
    """The transpose of `lift_outputs`."""
    tile = _along_both(_a_transposed, _unstack_rows(products, geometry, num_lanes))
    y = _interleave([_interleave(row, 3) for row in tile], 2)
    return y[:, :, : geometry.output_shape[0], : geometry.output_shape[1]]


# The maps B, G and A of F(2, 3) and their transposes, along one axis.


def _b(x: Line) -> list[Array]:
    return [x[0] - x[2], x[1] + x[2], x[2] - x[1], x[1] - x[3]]


# The map `G` as a matrix.
_G = np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]])


def _a(y: Line) -> list[Array]:
    return [y[0], y[0] + y[1], y[0] - y[1], -y[1]]


def _b_transposed(m: Line) -> list[Array]:
    return [m[0], m[1] - m[2] + m[3], m[1] + m[2] - m[0], -m[3]]


def _g_transposed(m: Line) -> list[Array]:
    return [m[0] + (m[1] + m[2]) * 0.5, (m[1] - m[2]) * 0.5, (m[1] + m[2]) * 0.5 + m[3]]


def _a_transposed(m: Line) -> list[Array]:
    return [m[0] + m[1] + m[2], m[1] - m[2] - m[3]]


def _along_both(one: Callable[[Line], list[Array]], grid: Sequence[Line]) -> list[list[Array]]:
    """Applies a map to every row of a grid, then to every column."""
    columns = zip(*[one(row) for row in grid])
    return [list(row) for row in zip(*[one(column) for column in columns])]


def _stack_rows(grid: Sequence[Line]) -> Lifted:
    return [jnp.concatenate([part.reshape(part.shape[0], -1, part.shape[-1]) for part in row]) for row in grid]


def _unstack(row: Array, num_lanes: int) -> list[Array]:
    return [row[i * num_lanes : (i + 1) * num_lanes] for i in range(4)]


def _unstack_rows(products: Lifted, geometry: Geometry, num_lanes: int) -> list[list[Array]]:
    tiles = [-(-out // 2) for out in geometry.output_shape]
    shape = (num_lanes, -1, *tiles, products[0].shape[-1])
    return [[part.reshape(shape) for part in _unstack(row, num_lanes)] for row in products]


def _interleave(pair: Line, axis: int) -> Array:
    both = jnp.stack(pair, axis + 1)
    return both.reshape(*both.shape[:axis], -1, *both.shape[axis + 2 :])


def _overlap_add(parts: Line, axis: int) -> Array:
    """Adds windows of four at stride two along `axis`: the last two of each overlap the first two of the next."""

    def shifted(part: Array, step: int) -> Array:
        return lax.pad(
            part, jnp.zeros((), part.dtype), [(0, 0, 0)] * axis + [(step, 1 - step, 0)] + [(0, 0, 0)] * (4 - axis)
        )

    return _interleave([shifted(parts[i], 0) + shifted(parts[i + 2], 1) for i in range(2)], axis)


def _pad(array: Array, spatial: Sequence[tuple[int, int, int]]) -> Array:
    return lax.pad(array, jnp.zeros((), array.dtype), [(0, 0, 0), (0, 0, 0), *spatial, (0, 0, 0)])


def _materialize(array: Array) -> Array:
    """Returns `array` and forces XLA to write it to memory once before it is read.

    A lift reads each element up to 16 times. XLA:CPU would fuse it with the computation of the element and repeat
    that computation as often, which made a ResNet step four times slower. `lax.optimization_barrier` does not help:
    it is removed before XLA fuses. XLA does not fuse across a conditional, and cannot detect that both branches of
    this one return the same.
    """
    return lax.cond(array.reshape(-1)[0] < jnp.inf, lambda a: a, lambda a: a + 0, array)
