"""Checks of the tensors alone: what an attack by crafted parameters writes into them.

    bins        w_i = s_i h,  b_i = -s_i t_i: unit i fires if  h x > t_i, for many thresholds along one direction h
    trap        the positive entries of w_i are, up to a factor below 1 and the order, its negative ones
    one class   the head's columns are equal but for one class c:  |W_c - m|^2 / sum_j |W_j - m|^2, m the median class

Units of a layer of low rank, such as one that was compressed or has collapsed under weight decay, are almost
parallel, too: they differ along few directions, and are not counted as bins. Planted ones do not differ, or, by
camouflage, along as many directions as there are units.

References:
  Fowl, Geiping, Czaja, Goldblum, Goldstein: Robbing the Fed: Directly Obtaining Private Data in Federated
    Learning with Modified Models. ICLR 2022, arXiv:2110.13057: bins.
  Boenisch, Dziedzic, Schuster, Shamsabadi, Shumailov, Papernot: When the Curious Abandon Honesty: Federated
    Learning Is Not Private. EuroS&P 2023, arXiv:2112.02918: trap weights.
  Wen, Geiping, Fowl, Goldblum, Goldstein: Fishing for User Data in Large-Batch Federated Learning via
    Gradient Magnification. ICML 2022, arXiv:2202.00580: one class or feature.
"""

from typing import NamedTuple

import numpy as np

from jaxinvert.inspection.layers import Layer

_PARALLEL = 0.999
_EXACTLY = 1e-3
_LOW_RANK = 0.5
_MAX_COMPARED = 512
_LEAST_INPUTS = 5
_MAX_UNITS = 8192
_MAX_PROJECTED = 256
_HALVES_DIFFER = 5e-3
_TRAP_FACTOR = 0.999  # the halves of an odd filter, such as an edge detector's, are equal
_SAME_THRESHOLD = 1e-5


class Parallel(NamedTuple):
    """The largest group of units of a layer whose weights point along one line.

    Attributes:
      units: size of the group.
      share: of the layer's units that have weights at all.
      thresholds: how many different thresholds the group has; 0 without biases, and for a group as in a layer of low
        rank.
    """

    units: int
    share: float
    thresholds: int


def parallel_units(layer: Layer) -> Parallel | None:
    """The largest group of parallel units; `None` for convolutions, whose units see no whole image.

    Also `None` for fewer than 5 inputs, where parallel units are common by chance.
    Of more than 8,192 units, as many are compared, evenly spaced. Long rows are compared by a random projection.
    """
    rows, bias = layer.rows, layer.bias
    if not layer.is_dense or rows.shape[1] < _LEAST_INPUTS:
        return None
    rows, largest = _of_unit_size(rows)
    lengths = np.linalg.norm(rows, axis=1) * largest
    live = np.flatnonzero(lengths > 1e-6 * np.quantile(lengths, 0.9))  # one giant unit must not hide the others
    live = live[np.linspace(0, len(live) - 1, min(len(live), _MAX_UNITS)).astype(int)] if len(live) else live
    if len(live) < 2:
        return Parallel(len(live), 0.0, min(len(live), 1))
    directions = rows[live] / np.linalg.norm(rows[live], axis=1, keepdims=True)
    if rows.shape[1] > _MAX_PROJECTED and len(live) > _MAX_PROJECTED:
        projection = np.random.default_rng(0).normal(size=(rows.shape[1], _MAX_PROJECTED)).astype(np.float32)
        directions = directions @ projection
        directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    neighbors = np.concatenate([np.abs(some @ directions.T) >= _PARALLEL for some in _blocks(directions)])
    center = int(neighbors.sum(axis=1).argmax())
    group, distinct = live[neighbors[center]], 0
    signs = np.sign(directions[neighbors[center]] @ directions[center])
    if bias is not None and not _differ_along_few(
        rows[group] / (signs * np.linalg.norm(rows[group], axis=1))[:, None]
    ):
        thresholds = np.sort(-signs * bias[group] / lengths[group])
        sizes = np.maximum(np.abs(thresholds[1:]), np.abs(thresholds[:-1]))
        distinct = 1 + int(np.sum(np.diff(thresholds) > _SAME_THRESHOLD * sizes))
    return Parallel(len(group), len(group) / len(live), distinct)


def _differ_along_few(directions: np.ndarray) -> bool:
    """Whether almost parallel unit rows `[U, D]` differ along fewer than half as many directions as there are rows.

    How many is the participation ratio of the differences' squared singular values. Rows that do not differ but by
    rounding are as planted ones.
    """
    some = directions[np.linspace(0, len(directions) - 1, min(len(directions), _MAX_COMPARED)).astype(int)]
    differences = some.astype(np.float64) - some.mean(axis=0, dtype=np.float64, keepdims=True)
    if np.sqrt(np.square(differences).sum(axis=1).mean()) < _EXACTLY:
        return False
    gram = differences @ differences.T
    return bool(np.trace(gram) ** 2 < _LOW_RANK * (len(some) - 1) * np.sum(np.square(gram)))


def mirrored_share(layer: Layer) -> float | None:
    """Share of units whose positive weights are a multiple of their negative ones, in another order.

    `None` for fewer than 32 inputs.
    """
    if layer.rows.shape[1] < 32:
        return None
    ordered = np.sort(_of_unit_size(layer.rows)[0], axis=1)
    positive, negative = (ordered > 0).sum(axis=1), (ordered < 0).sum(axis=1)
    mirrored = 0
    for count in np.unique(positive[(positive == negative) & (positive >= 16)]):
        these = ordered[(positive == count) & (negative == count)]
        up, down = these[:, -count:], -these[:, :count][:, ::-1]
        factor = (up * down).sum(axis=1) / (down * down).sum(axis=1)
        rest = np.linalg.norm(up - factor[:, None] * down, axis=1) / np.linalg.norm(up, axis=1)
        # Of few different values, as in quantized networks, the halves are alike by chance.
        varied = np.array([len(np.unique(row)) for row in up]) > count // 2
        mirrored += int(np.sum((rest < _HALVES_DIFFER) & (factor < _TRAP_FACTOR) & varied))
    return mirrored / len(ordered)


def one_class_share(head: Layer) -> float | None:
    """The largest share of the head's weights that belongs to one class, about the median class; `None` below 4."""
    if len(head.rows) < 4:
        return None
    rows = head.rows.astype(np.float64)
    energy = np.sum(np.square(rows - np.median(rows, axis=0, keepdims=True)), axis=1)
    return float(energy.max() / energy.sum()) if energy.sum() > 0 else 0.0


def _of_unit_size(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows divided by their largest absolute value, and these in float64: no square overflows or vanishes."""
    largest = np.abs(rows).max(axis=1, initial=0.0)
    scaled = rows / np.where(largest > 0, largest, 1.0)[:, None]
    return scaled, largest.astype(np.float64)


def _blocks(rows: np.ndarray) -> list[np.ndarray]:
    return np.array_split(rows, max(1, len(rows) // 1024))
