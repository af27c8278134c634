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

from jaxinvert.attacks import objectives
from jaxinvert.attacks.matching import search_inputs, update_distance
from jaxinvert.attacks.problem import TextProblem
from jaxinvert.models.text_transformer import TABLE
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


def search_text(
    problem: TextProblem,
    *,
    objective: Objective,
    optimizer: optax.GradientTransformation,
    regularizer: Callable[[Array, Array], Array] | None = None,
    name: str,
) -> Attack:
    """Returns the attack on text by an objective.

    Args:
      problem: the client, its network and `B`.
      objective: distance between updates, without the token table.
      optimizer: of the variables.
      regularizer: `(embeddings [B, n, d], token table [V, d]) -> []`.
      name: of the attack, for messages.

    The reconstruction's `inputs` are tokens `[B, n]`, its `labels` the likeliest ones, `[B, n]` or `[B]`.
    """
    gap = update_distance(problem.client_update, objectives.layer_subset(objective, lambda path: path != TABLE))

    def distance(observation: Observation, batch: Any) -> Array:
        table = table_of(require(observation, "params", attack=name))
        embedded = batch.inputs * jnp.std(table)
        unlike = gap(observation, Batch(embedded, batch.labels))
        return unlike if regularizer is None else unlike + regularizer(embedded, table)

    attack = search_inputs(
        distance, optimizer=optimizer, parametrization=_embeddings(), start=random_start(problem), name=name
    )

    def decode(state: AttackState, observation: Observation) -> Reconstruction:
        table = table_of(require(observation, "params", attack=name))
        best = state.best_variables
        tokens = nearest(best["embeddings"], table / jnp.std(table))
        return Reconstruction(tokens, jnp.argmax(best["labels"], axis=-1).astype(jnp.int32), state.best_loss, {})

    return attack._replace(decode=decode)


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
    directions = table / jnp.maximum(jnp.linalg.norm(table, axis=-1, keepdims=True), 1e-12)
    return jnp.argmax(embeddings @ directions.T, axis=-1).astype(jnp.int32)


def random_start(problem: TextProblem) -> Callable[[Key, Observation], ArrayTree]:
    """Normal embeddings, and labels without a preference."""
    model, size = problem.model, problem.num_sequences

    def start(key: Key, observation: Observation) -> ArrayTree:
        params = require(observation, "params", attack="search_text")
        width = table_of(params).shape[1]
        logits = jax.eval_shape(model.apply, params, jax.ShapeDtypeStruct((size, model.length), jnp.int32))
        return {
            "embeddings": draws.normal(key, (size, model.length, width)),
            "labels": jnp.zeros(logits.shape),
        }

    return start


def _embeddings() -> Parametrization:
    def no_start(key: Key) -> ArrayTree:
        raise NotImplementedError("the start needs the parameters, see random_start")

    return Parametrization(
        init=no_start,
        decode=lambda variables: Batch(variables["embeddings"], jax.nn.softmax(variables["labels"])),
        project=lambda variables: variables,
    )
