"""TAG, LAMP and TIGER: embeddings as inputs, tokens that are found and scored beside noise, moves that only help."""

import dataclasses
import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxinvert.attacks import TextProblem, registry
from jaxinvert.attacks.noisy_span import outside
from jaxinvert.attacks.text_matching import nearest
from jaxinvert.clients import fedsgd, sending
from jaxinvert.jobs import text
from jaxinvert.models.lora import text_with_lora
from jaxinvert.models.tensors import nested
from jaxinvert.models.text_transformer import decoder
from jaxinvert.trees import leaves_by_path
from jaxinvert.types import Batch, Observation

MODEL = decoder(vocabulary_size=12, length=3, width=16, depth=1, num_heads=2)
CLIENT = jax.jit(fedsgd(MODEL.loss_fn))
TOKENS = Batch(jnp.array([[3, 7, 1]]), jnp.array([[7, 1, 5]]))


@pytest.fixture(scope="module")
def observation():
    params = jax.jit(MODEL.init)(jax.random.key(0))
    return Observation(params, CLIENT(params, TOKENS))


def test_embeddings_and_shares_of_labels_are_what_their_tokens_are(observation):
    params = observation.params
    table = params["params"]["tokens"]
    soft = Batch(table[TOKENS.inputs], jax.nn.one_hot(TOKENS.labels, 12))
    np.testing.assert_allclose(MODEL.loss_fn(params, soft), MODEL.loss_fn(params, TOKENS), rtol=1e-6)
    np.testing.assert_array_equal(nearest(5 * soft.inputs, table), TOKENS.inputs)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tag", "lamp", "tiger"])
def test_the_truth_is_the_best_and_a_step_improves(observation, name):
    attack = registry.TEXT[name].build(TextProblem(CLIENT, MODEL, 1), horizon=100.0)
    state = attack.init(jax.random.key(1), observation)
    table, labels = observation.params["params"]["tokens"], 30 * jax.nn.one_hot(TOKENS.labels, 12)
    true = {"embeddings": (table / jnp.std(table))[TOKENS.inputs], "labels": labels}
    assert jax.tree.map(jnp.shape, state.variables) == jax.tree.map(jnp.shape, true)
    step = jax.jit(attack.step)
    first, info = step(jax.random.key(0), state, observation)
    _, again = step(jax.random.key(0), first, observation)
    assert again.attack_loss < info.attack_loss
    _, at_truth = step(jax.random.key(0), state._replace(variables=true), observation)
    assert at_truth.attack_loss < 0.05 * info.attack_loss
    found = attack.decode(state._replace(best_variables=true), observation)
    np.testing.assert_array_equal(found.inputs, TOKENS.inputs)
    np.testing.assert_array_equal(found.labels, TOKENS.labels)


def test_the_gradient_of_the_token_table_is_not_read(observation):
    """It names the tokens that occur: reading it would need no search."""
    attack = registry.TEXT["tag"].build(TextProblem(CLIENT, MODEL, 1))
    state = attack.init(jax.random.key(1), observation)
    update = {"params": {**observation.update["params"], "tokens": jnp.ones((12, 16))}}
    step = jax.jit(attack.step)
    losses = [
        step(jax.random.key(0), state, observation._replace(update=one))[1].attack_loss
        for one in (observation.update, update)
    ]
    assert losses[0] == losses[1]


@pytest.mark.parametrize("rank", [None, 2])
def test_the_spans_of_tiger_hold_the_truth_and_noise_leaves_none(rank):
    """Of a network, and of adapters after a round, whose `A` has a gradient then."""
    tiger = importlib.import_module("jaxinvert.attacks.optimization.tiger")  # the package exports `tiger`
    model = MODEL if rank is None else text_with_lora(MODEL, rank)
    params = jax.jit(model.init)(jax.random.key(0))
    if rank is not None:
        leaves = dict(leaves_by_path(params))
        moved = {
            path: jax.random.normal(jax.random.key(1), leaves[path].shape) for path in leaves if "lora_b" in path
        }
        params = nested({**leaves, **moved})
    update = jax.jit(sending(fedsgd(model.loss_fn), frozen=model.frozen))(params, TOKENS)
    noise = jax.tree.map(lambda leaf: jax.random.normal(jax.random.key(leaf.size), leaf.shape), update)

    def apart(update, tokens):
        found = tiger._spans(TextProblem(CLIENT, model, 1), Observation(params, update))
        assert len(found.layers) == (2 if rank is None else 1)
        inputs = tiger._layer_inputs(model, params, params["params"]["tokens"][tokens])
        return found.scores, [float(jnp.max(outside(*one))) for one in zip(found.layers, inputs)]

    scores, distances = apart(update, TOKENS.inputs)
    assert max(distances) < 1e-3
    np.testing.assert_array_equal(jnp.argmax(scores, axis=1), TOKENS.inputs[0])
    assert min(apart(update, jnp.array([[2, 9, 6]]))[1]) > 0.05
    if rank is None:  # adapters of rank 2 have no singular values beyond those of the inputs
        assert min(apart(noise, TOKENS.inputs)[1]) > 0.5


def test_moves_keep_the_embeddings_of_one_sequence_and_change_their_order():
    moved_by = importlib.import_module("jaxinvert.attacks.optimization.lamp")._moved  # the package exports `lamp`
    embeddings = jnp.arange(2 * 4 * 1.0).reshape(2, 4, 1)
    keys = jax.random.split(jax.random.key(0), 60)
    moved = np.asarray(jax.jit(jax.vmap(moved_by, (0, None)))(keys, embeddings))[..., 0]
    np.testing.assert_array_equal(np.sort(moved, axis=-1), np.broadcast_to(embeddings[..., 0], moved.shape))
    assert np.all(np.any(moved == np.asarray(embeddings)[None, ..., 0], axis=(1, 2)))
    assert len({tuple(one.ravel()) for one in moved}) > 10


@pytest.mark.slow
def test_noise_on_text_reaches_only_what_is_sent():
    config = text.TextConfig(
        num_sequences=2, vocabulary=20, width=8, length=3, depth=1, targets=1, lora_rank=2, distribution="words"
    )
    noisy = dataclasses.replace(config, defense=text.DefenseConfig("dp-sgd", {"norm": 1.0, "multiplier": 0.5}))
    updates = []
    for one in (config, noisy):
        task = text.prepare_text(one)
        updates.append(text.observe_text(one, task, 0, text.draw_text(one, 0)).update["params"])
    plain, changed = (one["attention_0"]["query"] for one in updates)
    assert not np.any(updates[1]["head"]["kernel"])
    assert not np.any(plain["lora_a"])
    assert np.std(changed["lora_a"]) == pytest.approx(0.25, rel=0.6)  # multiplier x norm / sequences
