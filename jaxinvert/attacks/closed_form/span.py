"""Which candidates a layer has read: those in the column span of its gradient.

For `Y = H W + b` and rows `h_i` of `H`, whatever stands behind,

    [dL/dW; dL/db] = sum_i (h_i, 1) (dL/dy_i)^T,

whose columns are combinations of the vectors `(h_i, 1)`. Where these are fewer than the width, and the `dL/dy_i`
linearly independent, they span the columns, and another vector lies there only by chance (Petrov et al. 2024, the
span check of DAGER; the bias's row is an addition). Layers that read the same `H` put their gradients side by side:
self-attention's three say more than the query's alone, whose gradient is zero at the first position of a decoder,
which sees nothing but itself.

| candidates in the span        | what that says                                                                   |
|-------------------------------|----------------------------------------------------------------------------------|
| as many as the rank, or fewer | these and no others, but for vectors with dependent gradients, which are missed |
| more than the rank            | some are combinations of others: `AMBIGUOUS`                                     |
| all                           | the span is full, of at least as many vectors as dimensions: `SPAN_FULL`         |

This is for float64 (`precision.in_float64`), whatever the gradient's own resolution, which sets the tolerances.

References:
  Petrov, Dimitrov, Baader, Mueller, Vechev: DAGER: Exact Gradient Inversion for Large Language Models. NeurIPS 2024,
  arXiv:2405.15586.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax.numpy as jnp

from jaxinvert.attacks.closed_form.certificate import Status, first_doubt
from jaxinvert.types import Array, Scalar


class Tolerances(NamedTuple):
    """What counts as zero.

    Attributes:
      rank: a singular value of the gradient, over the largest.
      distance: a candidate's distance from the span, over its length.
    """

    rank: Scalar
    distance: Scalar


class Span(NamedTuple):
    """The column span of a gradient.

    Attributes:
      basis: `[D, min(D, units)]` orthonormal columns, those beyond the rank zero.
      rank: `[]` int32.
      finite: `[]` bool, whether the gradient is; the span of one that is not is empty.
    """

    basis: Array
    rank: Array
    finite: Array


def tolerances(resolution: float) -> Tolerances:
    """Those for a gradient of this resolution (`jnp.finfo(dtype).eps`), that of the client, not of the decomposition.

    Rounding leaves singular values of about a resolution where there should be none, and turns the directions of
    those that are 1e-3 of the largest by a thousand resolutions.
    """
    return Tolerances(rank=30 * resolution, distance=max(100 * resolution, 1e-10))


def read_gradient(gradients: Mapping[str, Array], layers: Sequence[str]) -> Array:
    """Gradients of biased dense layers that read the same, side by side, `[features + 1, units of all]`.

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
    """The span of a gradient `[D, units]`, of the singular vectors above the tolerance; float64."""
    finite = jnp.all(jnp.isfinite(gradient))
    basis, sizes, _ = jnp.linalg.svd(jnp.where(finite, gradient, 0.0), full_matrices=False)
    inside = sizes > tolerance * sizes[0]
    return Span(jnp.where(inside[None], basis, 0.0), jnp.sum(inside).astype(jnp.int32), finite)


def distances(span: Span, candidates: Array) -> Array:
    """How far candidates `[..., D - 1]`, and a 1 for the bias, lie from a span, over their length: `[...]`."""
    rows = jnp.concatenate([candidates, jnp.ones_like(candidates[..., :1])], axis=-1)
    rows = rows / jnp.linalg.norm(rows, axis=-1, keepdims=True)
    return jnp.linalg.norm(rows - (rows @ span.basis) @ span.basis.T, axis=-1)


def doubt(span: Span, full: Array) -> Array:
    """The `Status` on a span itself, `CERTIFIED` if nothing speaks against reading it: `[]` int32.

    Args:
      span: of the gradient.
      full: `[]` bool, whether it holds everything.
    """
    return first_doubt({Status.NOT_FINITE: ~span.finite, Status.ZERO: span.rank == 0, Status.SPAN_FULL: full})
