"""DAGER: recovers a transformer's training sequences, token by token, from the span of its attention gradients.

The input of the first attention at a position depends only on the token there, so every token of the vocabulary at
every position is a candidate for the span check (`span`). The input of a decoder's second attention depends on all
tokens up to a position: sequences grow token by token, and a continuation is kept if its input of the second
attention lies in the second span. In an encoder it depends on all tokens: each of `B^n` combinations is a candidate.

Complete sequences determine `F`, the input of the head, and the predictions `P`. For the mean cross-entropy of `N`
predictions

    dL/dW_head = 1/N F^T (P - Y),    hence    Y = P - N (F^T)^+ dL/dW_head

gives the one-hot labels `Y`. The update re-simulated from the sequences and labels is compared with the observed one.

Each span check needs fewer distinct inputs, of all positions and sequences together, than the width. The input of
the first attention is the sum of a token and a position embedding: if two tokens both occur at two positions, every
token of the one lies in the span at the other position, too: the check is `AMBIGUOUS`, and the second span decides.

The paper uses the gradient of the query only; this uses query, key and value with their biases. The paper prunes an
encoder's combinations by heuristics; this does not, which limits encoders to short sequences.

Of clients that train low-rank adapters only, the checks are those of `adapters`, for few distinct tokens.

References:
  Petrov, Dimitrov, Baader, Mueller, Vechev: DAGER: Exact Gradient Inversion for Large Language Models. NeurIPS 2024,
  arXiv:2405.15586.
"""

from collections.abc import Mapping
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxinvert.attacks.closed_form import span as spans
from jaxinvert.attacks.closed_form.adapters import InputCheck, adapter_check, adapters_in, labels_by_features
from jaxinvert.attacks.closed_form.april import PROJECTIONS
from jaxinvert.attacks.closed_form.certificate import Status, certify, first_doubt
from jaxinvert.attacks.closed_form.precision import in_float64
from jaxinvert.attacks.problem import TextProblem, declare
from jaxinvert.attacks.text_matching import by_token
from jaxinvert.models.text_transformer import TextModel
from jaxinvert.observation.observe import require
from jaxinvert.trees import leaves_by_path
from jaxinvert.types import (
    Array,
    Batch,
    Key,
    Observation,
    Params,
    Reconstruction,
    Scalar,
    SolveFn,
    Update,
)

_AT_ONCE = 512
_MOST_COMBINATIONS = 4096


class Found(NamedTuple):
    """Result of the first span check.

    Attributes:
      tokens: `[n, M]` int32, the tokens nearest to the span at each position.
      inside: `[n, M]` bool, whether they lie in the span.
    """

    tokens: Array
    inside: Array


class Sequences(NamedTuple):
    """The assembled sequences.

    Attributes:
      tokens: `[B, n]` int32; rows beyond those found are copies of the first.
      num_found: `[]` int32, number of distinct sequences in the second span; 0 if there are more than `B`.
    """

    tokens: Array
    num_found: Array


