"""Gradient matching on text: searches for embeddings and labels, and returns the tokens nearest to them.

    minimize over E [B, n, d], Y:   distance(g(E, softmax Y), g*) + regularizer(E);    token_s = nearest row to E_s.

The variables are embeddings in units of the standard deviation of the token table, and logits of the labels, which
are unknown. The gradient of the token table is left out on both sides: it is zero for embeddings, and in clients
that train the table its rows give the tokens away without any search.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax

from jaxinvert.attacks import objectives
from jaxinvert.attacks.matching import search_inputs, update_distance
from jaxinvert.attacks.problem import TextProblem
from jaxinvert.models.text_transformer import TABLE, TextModel
from jaxinvert.nn import draws
from jaxinvert.observation.observe import require
from jaxinvert.trees import leaves_by_path
from jaxinvert.types import (
    Array,
    ArrayTree,
    Attack,
    AttackState,
    Batch,
    Key,
    Objective,
    Observation,
    Parametrization,
    Params,
    Reconstruction,
)

_AT_ONCE = 512


def search_text(
    problem: TextProblem,
    *,
    objective: Objective,
    optimizer: optax.GradientTransformation,
    regularizer: Callable[[Array, Params], Array] | None = None,
    start: Callable[[Key, Observation], ArrayTree] | None = None,
    name: str,
) -> Attack:
    """Returns the attack on text by an objective.

    Args:
      problem: the client, its network and `B`.
      objective: distance between updates, without the token table.
      optimizer: of the variables.
      regularizer: `(embeddings [B, n, d], params) -> []`.
      start: the initial variables; by default `random_start`.
      name: of the attack, for messages.

    The reconstruction's `inputs` are tokens `[B, n]`, its `labels` the likeliest ones, `[B, n]` or `[B]`.
    """
    gap = distance_without_table(problem, objective)

    def distance(observation: Observation, batch: Any) -> Array:
        params = require(observation, "params", attack=name)
        embedded = batch.inputs * jnp.std(table_of(params))
        unlike = gap(observation, Batch(embedded, batch.labels))
        return unlike if regularizer is None else unlike + regularizer(embedded, params)

    attack = search_inputs(
        distance, optimizer=optimizer, parametrization=_embeddings(), start=start or random_start(problem), name=name
    )

    def decode(state: AttackState, observation: Observation) -> Reconstruction:
        table = table_of(require(observation, "params", attack=name))
        best = state.best_variables
        tokens = nearest(best["embeddings"], table / jnp.std(table))
        return Reconstruction(tokens, jnp.argmax(best["labels"], axis=-1).astype(jnp.int32), state.best_loss, {})

    return attack._replace(decode=decode)


def distance_without_table(problem: TextProblem, objective: Objective) -> Callable[[Observation, Batch], Array]:
    """`(observation, batch of embeddings) -> []`, the distance of the updates without that of the token table."""
    return update_distance(problem.client_update, objectives.layer_subset(objective, lambda path: path != TABLE))


def table_of(params: Params) -> Array:
    """The token embeddings `[V, d]`.

    Raises:
      ValueError: if the parameters lack them.
    """
    table = leaves_by_path(params).get(TABLE)
    if table is None:
        raise ValueError(f"the parameters lack the token embeddings {TABLE}")
    return table


def nearest(embeddings: Array, table: Array) -> Array:
    """The token whose embedding has the largest cosine with each embedding `[..., d]`: `[...]` int32."""
    return jnp.argmax(cosines(embeddings, table), axis=-1).astype(jnp.int32)


def cosines(embeddings: Array, table: Array) -> Array:
    """The cosine of each embedding `[..., d]` with that of every token, `[..., V]`."""
    ours, theirs = (
        one / jnp.maximum(jnp.linalg.norm(one, axis=-1, keepdims=True), 1e-12) for one in (embeddings, table)
    )
    return ours @ theirs.T


def random_start(problem: TextProblem) -> Callable[[Key, Observation], ArrayTree]:
    """Normal embeddings, and labels without a preference."""
    model, size = problem.model, problem.num_sequences

    def start(key: Key, observation: Observation) -> ArrayTree:
        params = require(observation, "params", attack="search_text")
        width = table_of(params).shape[1]
        return {
            "embeddings": draws.normal(key, (size, model.length, width)),
            "labels": no_labels(problem, params),
        }

    return start


def no_labels(problem: TextProblem, params: Params) -> Array:
    """Logits of labels without a preference, `[B, n, V]` of a decoder, `[B, K]` of an encoder."""
    tokens = jax.ShapeDtypeStruct((problem.num_sequences, problem.model.length), jnp.int32)
    return jnp.zeros(jax.eval_shape(problem.model.apply, params, tokens).shape)


def by_token(model: TextModel, params: Params, distances: Callable[[Array], Array]) -> Array:
    """A distance of inputs `[n, d]` of the first attention, `[n]`, for every token at every position: `[n, V]`."""

    def one_token(token: Array) -> Array:
        sequence = jnp.full((1, model.length), token, jnp.int32)
        return distances(model.attention_inputs(params, sequence)[0, 0])

    tokens = jnp.arange(model.vocabulary_size, dtype=jnp.int32)
    return lax.map(one_token, tokens, batch_size=min(_AT_ONCE, len(tokens))).T


def _embeddings() -> Parametrization:
    def no_start(key: Key) -> ArrayTree:
        raise NotImplementedError("the start needs the parameters, see random_start")

    return Parametrization(
        init=no_start,
        decode=lambda variables: Batch(variables["embeddings"], jax.nn.softmax(variables["labels"])),
        project=lambda variables: variables,
    )
