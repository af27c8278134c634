"""Rank analysis of an update: which closed-form attacks apply and how large the batch is at least, within seconds.

A dense layer's gradient is a sum of one outer product per example, so its rank is at most `B` and a lower bound on
the batch size. This does not hold for a transformer's layers except the head, whose inputs are several tokens per
example. No attack determines more unknowns (pixels of the batch) than there are equations (entries of the update).
Each closed form has further conditions, which the report lists.

References:
  Zhu, Blaschko: R-GAP: Recursive Gradient Attack on Privacy. ICLR 2021, arXiv:2010.07733: counting equations as a
  rank analysis of an architecture.
"""

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from jaxinvert.attacks.closed_form.april import VIT, check_attention, check_positions
from jaxinvert.attacks.closed_form.dense_chain import layers_in_order, read_chain
from jaxinvert.attacks.closed_form.first_layer import biased_dense_layers
from jaxinvert.trees import leaves_by_path
from jaxinvert.types import Observation, Shape, Update


class TensorRank(NamedTuple):
    """One tensor of an update as a matrix `[inputs, outputs]`.

    Attributes:
      name: path in the update.
      shape: shape of the matrix; a convolution's taps and channels are its inputs.
      rank: numerical rank; `None` if a value is not finite.
      is_dense: whether each example adds at most 1 to the rank; false for layers applied to every token.
    """

    name: str
    shape: tuple[int, int]
    rank: int | None
    is_dense: bool


class ClosedForm(NamedTuple):
    """Whether a closed-form attack applies: its registered name, and the reason in words."""

    attack: str
    applies: bool
    reason: str


class RankReport(NamedTuple):
    """Result of the rank analysis.

    Attributes:
      tensors: all matrices of the update.
      least_examples: the largest rank of a dense layer, a lower bound on the batch size.
      num_equations: number of finite, non-zero entries of the update.
      num_unknowns: pixels of the batch, times channels.
      closed_forms: one entry per closed-form attack.
    """

    tensors: tuple[TensorRank, ...]
    least_examples: int
    num_equations: int
    num_unknowns: int
    closed_forms: tuple[ClosedForm, ...]


def rank_report(update: Update, *, batch_shape: Shape) -> RankReport:
    """Analyzes one client's update; eager, in float64.

    Args:
      update: update of one client, not traced.
      batch_shape: `(B, H, W, C)` of its batch.
    """
    leaves = {name: np.asarray(leaf) for name, leaf in leaves_by_path(update).items()}
    tensors = tuple(
        TensorRank(name, matrix.shape, matrix_rank(matrix), leaf.ndim == 2 and _reads_one_vector(name, leaves))
        for name, leaf in leaves.items()
        if leaf.ndim >= 2
        for matrix in [leaf.reshape(-1, leaf.shape[-1])]
    )
    return RankReport(
        tensors,
        least_examples=max((tensor.rank or 0 for tensor in tensors if tensor.is_dense), default=0),
        num_equations=sum(int(np.count_nonzero(leaf[np.isfinite(leaf)])) for leaf in leaves.values()),
        num_unknowns=math.prod(batch_shape),
        closed_forms=_closed_forms(update, tensors, tuple(batch_shape)),
    )


def _reads_one_vector(name: str, leaves: Mapping[str, np.ndarray]) -> bool:
    """Whether a layer's input is one vector per example; in a transformer only the head's is."""
    is_transformer = VIT.positions in leaves or f"{VIT.attention}/query/kernel" in leaves
    return not is_transformer or name == f"{VIT.head}/kernel"


def matrix_rank(matrix: np.ndarray) -> int | None:
    """Number of singular values above 30 times the resolution of the largest; `None` if a value is not finite.

    Rounding of a float32 gradient turns zero singular values into values near 1e-8. A decomposition in float32 would
    make them larger, so it is computed in float64.
    """
    if not np.all(np.isfinite(matrix)):
        return None
    resolution = float(np.finfo(np.float32 if matrix.dtype.itemsize >= 4 else np.float16).eps)
    if matrix.dtype == np.float64:
        resolution = float(np.finfo(np.float64).eps) * max(matrix.shape)
    sizes = np.linalg.svd(matrix.astype(np.float64), compute_uv=False)
    return int(np.sum(sizes > 30 * resolution * sizes[0]))


class RankAboveNoise(NamedTuple):
    """Result of `rank_above_noise`: the rank, and the standard deviation of the noise."""

    rank: int
    noise: float