@declare(reports=("certified", "status", "num_found", "rank"), reconstructs="text")
def dager(problem: TextProblem, *, tolerances: spans.Tolerances | None = None) -> SolveFn:
    """DAGER: exact text from the span of attention gradients, for few distinct tokens (Petrov et al. 2024).

    Works: while the distinct inputs, of all positions and sequences together, are fewer than the width.

    Fails: beyond that and in half precision; it is ambiguous where tokens recur at several positions.

    Args:
      problem: the client, its network and `B`, the number of sequences; its `client_update` is simulated for the
        certificate.
      tolerances: of the span checks; by default from the update's resolution.

    The reconstruction's `inputs` are tokens `[B, n]`, its `labels` are those of the head, and `attack_loss` is the
    relative error of the re-simulated update (`inf` if there is none). Its `info` has

    - `found [n, V]` bool: whether a token is in the batch at a position, by the first span check, and
      `distances [n, V]`; if the span is full, nothing is found;
    - `rank`: rank of the first attention's gradient, equal to the number of distinct tokens (counted with their
      positions) if that is less than the width; `num_found`: the number of different sequences found;
    - `certified`, `status` (`certificate.Status`).

    Sequences are assembled by the second block, for an encoder only up to 4,096 combinations; one sequence needs no
    second block. Otherwise `inputs` are the tokens of each position in order of distance, which is not a
    reconstruction, and the status is `INCOMPLETE`.

    Raises:
      ValueError: for fewer than one sequence; at trace time, if the update lacks a layer.
    """
    client_update, model, num_sequences = problem.client_update, problem.model, problem.num_sequences
    if num_sequences < 1:
        raise ValueError(f"num_sequences must be at least 1, got {num_sequences}")
    if num_sequences == 1 or model.depth == 1:
        assemble = _in_order
    elif model.causal:
        assemble = _grown
    else:
        assemble = _combined if num_sequences**model.length <= _MOST_COMBINATIONS else _in_order

    def solve(key: Key, observation: Observation) -> Reconstruction:
        del key
        params = require(observation, "params", attack="dager")
        resolution = max(float(jnp.finfo(leaf.dtype).eps) for leaf in jax.tree.leaves(observation.update))
        limits = spans.tolerances(resolution) if tolerances is None else tolerances

        def exact(params: Params, update: Update, limits: spans.Tolerances) -> Reconstruction:
            gradients = leaves_by_path(update)
            first, second = (
                _attention_check(gradients, params, block, limits) for block in (0, min(1, model.depth - 1))
            )
            apart = by_token(model, params, first.distances)
            inside = apart <= limits.distance
            doubt = spans.doubt(first, jnp.all(inside))
            inside &= doubt == Status.CERTIFIED
            # Of a few more than there are sequences, as an ambiguous span has more.
            nearest = _smallest(apart, min(4 * num_sequences, model.vocabulary_size))
            found = Found(nearest, jnp.take_along_axis(inside, nearest, axis=1))
            sequences = assemble(model, params, second, found, num_sequences, limits.distance)
            labels = None
            if model.frozen:  # the head sends no gradient
                labels = labels_by_features(model, params, update, sequences.tokens)
            if labels is None:
                labels = _labels(model, params, gradients, sequences.tokens)
            doubts = {
                Status.UNDETERMINED: first.saturated & ~jnp.any(inside),
                Status.AMBIGUOUS: jnp.sum(inside) > first.rank,
                Status.INCOMPLETE: sequences.num_found < num_sequences,
            }
            doubt = jnp.where(doubt == Status.CERTIFIED, first_doubt(doubts), doubt)
            certificate = certify(
                client_update,
                params,
                update,
                Batch(sequences.tokens, labels),
                tolerance=max(1e3 * resolution, 1e-8),
                doubt=doubt,
            )
            return Reconstruction(
                sequences.tokens,
                labels,
                certificate.relative_error,
                info={
                    "found": inside,
                    "distances": apart,
                    "rank": first.rank,
                    "num_found": sequences.num_found,
                    "certified": certificate.certified,
                    "status": certificate.status,
                },
            )

        limits = jax.tree.map(lambda limit: jnp.asarray(limit, jnp.float32), limits)
        return in_float64(exact)(params, observation.update, limits)

    return solve


def _attention_check(
    gradients: Mapping[str, Array], params: Params, block: int, limits: spans.Tolerances
) -> InputCheck:
    """The check of a block's attention inputs: by the layers' gradients, or by their adapters."""
    layers = [f"params/attention_{block}/{projection}" for projection in PROJECTIONS]
    if adapted := adapters_in(gradients, layers):
        return adapter_check(gradients, leaves_by_path(params), adapted, limits)
    span = spans.column_span(spans.read_gradient(gradients, layers), tolerance=limits.rank)
    return InputCheck(partial(spans.distances, span), span.rank, span.finite, jnp.array(False))


def _grown(
    model: TextModel,
    params: Params,
    check: InputCheck,
    found: Found,
    num_sequences: int,
    tolerance: Scalar,
) -> Sequences:
    """Grows sequences position by position, keeping those whose inputs of the second block lie in its span."""
    num_tokens = found.tokens.shape[1]

    def step(state: tuple[Array, Array, Array], position: Array) -> tuple[tuple[Array, Array, Array], None]:
        sequences, alive, at_most = state
        grown = jnp.repeat(sequences, num_tokens, axis=0)
        grown = grown.at[:, position].set(jnp.tile(found.tokens[position], num_sequences))
        possible = jnp.repeat(alive, num_tokens) & jnp.tile(found.inside[position], num_sequences)
        # Tokens at later positions are arbitrary: a decoder's earlier positions do not depend on them.
        inputs = model.attention_inputs(params, grown)[1, :, position]
        distances = jnp.where(possible, check.distances(inputs), jnp.inf)
        best = _smallest(distances, num_sequences)
        num_fitting = jnp.sum(distances <= tolerance).astype(jnp.int32)
        return (grown[best], distances[best] <= tolerance, jnp.maximum(at_most, num_fitting)), None

    nothing = jnp.zeros((num_sequences, model.length), jnp.int32)
    start = (nothing, jnp.arange(num_sequences) == 0, jnp.int32(0))
    (tokens, alive, at_most), _ = lax.scan(step, start, jnp.arange(model.length))
    return _with_copies(tokens, alive, at_most)


