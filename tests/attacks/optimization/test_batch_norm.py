"""Attacks that match BatchNorm statistics: the truth is their minimum, and the statistics help."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen

from jaxinvert import attacks, clients, jobs, models, search
from jaxinvert.attacks import Problem, initial_guess, objectives, registry
from jaxinvert.attacks.transformations import langevin_noise
from jaxinvert.clients import running_statistics
from jaxinvert.jobs.deployment import deployment_of
from jaxinvert.observation.observe import observe
from jaxinvert.observation.threat_models import LADDER
from jaxinvert.types import Batch
from tests.attacks.optimization.test_gias import PRIOR

SHAPE, MOMENTUM = (4, 6, 6, 1), models.BATCH_NORM_MOMENTUM


class Network(linen.Module):
    """Statistics per pixel and of hidden units, in train mode."""

    @linen.compact
    def __call__(self, x):
        x = linen.BatchNorm(use_running_average=False, momentum=MOMENTUM, name="norm_0")(x.reshape(x.shape[0], -1))
        x = jnp.tanh(linen.Dense(12, name="first")(x))
        x = linen.BatchNorm(use_running_average=False, momentum=MOMENTUM, name="norm_1")(x)
        return linen.Dense(3, name="head")(x)


@pytest.fixture(scope="module")
def client():
    model = models.from_linen(Network(), name="network", input_shape=SHAPE[1:], num_classes=3)
    params = model.init(jax.random.key(0))
    batch = Batch(jax.random.uniform(jax.random.key(1), SHAPE), jnp.array([0, 1, 2, 1]))
    update = clients.fedsgd(models.cross_entropy(model.apply))

    def sent(params, batch):
        measured = jax.tree.map(lambda leaf: leaf[None], model.batch_statistics(params, batch.inputs))
        return running_statistics.advance(params["batch_stats"], measured, momentum=MOMENTUM)

    observation = observe(update, params, batch, threat_model=LADDER["E"], batch_stats=sent(params, batch))
    problem = Problem(update, model, SHAPE[0], sent_statistics=sent, momentum=MOMENTUM)
    return SimpleNamespace(
        model=model, update=update, sent=sent, batch=batch, observation=observation, problem=problem
    )


def make(client, **settings):
    return attacks.batch_norm_leakage(client.problem, warmup=5, horizon=300, **settings)


def loss_at(attack, variables, observation):
    state = attack.init(jax.random.key(0), observation)._replace(variables=variables)
    return float(attack.step(jax.random.key(0), state, observation)[1].objective)


@pytest.mark.slow
def test_truth_explains_update_and_inferred_statistics(client):
    attack = make(client)
    assert loss_at(attack, client.batch.inputs, client.observation) < 1e-5
    assert loss_at(attack, 1 - client.batch.inputs, client.observation) > 1e-2


def test_the_statistics_help(client):
    def error(batch_norm):
        attack = make(client, batch_norm=batch_norm, tv=0.0, norm=0.0, learning_rate=0.05)
        found = jax.jit(search.run(attack, num_steps=300))(jax.random.key(0), client.observation)
        return float(jnp.abs(found.inputs.mean(axis=0) - client.batch.inputs.mean(axis=0)).mean())

    assert error(0.1) < 0.5 * error(0.0)


@pytest.mark.slow
def test_statistics_fix_the_brightness_that_the_update_cannot_see(client):
    """The network's first layer normalizes each pixel over the batch: darker images have the same update."""
    darker = client.batch._replace(inputs=0.5 * client.batch.inputs + 0.1)
    params, seen = client.observation.params, client.observation
    assert objectives.cosine(client.update(params, darker), seen.update) < 1e-5

    attack = attacks.spectral(client.problem, horizon=300, tv=0.0, learning_rate=0.1, guess=initial_guess.gray_noise)

    def error_of_mean(observation):
        found = jax.jit(search.run(attack, num_steps=300))(jax.random.key(0), observation)
        return float(jnp.abs(found.inputs.mean(axis=0) - client.batch.inputs.mean(axis=0)).mean())

    assert error_of_mean(seen) < 0.02 < 0.05 < error_of_mean(seen._replace(batch_stats=None))


@pytest.mark.parametrize("name", ["gias-latents", "gias_weights"])
def test_searches_with_a_generator_match_what_was_sent(name, client):
    """By hand: the logarithm of the cosine distance plus the weight times the distance of the statistics."""
    problem, given = client.problem._replace(prior=PRIOR), {"batch_norm": 0.7, "prior_weight": 0.0}
    if name == "gias_weights":
        attack = attacks.gias_weights(problem, **given)
    else:  # as a command line builds it
        entry = registry.REGISTRY[name]
        attack = entry.build(problem, {**entry.hyperparameters, **given}, 10.0)

    def losses(seen):
        state = attack.init(jax.random.key(2), seen)
        batch = Batch(attack.decode(state, seen).inputs, client.batch.labels)
        found, wanted = (
            running_statistics.recover(running, seen.params["batch_stats"], momentum=MOMENTUM)
            for running in (client.sent(seen.params, batch), seen.batch_stats)
        )
        of_update = objectives.cosine(client.update(seen.params, batch), seen.update)
        of_statistics = running_statistics.relative_distance(found, wanted)
        blind = seen._replace(batch_stats=None)
        measured = [attack.step(jax.random.key(0), state, sight)[1].attack_loss for sight in (seen, blind)]
        return measured, [jnp.log(of_update + 0.7 * of_statistics), jnp.log(of_update)]

    measured, expected = jax.jit(losses)(client.observation)
    np.testing.assert_allclose(measured, expected, rtol=1e-4)
    assert expected[0] > expected[1] + 0.01


