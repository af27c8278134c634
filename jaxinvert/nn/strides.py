"""Input transposes of strided convolutions as those of convolutions without strides, for few channels.

Along an axis with stride `s`, a kernel tap is `t = s j + b` with a *phase* `b` in [0, s), and

    y(p) = sum_t x(s p + t) w(t) = sum_jb x'(p + j, b) w'(j, b),    x'(q, b) = x(s q + b),    w'(j, b) = w(s j + b)

is a convolution without strides whose channels are the phases of the channels. Its input transpose gives all phases
at once, and *unfolding* them only arranges elements anew. The input transpose of the strided convolution itself reads
outputs spread with zeros, `s` times as many along each axis. Kernels are padded with zeros to a multiple of `s` taps.
"""

import functools
import itertools
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxinvert.nn.geometry import Geometry
from jaxinvert.types import Array


class _Fold(NamedTuple):
    """One axis: kernel taps and phases after folding, and the padding of inputs to a multiple of the stride."""

    taps: int
    phases: int
    low: int
    high: int


def is_foldable(geometry: Geometry) -> bool:
    """Whether nothing is dilated."""
    return max(*geometry.input_dilation, *geometry.kernel_dilation) == 1


def folded(geometry: Geometry) -> Geometry:
    """The geometry of the convolution without strides."""
    folds, sizes, padding = list(_folds(geometry)), [], []
    for fold, axis in zip(folds, geometry.axes):
        sizes.append(axis.size if axis.stride == 1 else fold.taps + axis.out - 1)
        padding.append((axis.low, axis.high) if axis.stride == 1 else (0, 0))
    return geometry._replace(
        input_shape=tuple(sizes),
        kernel_shape=tuple(fold.taps for fold in folds),
        strides=(1,) * len(folds),
        padding=tuple(padding),
    )


def fold_kernels(w: Array, geometry: Geometry) -> Array:
    """Kernels `[G, *kernel_shape, C, O]` to `[G, *folded kernel_shape, phases * C, O]`."""
    folds = list(_folds(geometry))
    pads = [(0, fold.taps * fold.phases - taps, 0) for fold, taps in zip(folds, geometry.kernel_shape)]
    w = lax.pad(w, jnp.zeros((), w.dtype), [(0, 0, 0), *pads, (0, 0, 0), (0, 0, 0)])
    phases = [fold.phases for fold in folds]
    return _phases_last(w, 1, phases, phases)


def fold_inputs(x: Array, *, geometry: Geometry) -> Array:
    """Inputs `[G, N, *input_shape, C]` to `[G, N, *folded input_shape, phases * C]`."""
    folds = list(_folds(geometry))
    pads = [(fold.low, fold.high, 0) for fold in folds]
    x = lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), (0, 0, 0), *pads, (0, 0, 0)])
    return _phases_last(x, 2, geometry.strides, [fold.phases for fold in folds])


def unfold_inputs(x: Array, geometry: Geometry) -> Array:
    """The transpose of `fold_inputs`."""
    num_phases = math.prod(fold.phases for fold in _folds(geometry))
    inputs = jax.ShapeDtypeStruct((*x.shape[:2], *geometry.input_shape, x.shape[-1] // num_phases), x.dtype)
    return jax.linear_transpose(functools.partial(fold_inputs, geometry=geometry), inputs)(x)[0]


def _folds(geometry: Geometry) -> Iterator[_Fold]:
    for axis in geometry.axes:
        if axis.stride == 1:
            yield _Fold(axis.taps, 1, 0, 0)
            continue
        taps = -(-axis.taps // axis.stride)
        size = (taps + axis.out - 1) * axis.stride
        # A kernel smaller than the stride meets only as many phases as it has taps.
        yield _Fold(taps, min(axis.stride, axis.taps), axis.low, size - axis.size - axis.low)


def _phases_last(operand: Array, first: int, strides: Sequence[int], phases: Sequence[int]) -> Array:
    """Splits each spatial axis, from `first` on, into positions and phases, and merges the phases into channels."""
    rank = len(strides)
    before, after = operand.shape[:first], operand.shape[first + rank :]
    positions = [size // stride for size, stride in zip(operand.shape[first:], strides)]
    split = operand.reshape(*before, *itertools.chain(*zip(positions, strides)), *after)
    of_positions, of_phases = range(first, first + 2 * rank, 2), range(first + 1, first + 2 * rank, 2)
    for axis, count in zip(of_phases, phases):
        split = lax.slice_in_dim(split, 0, count, axis=axis)
    order = [*range(first), *of_positions, *of_phases, *range(first + 2 * rank, split.ndim)]
    return split.transpose(order).reshape(*before, *positions, -1, *after[1:])
