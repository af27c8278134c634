"""The attack `auto`: what it takes follows from what the server sees, and what is not explained is searched for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxinvert import jobs
from jaxinvert.audit.attacking import blind_attack
from jaxinvert.jobs import automatic
from jaxinvert.types import Reconstruction

PERCEPTRON = jobs.JobConfig.of(attack="auto", model="mlp-32", size=12, targets=2, restarts=1, steps=20)


@pytest.fixture(scope="module")
def perceptron():
    return jobs.prepare(PERCEPTRON)


def executed(config, task, **changed):
    observations = task.observations._replace(**changed)
    return jobs.execute(config, task.program, observations)


def test_one_example_behind_a_dense_layer_is_read_in_closed_form(perceptron):
    execution = executed(PERCEPTRON, perceptron)
    np.testing.assert_allclose(execution.reconstructions.inputs, perceptron.truth.inputs, atol=1e-5)
    assert not execution.history
    assert execution.choice == "dense-layer (exact: one example) explains 2 of 2 updates"
    assert jobs.measure(PERCEPTRON, perceptron, execution).summary["choice"] == execution.choice


@pytest.mark.slow
def test_an_update_that_the_closed_form_does_not_explain_is_searched_for(perceptron):
    """The second client's first layer is noise: no single example causes it."""
    update = jax.tree.map(lambda leaf: leaf, perceptron.observations.update)
    layer = update["params"]["dense_0"]["kernel"]
    noise = jnp.std(layer[1]) * jax.random.normal(jax.random.key(0), layer[1].shape)
    update["params"]["dense_0"]["kernel"] = layer.at[1].set(noise)
    execution = executed(PERCEPTRON, perceptron, update=update)
    np.testing.assert_array_equal(execution.reconstructions.info["closed_form"], [True, False])
    np.testing.assert_allclose(execution.reconstructions.inputs[0], perceptron.truth.inputs[0], atol=1e-5)
    assert execution.choice.endswith("explains 1 of 2 updates; whitened for the others")
    assert list(execution.history["step"])[-1] == PERCEPTRON.search.steps


def test_images_of_a_closed_form_keep_its_own_order_of_labels():
    images = jnp.zeros((2, 2, 4, 4, 1))
    exact = Reconstruction(images + 1, jnp.array([[3, 1], [0, 0]]), jnp.zeros(2), {})
    for searched in (jnp.array([[1, 3], [2, 4]]), jax.nn.one_hot(jnp.array([[1, 3], [2, 4]]), 5)):
        found = automatic.merged(exact, Reconstruction(images, searched, jnp.ones(2), {}), np.array([True, False]))
        assert found.labels is not None
        classes = found.labels if found.labels.ndim == 2 else found.labels.argmax(axis=-1)
        np.testing.assert_array_equal(classes, [[3, 1], [2, 4]])
    unlabeled = automatic.merged(exact, Reconstruction(images, None, jnp.ones(2), {}), np.array([True, False]))
    assert unlabeled.labels is None


@pytest.mark.parametrize("labels", ["known", "joint"])
def test_signs_have_the_rank_of_one_example_and_do_not_pass_for_one(perceptron, labels):
    """The ranks of an update do not tell that a client has sent signs; simulating the client does."""
    config = PERCEPTRON.replace(labels=labels)
    observations = perceptron.observations._replace(update=jax.tree.map(jnp.sign, perceptron.observations.update))
    assert automatic.choose(config, observations, perceptron.model.input_shape).closed_form == "dense-layer"
    closed = perceptron.program.by_closed_form("dense-layer")
    read = closed.solve(jax.random.key(0), observations, {})
    assert float(read.attack_loss.max()) < 1e-3  # the layer is explained, by an image that no client has
    if labels == "joint":
        observations = observations._replace(labels=None)
    assert not automatic.explained(closed.shares_explained, observations, read).any()
    honest = closed.solve(jax.random.key(0), perceptron.observations, {})
    seen = perceptron.observations._replace(labels=observations.labels)
    assert automatic.explained(closed.shares_explained, seen, honest).all()