def rank_above_noise(matrix: np.ndarray) -> RankAboveNoise:
    """The rank of a matrix of low rank under Gaussian noise; eager, in float64.

    Noise of standard deviation `s` alone gives a matrix `[m, n]` no singular value above `s (sqrt(m) + sqrt(n))`
    (Marchenko and Pastur 1967; Bai and Yin 1993). The rank is the smallest one for which the remaining singular
    values stay below this edge, with `s` estimated from their own energy. It is the batch size for a dense layer's
    gradient, also after full-batch local steps, which add no inputs.

    Args:
      matrix: `[m, n]`.

    Returns:
      At most `matrix_rank`; rank 0 if a value is not finite.
    """
    most = matrix_rank(matrix)
    if most is None:
        return RankAboveNoise(0, math.nan)
    sizes = np.linalg.svd(matrix.astype(np.float64), compute_uv=False)
    energy = np.append(np.cumsum(sizes[::-1] ** 2)[::-1], 0.0)
    for rank in range(most + 1):
        rows, columns = (size - rank for size in matrix.shape)
        noise = math.sqrt(energy[rank] / max(1, rows * columns))
        if rank == most or sizes[rank] <= 1.05 * noise * (math.sqrt(rows) + math.sqrt(columns)):
            return RankAboveNoise(rank, noise)
    raise AssertionError("the last rank always fits")


def _closed_forms(
    update: Update, tensors: tuple[TensorRank, ...], batch_shape: tuple[int, ...]
) -> tuple[ClosedForm, ...]:
    batch_size, *image_shape = batch_shape
    dense = biased_dense_layers(update)
    per_example = {tensor.name for tensor in tensors if tensor.is_dense}
    readers = [
        name
        for name, shape in dense.items()
        if shape[0] == math.prod(image_shape) and f"{name}/kernel" in per_example
    ]
    num_convolutions = sum(leaf.ndim == 4 for leaf in leaves_by_path(update).values())
    through_convolutions = ClosedForm(
        "rgap",
        num_convolutions > 0 and batch_size == 1,
        "convolutions and one example: exact if their activations are invertible and the equations suffice"
        if num_convolutions and batch_size == 1
        else f"needs convolutions (this model has {num_convolutions}) and one example (this batch has {batch_size})",
    )
    through_layers = (
        _through_dense_layers(update, tensors, batch_size, math.prod(image_shape)),
        through_convolutions,
        *_from_positions(update, tensors, batch_size, tuple(image_shape)),
    )
    names = ("dense-layer", "spear", "exact-batch", "cocktail-party")
    if len(readers) != 1:
        reason = f"needs one biased dense layer that reads the images; this model has {len(readers)}"
        return (*(ClosedForm(name, False, reason) for name in names), *through_layers)
    (reader,) = readers
    (rank,) = (tensor.rank for tensor in tensors if tensor.name == f"{reader}/kernel")
    if not rank:
        reason = f"{reader} holds values that are not finite" if rank is None else f"the update of {reader} is zero"
        return (*(ClosedForm(name, False, reason) for name in names), *through_layers)
    num_units = dense[reader][1]
    full = rank == batch_size
    ranks = f"{reader} has rank {rank} for {batch_size} examples and {num_units} units"
    return (
        ClosedForm(
            "dense-layer",
            True,
            "exact: one example" if batch_size == 1 else "exact for examples that activate some unit alone",
        ),
        ClosedForm("spear", full and batch_size <= 14, f"{ranks}; exact with ReLU, for at most about 14 examples"),
        ClosedForm("exact-batch", full, f"{ranks}; exact with ReLU if there are several units per example"),
        ClosedForm("cocktail-party", full, f"{ranks}; approximate with any activation"),
        *through_layers,
    )


def _through_dense_layers(
    update: Update, tensors: tuple[TensorRank, ...], batch_size: int, num_features: int
) -> ClosedForm:
    """The closed form for perceptrons, whose first layer need not have a bias."""
    try:
        read_chain(Observation(update, update), layers_in_order(update, head=VIT.head), num_features=num_features)
    except ValueError as refusal:
        return ClosedForm("dense-chain", False, str(refusal))
    if unreadable := [tensor.name for tensor in tensors if not tensor.rank]:
        return ClosedForm("dense-chain", False, f"{unreadable} are zero, or hold values that are not finite")
    condition = "one example" if batch_size == 1 else "examples that activate some unit of a biased layer alone"
    return ClosedForm("dense-chain", True, f"exact with ReLU: {condition}")


def _from_positions(
    update: Update, tensors: tuple[TensorRank, ...], batch_size: int, image_shape: tuple[int, ...]
) -> tuple[ClosedForm, ClosedForm]:
    """The closed forms for a Vision Transformer, which require full rank of the position embeddings' gradient."""

    def closed_form(attack: str, check: Callable[..., None], condition: str) -> ClosedForm:
        try:
            check(update, image_shape, attack="it")
        except ValueError as refusal:
            return ClosedForm(attack, False, str(refusal))
        (positions,) = (tensor for tensor in tensors if tensor.name == VIT.positions)
        num_patches, ranks = positions.shape[0], f"{VIT.positions} has rank {positions.rank}"
        return ClosedForm(
            attack,
            batch_size == 1 and positions.rank == num_patches,
            f"{ranks} for {num_patches} patches and {batch_size} examples; {condition}",
        )

    return (
        closed_form("april", check_attention, "exact for one example without a skip around the first attention"),
        closed_form("patch-embedding", check_positions, "exact for one example"),
    )