def test_starts_at_the_public_picture(client):
    picture = jnp.full(SHAPE[1:], 0.25)
    start = make(client, start_images=picture).init(jax.random.key(0), client.observation).variables
    assert abs(float(start.mean()) - 0.25) < 0.05
    assert not jnp.array_equal(start[0], start[1])


def test_labels_through_a_sigmoid(client):
    attack = attacks.batch_norm_leakage(client.problem._replace(joint_labels=True), warmup=5, horizon=300)
    found = jax.jit(search.run(attack, num_steps=2))(jax.random.key(0), client.observation._replace(labels=None))
    assert found.labels.shape == (4, 3)
    assert not np.allclose(found.labels.sum(axis=1), 1)


@pytest.mark.parametrize("field", ["batch_stats", "local_training"])
def test_a_withheld_field_is_named(field, client):
    attack = make(client)
    observation = client.observation._replace(**{field: None})
    with pytest.raises(ValueError, match=rf"batch_norm_leakage needs observation\.{field}"):
        attack.step(jax.random.key(0), attack.init(jax.random.key(0), observation), observation)


@pytest.mark.slow
def test_see_through_gradients_uses_sent_statistics_where_there_are_any(client):
    attack = attacks.see_through_gradients(client.problem, num_seeds=2, horizon=300, warmup=5)
    found = jax.jit(search.run(attack, num_steps=300))(jax.random.key(0), client.observation)
    blind = jax.jit(search.run(attack, num_steps=300))(
        jax.random.key(0), client.observation._replace(batch_stats=None)
    )
    true_mean = client.batch.inputs.mean(axis=0)
    errors = [float(jnp.abs(result.inputs.mean(axis=0) - true_mean).mean()) for result in (found, blind)]
    assert errors[0] < 0.5 * errors[1]


def test_langevin_noise_has_its_scale_and_differs_by_tensor():
    steps = {"a": jnp.zeros((50, 50)), "b": jnp.zeros((50, 50))}
    noisy, _ = langevin_noise(0.2).update(steps, (), key=jax.random.key(0))
    # 2,500 draws: the standard error of the deviation is 0.003.
    assert abs(float(noisy["a"].std()) - 0.2) < 0.012
    assert not jnp.array_equal(noisy["a"], noisy["b"])


@pytest.mark.slow
def test_mini_batches_of_local_training_are_simulated():
    """Two steps on halves of the batch: still zero at the truth, which whole-batch statistics would not be."""
    model = models.from_linen(Network(), name="network", input_shape=SHAPE[1:], num_classes=3)
    config = jobs.JobConfig.of(
        client="fedavg", num_examples=4, local_batch_size=2, local_lr=0.1, batch_norm="train", threat_model="E"
    )
    deployment = deployment_of(config, model)
    params, update, sent = model.init(jax.random.key(0)), deployment.simulated_update(), deployment.sent_statistics()
    batch = Batch(jax.random.uniform(jax.random.key(1), SHAPE), jnp.array([0, 1, 2, 1]))
    seen = observe(
        update,
        params,
        batch,
        threat_model=LADDER["E"],
        local_training=config.local_training,
        batch_stats=sent(params, batch),
    )
    attack = attacks.batch_norm_leakage(Problem(update, model, SHAPE[0], sent_statistics=sent), horizon=10)
    assert loss_at(attack, batch.inputs, seen) < 1e-4
    assert loss_at(attack, batch.inputs[::-1], seen) > 1e-3


def test_the_group_agrees_on_a_mean_of_its_own_images(client):
    """Nothing but the group term, in a model that normalizes: seeds meet where they were on average."""
    problem = client.problem._replace(model=client.model._replace(mean=(0.5,), std=(0.25,)))
    nothing_else = dict.fromkeys(("matching", "batch_norm", "tv", "l2", "noise"), 0.0)
    attack = attacks.see_through_gradients(problem, num_seeds=4, horizon=80, warmup=1, **nothing_else)
    step, state = jax.jit(attack.step), attack.init(jax.random.key(0), client.observation)
    start = state.variables
    for count in range(80):
        state, _ = step(jax.random.key(count), state, client.observation)
    assert float(state.variables.std(axis=0).mean()) < 0.7 * float(start.std(axis=0).mean())
    assert abs(float(state.variables.mean() - start.mean())) < 0.1