def _combined(
    model: TextModel,
    params: Params,
    check: InputCheck,
    found: Found,
    num_sequences: int,
    tolerance: Scalar,
) -> Sequences:
    """Selects, among all combinations of the nearest tokens, those whose second-block inputs lie in its span."""
    num_combinations = num_sequences**model.length
    choices = np.unravel_index(np.arange(num_combinations), (num_sequences,) * model.length)
    choices = np.stack(choices).astype(np.int32)
    tokens = jnp.take_along_axis(found.tokens, choices, axis=1).T
    possible = jnp.all(jnp.take_along_axis(found.inside, choices, axis=1), axis=0)

    def farthest(sequence: Array) -> Array:
        return jnp.max(check.distances(model.attention_inputs(params, sequence[None])[1, 0]))

    distances = jnp.where(possible, lax.map(farthest, tokens, batch_size=min(_AT_ONCE, len(tokens))), jnp.inf)
    best = _smallest(distances, num_sequences)
    return _with_copies(tokens[best], distances[best] <= tolerance, jnp.sum(distances <= tolerance).astype(jnp.int32))


def _in_order(
    model: TextModel,
    params: Params,
    check: InputCheck,
    found: Found,
    num_sequences: int,
    tolerance: Scalar,
) -> Sequences:
    """Tokens of each position by distance; a sequence only if there is exactly one token per position."""
    del model, params, check, tolerance
    tokens = found.tokens[:, jnp.arange(num_sequences) % found.tokens.shape[1]].T
    only = jnp.all(jnp.sum(found.inside, axis=1) == 1) & (num_sequences == 1)
    return _with_copies(tokens, (jnp.arange(num_sequences) == 0) & only, jnp.int32(0))


def _with_copies(tokens: Array, alive: Array, num_fitting: Array) -> Sequences:
    """Replaces missing sequences, which come last, by copies of the first; counts none if too many fit."""
    num_found = jnp.where(num_fitting > len(tokens), 0, jnp.sum(alive)).astype(jnp.int32)
    copied = jnp.any(alive) & ~alive
    return Sequences(jnp.where(copied[:, None], tokens[:1], tokens), num_found)


def _labels(model: TextModel, params: Params, gradients: Mapping[str, Array], tokens: Array) -> Array:
    """The label of every prediction, `[B, n]` or `[B]` int32, assuming that the sequences are right.

    Labels of predictions with equal features, such as after a common prefix, are assigned in arbitrary order.
    """
    features, logits = model.features(params, tokens), model.apply(params, tokens)
    rows = features.reshape(-1, features.shape[-1])
    kernel = gradients[f"{model.head}/kernel"]
    errors = len(rows) * jnp.linalg.pinv(rows.T) @ jnp.where(jnp.isfinite(kernel), kernel, 0.0)
    shares = jax.nn.softmax(logits).reshape(errors.shape) - errors
    distance = jnp.linalg.norm(rows[:, None] - rows[None], axis=-1)
    equal = distance <= 1e-9 * jnp.linalg.norm(rows, axis=-1)[:, None]
    earlier = jnp.sum(jnp.tril(equal, -1), axis=1, keepdims=True)
    so_far = jnp.cumsum(shares, axis=1) * jnp.sum(equal, axis=1, keepdims=True)
    reached = (so_far > earlier + 0.5).astype(jnp.float32)
    return lax.argmax(reached, 1, jnp.int32).reshape(features.shape[:-1])


def _smallest(values: Array, number: int) -> Array:
    """Indices of the smallest values along the last axis, ascending: `[..., number]` int32."""
    # Sorting is lowered outside of the 64-bit context, see `in_float64`.
    return lax.top_k(-values.astype(jnp.float32), number)[1].astype(jnp.int32)
