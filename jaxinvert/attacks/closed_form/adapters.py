"""What the updates of low-rank adapters (LoRA, `models.lora`) tell of a layer's inputs: span checks of both factors.

For `h = x (W + s A B)` with rows `x_i` of the inputs and `D = dL/dh`,

    dL/dA = s x^T (D B^T) [inputs, r],    dL/dB = s (x A)^T D [r, units]:

the columns of the first lie in the span of the inputs, those of the second in the span of the projections `x_i A`.
Adapters of layers with the same inputs (query, key and value) are read together, `m` of them:

| update                      | conclusion                                                                        |
|-----------------------------|-----------------------------------------------------------------------------------|
| `dL/dA` of rank below `m r` | its columns are the whole span of the inputs: the span check is exact             |
| `dL/dA` of rank `m r`       | at least `m r` distinct inputs; if there are more, none of them lies in the span  |
| `dL/dA` zero                | `B` is zero, as in the first round: it tells nothing                              |
| `dL/dB` of rank below `r`   | a vector whose projection is outside of its span was no input                     |
| `dL/dB` of rank `r`         | at least `r` distinct inputs: it excludes nothing                                 |

So adapters of rank `r` give away at most `m r` distinct inputs in closed form, and `r - 1` in the first round.

The head is frozen, so labels are not in its gradient. The update is linear in `dL/dF [B, n, d]`, the gradient at the
head's inputs: least squares determine it, and the column of the head that it lacks is the label's.

References:
  Hu, Shen, Wallis, Allen-Zhu, Li, Wang, Wang, Chen: LoRA: Low-Rank Adaptation of Large Language Models. ICLR 2022,
  arXiv:2106.09685.
  Petrov, Dimitrov, Baader, Mueller, Vechev: DAGER: Exact Gradient Inversion for Large Language Models. NeurIPS 2024,
  arXiv:2405.15586: the span check. The projected check and the labels are not in the paper.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxinvert.attacks.closed_form import span as spans
from jaxinvert.attacks.closed_form.april import PROJECTIONS
from jaxinvert.attacks.closed_form.rank import matrix_rank
from jaxinvert.models.lora import A, B
from jaxinvert.models.text_transformer import TextModel
from jaxinvert.trees import leaves_by_path
from jaxinvert.types import Array, Params, Update

MOST_UNKNOWNS = 1024
"""Entries of the gradient at the head's inputs beyond which labels are not solved for: a matrix of their square."""


_BY_CHANCE, _FARTHEST = 1e-5, 0.01


class InputCheck(NamedTuple):
    """A check whether vectors were among a layer's inputs.

    Attributes:
      distances: relative distance of candidates `[..., inputs]` from what the update allows, `[...]`, in units of
        which the tolerance of the span checks is the largest of an input.
      rank: `[]` int32, a lower bound on the number of distinct inputs.
      finite: `[]` bool, whether the update is finite.
      saturated: `[]` bool, whether there may be more inputs than the check can hold, none of which it then finds.
    """

    distances: Callable[[Array], Array]
    rank: Array
    finite: Array
    saturated: Array


def adapters_in(leaves: Mapping[str, object], layers: Sequence[str]) -> list[str]:
    """Those of the layers that have adapters."""
    return [layer for layer in layers if f"{layer}/{A}" in leaves]


def adapter_check(
    gradients: Mapping[str, Array], params: Mapping[str, Array], layers: Sequence[str], limits: spans.Tolerances
) -> InputCheck:
    """The check by the adapters of layers with the same inputs; float64.

    Args:
      gradients: leaves of the update by path.
      params: leaves of the parameters by path.
      layers: paths of the layers, all with adapters.
      limits: of the span checks.
    """
    first = jnp.concatenate([_of_unit_norm(gradients[f"{layer}/{A}"]) for layer in layers], axis=1)
    inputs = spans.column_span(first, tolerance=limits.rank)
    projections = [spans.column_span(gradients[f"{layer}/{B}"], tolerance=limits.rank) for layer in layers]
    finite = inputs.finite
    for projection in projections:
        finite &= projection.finite

    ranks = jnp.stack([projection.rank for projection in projections])

    def distances(candidates: Array) -> Array:
        farthest = jnp.where(inputs.rank > 0, spans.outside(inputs, candidates) / _slack(inputs, first, limits), 0.0)
        for layer, projection in zip(layers, projections):
            projected = candidates @ params[f"{layer}/{A}"]
            # A lower rank than another's lacks inputs: a decoder's first position sends no gradient to its query.
            excludes = (projection.rank < projected.shape[-1]) & (projection.rank == jnp.max(ranks))
            distance = spans.outside(projection, projected) / _slack(projection, gradients[f"{layer}/{B}"], limits)
            farthest = jnp.maximum(farthest, jnp.where(excludes, distance, 0.0))
        return farthest

    return InputCheck(distances, jnp.maximum(inputs.rank, jnp.max(ranks)), finite, inputs.rank == min(first.shape))


