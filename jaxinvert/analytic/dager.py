"""DAGER: which tokens a transformer was trained on, at which positions, and in which sequences: text without a search.

What enters the first attention at a position depends on the token there alone, so that every token of the vocabulary
at every position is a candidate of the span check (`span`). A decoder's second attention reads what depends on all
tokens up to a position: sequences grow token by token, and a continuation stays if its second input lies in the second
span. From whole sequences `F`, what the head reads, is known, and with it the labels, since for the mean
cross-entropy of `N` predictions

    dL/dW_head = 1/N F^T (P - Y),    hence    P - Y = N (F^T)^+ dL/dW_head

has its only negative entry of a row at the label. The update that the sequences and labels would have caused is
compared with the observed one.

Each span check needs fewer distinct tokens, all positions and sequences together, than the width. The paper reads the
query's gradient where this reads all three of the attention, and finds an encoder's sequences among all combinations
of its tokens, which here are only put together for one.

References:
  Petrov, Dimitrov, Baader, Mueller, Vechev: DAGER: Exact Gradient Inversion for Large Language Models. NeurIPS 2024,
  arXiv:2405.15586.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxinvert.analytic import span as spans
from jaxinvert.analytic.april import PROJECTIONS
from jaxinvert.analytic.certificate import Verdict, certify
from jaxinvert.analytic.first_layer import leaves_by_path
from jaxinvert.analytic.precision import in_float64
from jaxinvert.models.text_transformer import TextModel
from jaxinvert.observe import require
from jaxinvert.types import Array, Batch, ClientUpdateFn, Key, Observation, Params, Reconstruction, SolveFn, Update

_TOKENS_AT_ONCE = 512


class Sequences(NamedTuple):
    """What was put together.

    Attributes:
      tokens: `[B, n]` int32, rows beyond the found ones copies of the first.
      num_found: `[]` int32, different sequences whose every token was found.
    """

    tokens: Array
    num_found: Array


def dager(
    client_update: ClientUpdateFn,
    model: TextModel,
    *,
    num_sequences: int,
    tolerances: spans.Tolerances | None = None,
) -> SolveFn:
    """Returns the attack on a batch of sequences.

    Args:
      client_update: the attacker's simulation of the client, for the certificate.
      model: the client's network.
      num_sequences: `B`.
      tolerances: of the span checks; by default those of the update's resolution.

    The reconstruction's `inputs` are tokens `[B, n]`, its `labels` are those of the head, and `attack_loss` is the
    relative error of the re-simulated update (`inf` without any). Its `info` has

    - `found [n, V]` bool: whether a token is in the batch at a position, and `distances [n, V]`, from the span;
    - `rank`: of the first attention's gradient, the number of distinct tokens (each with its position) if they are
      fewer than the width, and `num_found`, the different sequences found;
    - `certified`, `verdict` (`certificate.Verdict`). Where the span is full, nothing is found.

    Sequences are put together for a decoder of at least two blocks, or for one sequence; else they are the tokens of
    each position in the order of distance, which is no reconstruction, and `INCOMPLETE`.

    Raises:
      ValueError: for fewer than one sequence; at trace time, if the update lacks a layer.
    """
    if num_sequences < 1:
        raise ValueError(f"num_sequences must be at least 1, got {num_sequences}")
    first, second = (
        [f"params/attention_{block}/{projection}" for projection in PROJECTIONS] for block in range(2)
    )
    grows = model.causal and model.depth > 1

    def solve(key: Key, observation: Observation) -> Reconstruction:
        del key
        params = require(observation, "params", attack="dager")
        resolution = max(float(jnp.finfo(leaf.dtype).eps) for leaf in jax.tree.leaves(observation.update))
        limits = spans.tolerances(resolution) if tolerances is None else tolerances

        def exact(params: Params, update: Update, limits: spans.Tolerances) -> Reconstruction:
            gradients = leaves_by_path(update)
            span = spans.column_span(spans.read_gradient(gradients, first), tolerance=limits.rank)
            by_token = _distances_by_token(model, params, span)
            inside = by_token <= limits.distance
            problem = spans.doubt(span, inside)
            readable = (problem == Verdict.CERTIFIED) | (problem == Verdict.AMBIGUOUS)
            found = inside & readable
            nearest = _nearest_tokens(by_token, min(2 * num_sequences, model.vocabulary_size))
            if grows:
                later = spans.column_span(spans.read_gradient(gradients, second), tolerance=limits.rank)
                sequences = _grown(model, params, later, nearest, found, num_sequences, limits.distance)
            else:
                sequences = _columns(nearest, found, num_sequences)
            labels = _labels(model, params, gradients, sequences.tokens)
            complete = sequences.num_found == num_sequences
            problem = jnp.where(
                (problem == Verdict.CERTIFIED) & ~complete, jnp.int32(Verdict.INCOMPLETE), problem
            )
            certificate = certify(
                client_update,
                params,
                update,
                Batch(sequences.tokens, labels),
                tolerance=max(1e3 * resolution, 1e-8),
                problem=problem,
            )
            return Reconstruction(
                sequences.tokens,
                labels,
                certificate.relative_error,
                info={
                    "found": found,
                    "distances": by_token,
                    "rank": span.rank,
                    "num_found": sequences.num_found,
                    "certified": certificate.certified,
                    "verdict": certificate.verdict,
                },
            )

        limits = jax.tree.map(lambda limit: jnp.asarray(limit, jnp.float32), limits)
        return in_float64(exact)(params, observation.update, limits)

    return solve


def _distances_by_token(model: TextModel, params: Params, span: spans.Span) -> Array:
    """Distance of every token at every position from the span, `[n, V]`."""

    def one_token(token: Array) -> Array:
        sequence = jnp.full((1, model.length), token, jnp.int32)
        return spans.distances(span, model.attention_inputs(params, sequence)[0, 0])

    tokens = jnp.arange(model.vocabulary_size, dtype=jnp.int32)
    return lax.map(one_token, tokens, batch_size=_TOKENS_AT_ONCE).T


def _nearest_tokens(by_token: Array, num_tokens: int) -> Array:
    """The tokens of each position that are nearest to the span, `[n, num_tokens]` int32."""
    return lax.top_k(-by_token.astype(jnp.float32), num_tokens)[1].astype(jnp.int32)


def _grown(
    model: TextModel,
    params: Params,
    span: spans.Span,
    nearest: Array,
    found: Array,
    num_sequences: int,
    tolerance: Array,
) -> Sequences:
    """Sequences of found tokens whose second inputs lie in the second span, one position after the other."""
    num_tokens = nearest.shape[1]

    def step(state: tuple[Array, Array], position: Array) -> tuple[tuple[Array, Array], None]:
        sequences, alive = state
        tokens = nearest[position]
        grown = jnp.repeat(sequences, num_tokens, axis=0)
        grown = grown.at[:, position].set(jnp.tile(tokens, num_sequences))
        possible = jnp.repeat(alive, num_tokens) & jnp.tile(found[position, tokens], num_sequences)
        # Later positions hold what they will; a decoder's earlier ones do not see them.
        inputs = model.attention_inputs(params, grown)[1, :, position]
        distances = jnp.where(possible, spans.distances(span, inputs), jnp.inf)
        best = lax.top_k(-distances.astype(jnp.float32), num_sequences)[1]
        return (grown[best], distances[best] <= tolerance), None

    start = (jnp.zeros((num_sequences, model.length), jnp.int32), jnp.arange(num_sequences) == 0)
    (tokens, alive), _ = lax.scan(step, start, jnp.arange(model.length))
    return _with_copies(tokens, alive)


def _columns(nearest: Array, found: Array, num_sequences: int) -> Sequences:
    """The tokens of each position in the order of their distance: the sequence, if there is one."""
    tokens = nearest[:, : min(num_sequences, nearest.shape[1])].T
    tokens = jnp.concatenate([tokens, jnp.repeat(tokens[:1], num_sequences - len(tokens), axis=0)])
    only = jnp.all(jnp.sum(found, axis=1) == 1) & (num_sequences == 1)
    return _with_copies(tokens, (jnp.arange(num_sequences) == 0) & only)


def _with_copies(tokens: Array, alive: Array) -> Sequences:
    """The first sequence in place of those that are not there; they come last."""
    return Sequences(jnp.where(alive[:, None], tokens, tokens[:1]), jnp.sum(alive).astype(jnp.int32))


def _labels(model: TextModel, params: Params, gradients: dict[str, Array], tokens: Array) -> Array:
    """The label of every prediction, `[B, n]` or `[B]` int32, if these are the sequences."""
    features = model.features(params, tokens)
    rows = features.reshape(-1, features.shape[-1])
    kernel = gradients[f"{model.head}/kernel"]
    errors = jnp.linalg.pinv(rows.T) @ jnp.where(jnp.isfinite(kernel), kernel, 0.0)
    return lax.argmin(errors.astype(jnp.float32), 1, jnp.int32).reshape(features.shape[:-1])
