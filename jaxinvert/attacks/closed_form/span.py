"""The span check: a candidate was among a layer's inputs if it lies in the column span of the layer's gradient.

For `Y = H W + b` with rows `h_i` of `H`, and any network after it,

    [dL/dW; dL/db] = sum_i (h_i, 1) (dL/dy_i)^T,

whose columns are combinations of the vectors `(h_i, 1)`. If these are fewer than the width and the `dL/dy_i` are
linearly independent, they span the columns, and any other vector lies in the span only by chance (Petrov et al. 2024,
the span check of DAGER; the bias's row is an addition). Gradients of layers with the same `H` are concatenated:
query, key and value of self-attention give more than the query alone, whose gradient is zero at the first position of
a decoder, which attends only to itself.

| candidates in the span        | conclusion                                                                       |
|-------------------------------|----------------------------------------------------------------------------------|
| as many as the rank, or fewer | these are the inputs; inputs with linearly dependent gradients are missed        |
| more than the rank            | some are combinations of others: `AMBIGUOUS`                                     |
| all                           | at least as many inputs as dimensions, the span is full: `SPAN_FULL`             |

All functions need float64 (`precision.in_float64`); the gradient's own resolution only sets the tolerances.

References:
  Petrov, Dimitrov, Baader, Mueller, Vechev: DAGER: Exact Gradient Inversion for Large Language Models. NeurIPS 2024,
  arXiv:2405.15586.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

import jax.numpy as jnp

from jaxinvert.attacks.closed_form.certificate import Status, first_doubt
from jaxinvert.types import Array, Scalar


class Tolerances(NamedTuple):
    """Thresholds below which a value counts as zero.

    Attributes:
      rank: for a singular value of the gradient, relative to the largest.
      distance: for a candidate's distance from the span, relative to the candidate's norm.
    """

    rank: Scalar
    distance: Scalar


class Span(NamedTuple):
    """The column span of a gradient.

    Attributes:
      basis: `[D, min(D, units)]` orthonormal columns; columns beyond the rank are zero.
      rank: `[]` int32.
      finite: `[]` bool, whether the gradient is finite; if not, the span is empty.
    """

    basis: Array
    rank: Array
    finite: Array


class SpanLike(Protocol):
    """What `doubt` reads of a span."""

    @property
    def rank(self) -> Array:
        """`[]` int32."""
        ...

    @property
    def finite(self) -> Array:
        """`[]` bool."""
        ...


def tolerances(resolution: float) -> Tolerances:
    """Tolerances for a gradient computed by the client with this resolution (`jnp.finfo(dtype).eps`).

    Rounding turns zero singular values into values of about one resolution, and rotates the directions of singular
    values that are 1e-3 of the largest by a thousand resolutions.
    """
    return Tolerances(rank=30 * resolution, distance=max(100 * resolution, 1e-10))


def read_gradient(gradients: Mapping[str, Array], layers: Sequence[str]) -> Array:
    """Concatenates gradients of biased dense layers with the same inputs: `[features + 1, units of all]`.

    Args:
      gradients: leaves by path.
      layers: paths of the layers.

    Raises:
      ValueError: if a layer is missing.
    """
    paths = [f"{layer}/{leaf}" for layer in layers for leaf in ("kernel", "bias")]
    if missing := [path for path in paths if path not in gradients]:
        raise ValueError(f"the update lacks {missing}")
    return jnp.concatenate(
        [jnp.concatenate([gradients[f"{layer}/kernel"], gradients[f"{layer}/bias"][None]]) for layer in layers],
        axis=1,
    )


def column_span(gradient: Array, *, tolerance: Scalar) -> Span:
    """The span of a gradient `[D, units]`, from the singular vectors above the tolerance; float64."""
    finite = jnp.all(jnp.isfinite(gradient))
    basis, sizes, _ = jnp.linalg.svd(jnp.where(finite, gradient, 0.0), full_matrices=False)
    inside = sizes > tolerance * sizes[0]
    return Span(jnp.where(inside[None], basis, 0.0), jnp.sum(inside).astype(jnp.int32), finite)


def distances(span: Span, candidates: Array) -> Array:
    """Relative distance of candidates `[..., D - 1]`, extended by 1 for the bias, from a span: `[...]`."""
    return outside(span, jnp.concatenate([candidates, jnp.ones_like(candidates[..., :1])], axis=-1))


def outside(span: Span, rows: Array) -> Array:
    """Relative distance of vectors `[..., D]` from a span: `[...]`."""
    rows = rows / jnp.linalg.norm(rows, axis=-1, keepdims=True)
    return jnp.linalg.norm(rows - (rows @ span.basis) @ span.basis.T, axis=-1)


def doubt(span: SpanLike, full: Array) -> Array:
    """The `Status` on a span itself, `CERTIFIED` if nothing speaks against reading it: `[]` int32.

    Args:
      span: of the gradient, or another check with a rank.
      full: `[]` bool, whether it holds everything.
    """
    return first_doubt({Status.NOT_FINITE: ~span.finite, Status.ZERO: span.rank == 0, Status.SPAN_FULL: full})