def _slack(span: spans.Span, gradient: Array, limits: spans.Tolerances) -> Array:
    """How many times the tolerance an input may be outside of a span, at least 1: `[]`.

    Rounding rotates the direction of the smallest singular value by the resolution over that value, which is tiny for
    narrow adapters. No more is allowed than what accepts a random vector with probability `_BY_CHANCE`.
    """
    sizes = jnp.linalg.norm(gradient.T @ span.basis, axis=0)
    smallest = jnp.min(jnp.where(jnp.arange(len(sizes)) < span.rank, sizes, jnp.inf)) / jnp.max(sizes)
    by_rounding = limits.rank / 30 / smallest
    dimensions = jnp.maximum(len(span.basis) - span.rank, 1)
    allowed = jnp.minimum(jnp.minimum(by_rounding, _BY_CHANCE ** (1 / dimensions)), _FARTHEST)
    return jnp.maximum(jnp.where(jnp.isfinite(allowed), allowed, 0.0) / limits.distance, 1.0)


def _of_unit_norm(gradient: Array) -> Array:
    """Scaled to norm 1: adapters of different layers differ in scale by orders of magnitude."""
    norm = jnp.linalg.norm(gradient)
    return gradient / jnp.where(norm > 0, norm, 1.0)


def labels_by_features(model: TextModel, params: Params, update: Update, tokens: Array) -> Array | None:
    """Labels `[B, n]` or `[B]` int32 of sequences with a frozen head; `None` if there are too many unknowns.

    Args:
      model: the clients' transformer, whose head is `[d, V]` with a bias.
      params: the parameters.
      update: of adapters.
      tokens: `[B, n]`, assumed to be right.
    """
    features, pull = jax.vjp(lambda tree: model.features(tree, tokens), params)
    if features.size > MOST_UNKNOWNS:
        return None
    names = [name for name in leaves_by_path(update) if name.endswith((f"/{A}", f"/{B}"))]

    def flat(tree: Update) -> Array:
        leaves = leaves_by_path(tree)
        return jnp.concatenate([leaves[name].ravel() for name in names])

    width = features.shape[-1]
    equations = jax.vmap(lambda cotangent: flat(pull(cotangent)[0]))(
        jnp.eye(features.size, dtype=features.dtype).reshape(-1, *features.shape)
    )
    observed = flat(update)
    gram = equations @ equations.T
    sent = equations @ jnp.where(jnp.isfinite(observed), observed, 0.0)
    at_features = (jnp.linalg.pinv(gram, rtol=1e-11, hermitian=True) @ sent).reshape(-1, width)
    # A norm before the head hides some directions of every row: they are left out of the comparison.
    num_rows = len(at_features)
    blocks = gram.reshape(num_rows, width, num_rows, width)[jnp.arange(num_rows), :, jnp.arange(num_rows)]
    sizes, directions = jnp.linalg.eigh(blocks)
    seen = directions * (sizes > 1e-9 * sizes[:, -1:])[:, None]
    kernel = leaves_by_path(params)[f"{model.head}/kernel"]
    expected = jax.nn.softmax(model.apply(params, tokens)).reshape(num_rows, -1) @ kernel.T
    missing = jnp.einsum("rd,rdk->rk", expected - num_rows * at_features, seen)
    columns = jnp.einsum("dv,rdk->rvk", kernel, seen)
    distances = jnp.linalg.norm(columns - missing[:, None], axis=-1)
    return lax.argmin(distances.astype(jnp.float32), 1, jnp.int32).reshape(features.shape[:-1])