def test_what_only_the_search_uses_is_no_hindrance_to_a_closed_form():
    config = PERCEPTRON.replace(labels="restored", rounds=2, server_lr=0.1, tv=0.1, lr=0.1)
    closed = automatic.closed_form_job(config, "dense-layer")
    attacker = closed.attacker
    assert (attacker.attack, attacker.labels, attacker.hyperparameters) == ("dense-layer", "known", {})
    assert closed.observation.rounds == 1


def test_a_closed_form_compiles_once_for_attack_and_controls(perceptron):
    program = perceptron.program.by_closed_form("dense-layer")
    assert perceptron.program.by_closed_form("dense-layer") is program
    assert program.config.attacker.attack == "dense-layer"


@pytest.mark.parametrize(
    ("changed", "taken"),
    [
        ({}, "dense-layer"),
        ({"model": "mlp-unbiased-64-32"}, "dense-chain"),
        ({"model": "mlp-unbiased-64-32", "num_examples": 2}, None),
        ({"num_examples": 2}, "exact-batch"),
        ({"num_examples": 2, "client": "fedavg"}, None),
        ({"num_examples": 2, "aggregate": 2, "targets": 1}, None),
        ({"model": "small-convnet", "size": 12}, None),
        ({"model": "lenet", "size": None}, "rgap"),
        ({"model": "lenet", "size": None, "client": "fedavg"}, None),
        ({"client": "fedavg", "local_optimizer": "momentum", "local_epochs": 2}, "dense-layer"),
        ({"client": "fedavg", "local_optimizer": "adam"}, None),
        ({"client": "fedavg", "local_weight_decay": 0.01}, None),
        ({"defense": "clip"}, "dense-layer"),
        ({"defense": "sign"}, None),
        ({"defense": "clip+gaussian"}, None),
    ],
)
def test_the_choice_follows_from_network_batch_and_client(changed, taken):
    config = PERCEPTRON.replace(**changed)
    task = jobs.prepare(config)
    choice = automatic.choose(config, task.observations, task.model.input_shape)
    assert choice.closed_form == taken
    assert choice.reason


@pytest.mark.parametrize(
    ("changed", "search"),
    [
        ({}, "whitened"),
        ({"labels": "restored"}, "whitened"),
        ({"client": "fedavg"}, "whitened"),
        ({"defense": "clip"}, "whitened"),
        ({"labels": "joint"}, "spectral"),
        ({"rounds": 2, "server_lr": 0.1}, "spectral"),
        ({"defense": "percentile-noise"}, "spectral"),
        ({"defense": "clip+gaussian"}, "spectral"),
    ],
)
def test_noise_is_not_whitened(changed, search):
    config = PERCEPTRON.replace(**changed)
    assert automatic.search_for(config) == search
    assert automatic.search_in_words(config).startswith(search)


@pytest.mark.slow
def test_lanes_are_counted_for_the_search(perceptron):
    """The closed form, which would be timed otherwise, has none."""
    measured = []

    def program_for(config):
        measured.append(config.attacker.attack)
        return jobs.Program(config, perceptron.model)

    costs = jobs.chunk_costs(PERCEPTRON.replace(steps=1), program_for, perceptron.observations)
    assert set(measured) == {"whitened"}
    assert all(cost.steps_per_second > 0 for cost in costs)


def test_jobs_that_may_take_a_closed_form_run_one_by_one(perceptron):
    assert not perceptron.program.joins_jobs
    assert not perceptron.program.by_closed_form("dense-layer").joins_jobs
    assert jobs.Program(PERCEPTRON.replace(attack="spectral"), perceptron.model).joins_jobs
    alone = jobs.execute_jobs([PERCEPTRON] * 2, perceptron.program, [perceptron.observations] * 2)
    assert [one.num_steps for one in alone] == [0, 0]


def test_the_blind_control_shows_no_image(perceptron):
    """A closed form would read it from the update, which the control must not see."""
    shown = blind_attack(PERCEPTRON, perceptron, None, lambda what, progress: None, {})
    assert float(np.abs(shown - np.asarray(perceptron.truth.inputs)).mean(axis=(1, 2, 3, 4)).min()) > 0.05
