"""LAMP: gradient matching over embeddings, alternating with discrete moves that a language prior scores.

    minimize over E, Y:   1 - cos(g(E, Y), g*) + a (mean_s |E_s| - mean_v |table_v|)^2 / (mean_v |table_v|)^2

Matching finds tokens before it finds their order. Every `period` steps, moves of tokens inside a sequence (two change
places, one goes elsewhere, the sequence is rotated) are scored by

    matching + b (mean over s of -log p(token_s | token_(s-1))),

and the best is kept. The paper's prior is GPT-2; here it is `TextProblem.bigrams`, frequencies of pairs of tokens in
public text, which knows far less. Without them, moves are scored by matching alone.

    Balunovic, Dimitrov, Jovanovic, Vechev: LAMP: Extracting Text from Gradients with Language Model Priors.
    NeurIPS 2022, arXiv:2202.08827.
"""

import jax
import jax.numpy as jnp
import optax
from jax import lax

from jaxinvert.attacks import objectives, schedules
from jaxinvert.attacks.problem import TextProblem, declare
from jaxinvert.attacks.text_matching import distance_without_table, nearest, search_text, table_of
from jaxinvert.types import Array, ArrayTree, Attack, AttackInfo, AttackState, Batch, Key, Observation, Params, Scalar


@declare(reconstructs="text")
def lamp(
    problem: TextProblem,
    *,
    embedding: Scalar = 0.1,
    prior: Scalar = 0.02,
    learning_rate: Scalar = 0.1,
    horizon: Scalar = 1000.0,
    period: int = 50,
    num_moves: int = 24,
) -> Attack:
    """LAMP: cosine matching over embeddings, with moves of tokens scored by bigrams (Balunovic et al. 2022).

    Works: on single short sequences through decoders of one block; under noise at least as well as TAG.

    Fails: on several sequences at once and under strong noise; without noise, TAG finds more here, and the paper's
    language model is not part of it.

    Args:
      problem: the client, its network, the number of sequences, and bigrams of public text if the attacker has any.
      embedding: weight of the embeddings' mean norm.
      prior: weight of the bigrams.
      learning_rate: of Adam, in units of the token table's standard deviation, positive.
      horizon: number of steps over which the rate decays.
      period: steps between two rounds of moves.
      num_moves: moves tried in a round.
    """

    def norms_differ(embedded: Array, params: Params) -> Array:
        wanted = jnp.mean(jnp.linalg.norm(table_of(params), axis=-1))
        return embedding * jnp.square(jnp.mean(jnp.linalg.norm(embedded, axis=-1)) / wanted - 1)

    matching = distance_without_table(problem, objectives.cosine)
    attack = search_text(
        problem,
        objective=objectives.cosine,
        optimizer=optax.adam(schedules.cosine_decay(learning_rate, horizon)),
        regularizer=norms_differ,
        name="lamp",
    )

    def score(variables: ArrayTree, observation: Observation) -> Array:
        table = table_of(observation.params)
        scale = jnp.std(table)
        batch = Batch(variables["embeddings"] * scale, jax.nn.softmax(variables["labels"]))
        unlikely = jnp.zeros(())
        if problem.bigrams is not None:
            tokens = nearest(variables["embeddings"], table / scale)
            unlikely = -jnp.mean(problem.bigrams[tokens[:, :-1], tokens[:, 1:]])
        return matching(observation, batch) + prior * unlikely

    def reordered(key: Key, variables: ArrayTree, observation: Observation) -> ArrayTree:
        def consider(best: tuple[Array, Array], move_key: Key) -> tuple[tuple[Array, Array], None]:
            least, kept = best
            moved = _moved(move_key, variables["embeddings"])
            found = score({**variables, "embeddings": moved}, observation)
            return (jnp.minimum(found, least), jnp.where(found < least, moved, kept)), None

        start = (score(variables, observation), variables["embeddings"])
        (_, embeddings), _ = lax.scan(consider, start, jax.random.split(key, num_moves))
        return {**variables, "embeddings": embeddings}

    def init(key: Key, observation: Observation) -> AttackState:
        return attack.init(key, observation)._replace(carried=jnp.int32(0))

    def step(key: Key, state: AttackState, observation: Observation) -> tuple[AttackState, AttackInfo]:
        step_key, move_key = jax.random.split(key)
        state, info = attack.step(step_key, state, observation)
        variables = lax.cond(
            state.carried % period == period - 1,
            lambda: reordered(move_key, state.variables, observation),
            lambda: state.variables,
        )
        return state._replace(variables=variables, carried=state.carried + 1), info

    return Attack(init, step, attack.decode)


def _moved(key: Key, embeddings: Array) -> Array:
    """One sequence of `[B, n, d]` with two positions exchanged, one moved, or all rotated."""
    size, length, _ = embeddings.shape
    row_key, kind_key, from_key, to_key = jax.random.split(key, 4)
    row = jax.random.randint(row_key, (), 0, size)
    first, second = (jax.random.randint(one, (), 0, length) for one in (from_key, to_key))
    places = jnp.arange(length)
    exchanged = places.at[first].set(second).at[second].set(first)
    target = second + jnp.where(second > first, 0.5, -0.5)
    elsewhere = jnp.argsort(jnp.where(places == first, target, places.astype(jnp.float32)))
    orders = jnp.stack([exchanged, elsewhere, (places + first) % length])
    order = orders[jax.random.randint(kind_key, (), 0, len(orders))]
    return embeddings.at[row].set(embeddings[row][order])