class AdapterRank(NamedTuple):
    """Ranks of the adapters of layers with the same inputs, and what follows.

    Attributes:
      layer: path of the layers' parent, or of the only layer.
      names: names of the layers below it; empty for one layer.
      rank: `r` of the adapters.
      rank_a: rank of all `dL/dA` together; `None` if a value is not finite.
      columns: the largest rank that is possible.
      rank_b: the largest rank of a `dL/dB`; `None` if a value is not finite.
      least_inputs: lower bound on the number of distinct inputs.
      is_exact: whether span checks tell inputs from other vectors.
      words: the conclusion.
    """

    layer: str
    names: tuple[str, ...]
    rank: int
    rank_a: int | None
    columns: int
    rank_b: int | None
    least_inputs: int
    is_exact: bool
    words: str


def adapter_ranks(update: Update) -> tuple[AdapterRank, ...]:
    """The adapters in one client's update, grouped by common inputs; eager, in float64. Empty without adapters."""
    leaves = {name: np.asarray(leaf) for name, leaf in leaves_by_path(update).items()}
    groups: dict[str, list[str]] = {}
    for layer in (name.removesuffix(f"/{A}") for name in leaves if name.endswith(f"/{A}")):
        parent, _, name = layer.rpartition("/")
        groups.setdefault(parent if name in PROJECTIONS else layer, []).append(layer)
    return tuple(_adapter_rank(group, layers, leaves) for group, layers in groups.items())


def attention_ranks(update: Update, *, layer: str = "params/attention_0") -> tuple[AdapterRank, ...]:
    """The same of clients that train an attention itself: the rank of its gradients and biases together.

    Raises:
      ValueError: if the update lacks the layer.
    """
    leaves = {name: np.asarray(leaf, np.float64) for name, leaf in leaves_by_path(update).items()}
    layers = [f"{layer}/{projection}" for projection in PROJECTIONS]
    gradient = np.asarray(spans.read_gradient(leaves, layers))  # type: ignore[arg-type]
    found, columns = matrix_rank(gradient.astype(np.float32)), min(gradient.shape)
    if found is None or found == 0:
        is_exact, words = _conclusion(found, columns, found, columns)
    elif found < columns - 1:  # after a norm, inputs sum to zero
        is_exact, words = True, f"{found} distinct inputs, which span the update: candidates are checked exactly"
    else:
        is_exact, words = False, f"at least {found} distinct inputs: the span is full and accepts everything"
    return (AdapterRank(layer, PROJECTIONS, 0, found, columns, None, found or 0, is_exact, words),)


def _adapter_rank(group: str, layers: Sequence[str], leaves: Mapping[str, np.ndarray]) -> AdapterRank:
    firsts, seconds = ([leaves[f"{layer}/{leaf}"].astype(np.float64) for layer in layers] for leaf in (A, B))
    norms = [float(np.linalg.norm(first)) for first in firsts]
    scaled = np.concatenate([first / (norm or 1.0) for first, norm in zip(firsts, norms)], axis=1)
    # The resolution is that of the update, which is float32 at most.
    rank_a = matrix_rank(scaled.astype(np.float32))
    ranks_b = [matrix_rank(second.astype(np.float32)) for second in seconds]
    rank, columns = firsts[0].shape[1], min(scaled.shape)
    rank_b = None if None in ranks_b else max(ranks_b)  # type: ignore[type-var]
    least = max(rank_a or 0, rank_b or 0)
    is_exact, words = _conclusion(rank_a, columns, rank_b, rank)
    names = tuple(layer.rpartition("/")[2] for layer in layers) if group != layers[0] else ()
    return AdapterRank(group, names, rank, rank_a, columns, rank_b, least, is_exact, words)


def _conclusion(rank_a: int | None, columns: int, rank_b: int | None, rank: int) -> tuple[bool, str]:
    if rank_a is None or rank_b is None:
        return False, "holds values that are not finite"
    if rank_a == rank_b == 0:
        return False, "zero: nothing was sent"
    if 0 < rank_a < columns:
        return True, f"{rank_a} distinct inputs, which span A's update: candidates are checked exactly"
    if rank_a == columns:
        return False, f"at least {columns} distinct inputs: exact only if there are no more, else by search"
    if rank_b < rank:
        return True, f"A's update is zero; {rank_b} distinct inputs, whose projections by A are checked exactly"
    return False, f"A's update is zero; at least {rank} distinct inputs, so B's excludes nothing: by search only"
