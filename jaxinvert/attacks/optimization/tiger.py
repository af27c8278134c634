"""TIGER: gradient matching over embeddings, started at and read by their distance to the span of a noisy gradient.

    minimize over E, Y:   1 - cos(g(E, Y), g*) + span sum_l mean_s d_l(z_ls(E))
    start:                E_s = sum_v P_sv table_v,   P_s = softmax over v of  - sharpness d_0(z_sv) / std + noise
    token_s:              the largest  sqrt(d) cos(E_s, table_v) - d_0(z_sv) / std

    d_l(z) = 1 - sum_k c_lk <u_lk, (z, 1)>^2 / |(z, 1)|^2

`z_sv` is the first attention's input for token `v` at position `s`, `z_ls` the input of attention `l` or of the head.
`u_lk` are the left singular vectors of a layer's observed gradient, and `c_lk` says how far noise of the size that
its singular values show has turned them (`noisy_span`). Without noise, `d` is the square of DAGER's distance; where
noise hides all directions, it is constant and only matching is left. `std` is that of `d_0` over tokens and
positions, and `1 / sqrt(d)` that of a cosine by chance: a token is read by the sum of two standard scores.

Only the paper's abstract was at hand: embeddings are optimized by their distance to the subspace, instead of testing
every token for membership. These equations are this library's own. The term of the paper's idea, `span`, has a small
weight: under noise, embeddings between tokens lie nearer to the spans than the true ones, and matching finds more.

    Kalikman, Petrov, Dimitrov, Vechev: TIGER: Inverting Transformer Gradients via Embedding-Subspace Distance
    Optimization. 2026, arXiv:2606.18312.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxinvert.attacks import objectives, schedules
from jaxinvert.attacks.closed_form import span as spans
from jaxinvert.attacks.closed_form.adapters import adapters_in
from jaxinvert.attacks.closed_form.april import PROJECTIONS
from jaxinvert.attacks.noisy_span import NoisySpan, noisy_span, outside
from jaxinvert.attacks.problem import TextProblem, declare
from jaxinvert.attacks.text_matching import by_token, cosines, no_labels, search_text, table_of
from jaxinvert.models.lora import A
from jaxinvert.models.text_transformer import TextModel
from jaxinvert.observation.observe import require
from jaxinvert.trees import leaves_by_path
from jaxinvert.types import (
    Array,
    ArrayTree,
    Attack,
    AttackInfo,
    AttackState,
    Key,
    Observation,
    Params,
    Reconstruction,
    Scalar,
)

_DRAWN = 0.5


class Spans(NamedTuple):
    """What the update says of the inputs, computed once.

    Attributes:
      scores: `[n, V]` nearness of every token at every position to the first attention's span, in standard
        deviations.
      layers: the spans of all layers.
    """

    scores: Array
    layers: tuple[NoisySpan, ...]


@declare(reconstructs="text")
def tiger(
    problem: TextProblem,
    *,
    span: Scalar = 0.01,
    sharpness: Scalar = 2.0,
    learning_rate: Scalar = 0.1,
    horizon: Scalar = 1000.0,
) -> Attack:
    """TIGER: embeddings matched, started and read by the spans of noisy gradients (after Kalikman et al. 2026).

    Works: on single short sequences, without noise and under as little as ends DAGER's check, where it finds nearly
    all tokens.

    Fails: under noise in which no direction of the spans is left, where it finds no more than matching. Of several
    sequences it finds many tokens and mixes them up.

    Args:
      problem: the client, its network and the number of sequences.
      span: weight of the distances to the spans in the attack loss.
      sharpness: of the shares of tokens at the start.
      learning_rate: of Adam, in units of the token table's standard deviation, positive.
      horizon: number of steps over which the rate decays.
    """
    model = problem.model

    def towards(known: Spans) -> Attack:
        def apart(embedded: Array, params: Params) -> Array:
            inputs = _layer_inputs(model, params, embedded)
            means = [jnp.mean(outside(one, rows)) for one, rows in zip(known.layers, inputs)]
            return span * jnp.sum(jnp.stack(means))

        def start(key: Key, observation: Observation) -> ArrayTree:
            table = table_of(observation.params)
            drawn = _DRAWN * jax.random.gumbel(key, (problem.num_sequences, *known.scores.shape))
            shares = jax.nn.softmax(sharpness * known.scores[None] + drawn)
            labels = no_labels(problem, observation.params)
            return {"embeddings": shares @ table / jnp.std(table), "labels": labels}

        return search_text(
            problem,
            objective=objectives.cosine,
            optimizer=optax.adam(schedules.cosine_decay(learning_rate, horizon)),
            regularizer=apart,
            start=start,
            name="tiger",
        )

    def init(key: Key, observation: Observation) -> AttackState:
        known = _spans(problem, observation)
        return towards(known).init(key, observation)._replace(carried=known)

    def step(key: Key, state: AttackState, observation: Observation) -> tuple[AttackState, AttackInfo]:
        return towards(state.carried).step(key, state, observation)

    def decode(state: AttackState, observation: Observation) -> Reconstruction:
        table = table_of(require(observation, "params", attack="tiger"))
        alike = cosines(state.best_variables["embeddings"], table) * table.shape[1] ** 0.5
        tokens = jnp.argmax(alike + state.carried.scores[None], axis=-1).astype(jnp.int32)
        return towards(state.carried).decode(state, observation)._replace(inputs=tokens)

    return Attack(init, step, decode)


def _spans(problem: TextProblem, observation: Observation) -> Spans:
    """Those of every attention, by its layers' gradients or adapters, and of the head, if it is trained."""
    model, params = problem.model, require(observation, "params", attack="tiger")
    gradients, num_inputs = leaves_by_path(observation.update), problem.num_sequences * model.length
    found = []
    for block in range(model.depth):
        layers = [f"params/attention_{block}/{projection}" for projection in PROJECTIONS]
        adapted = [gradients[f"{layer}/{A}"] for layer in adapters_in(gradients, layers)]
        gradient = jnp.concatenate(adapted, axis=1) if adapted else spans.read_gradient(gradients, layers)
        found.append(noisy_span(gradient, num_inputs))
    if not model.frozen:
        num_features = num_inputs if model.causal else problem.num_sequences
        found.append(noisy_span(spans.read_gradient(gradients, [model.head]), num_features))
    first = by_token(model, params, lambda inputs: outside(found[0], _extended(model, inputs)))
    scores = (jnp.mean(first, axis=1, keepdims=True) - first) / jnp.maximum(jnp.std(first), 1e-3)
    return Spans(scores, tuple(found))


def _layer_inputs(model: TextModel, params: Params, embedded: Array) -> list[Array]:
    """Inputs of the attentions and of the head: `[B, n, D]`, or `[B, D]`."""
    inputs = [*model.attention_inputs(params, embedded), model.features(params, embedded)]
    return [_extended(model, rows) for rows in inputs]


def _extended(model: TextModel, rows: Array) -> Array:
    """With a 1 for the bias, which adapters do not have."""
    return rows if model.frozen else jnp.concatenate([rows, jnp.ones_like(rows[..., :1])], axis=-1)
