"""What is withheld cannot be read, and truth reaches an attack through the update and what is granted alone."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen

from jaxinvert import clients, defenses, jobs, models
from jaxinvert.clients import running_statistics
from jaxinvert.observation import threat_models
from jaxinvert.observation.observe import observe, observe_targets
from jaxinvert.observation.threat_models import LADDER, check_needs
from jaxinvert.types import Batch, LocalTraining, Observation

SURROGATE = jnp.full((2, 6, 6, 1), 0.5)


def observed(victim, batch, threat_model):
    return observe(
        victim.client_update,
        victim.params,
        batch,
        threat_model=threat_model,
        local_training=LocalTraining(0.1, 3),
        batch_stats={"mean": jnp.ones(2)},
        surrogate=SURROGATE,
        defense_parameters={"scale": 0.5},
        earlier_params=jax.tree.map(lambda leaf: leaf[None], victim.params),
        earlier_updates=jax.tree.map(lambda leaf: leaf[None], victim.observation.update),
    )


@pytest.mark.parametrize("preset", LADDER)
def test_an_observation_holds_the_granted_fields_and_no_other(victim, preset):
    observation = observed(victim, victim.batch, LADDER[preset])
    held = {field for field, value in observation._asdict().items() if value is not None}
    assert held == set(LADDER[preset].granted)


def test_each_preset_grants_what_the_one_before_it_grants():
    granted = [set(threat_model.granted) for threat_model in LADDER.values()]
    for smaller, larger in itertools.pairwise(granted):
        assert smaller < larger
    assert granted[0] == {"update", "earlier_updates"}
    assert granted[-1] == set(Observation._fields) == set(threat_models.MEANINGS)


def test_truth_is_in_the_update_and_the_granted_labels_only(victim):
    other = Batch(1 - victim.batch.inputs, (victim.batch.labels + 1) % 3)
    seen, seen_of_other = (
        observed(victim, batch, LADDER["E"])._replace(update=None, labels=None) for batch in (victim.batch, other)
    )
    jax.tree.map(np.testing.assert_array_equal, seen, seen_of_other)
    assert observed(victim, victim.batch, LADDER["D"]).labels is None


def test_the_parameters_of_a_defense_reach_only_who_set_the_training(victim):
    assert observed(victim, victim.batch, LADDER["B"]).defense is None
    assert observed(victim, victim.batch, LADDER["C"]).defense == {"scale": 0.5}
    assert victim.observation.defense == {}  # known to be none
    changed = observe(victim.client_update, victim.params, victim.batch, defense=lambda key, update: update)
    assert changed.defense is None  # there is one, of which nothing is known


def test_every_target_gets_its_own_draw_of_a_defense(victim):
    batches = jax.tree.map(lambda leaf: jnp.stack([leaf] * 2), victim.batch)
    seen = observe_targets(
        victim.client_update,
        victim.params,
        batches,
        defense=defenses.gaussian_noise(0.1),
        defense_parameters={"scale": 0.1},
        key=jax.random.key(0),
    )
    noise = jax.tree.map(lambda noisy, plain: noisy - plain[None], seen.update, victim.observation.update)
    assert float(jnp.std(noise["first"]["kernel"])) == pytest.approx(0.1, rel=0.2)
    correlation = np.corrcoef(*np.asarray(noise["first"]["kernel"]).reshape(2, -1))[0, 1]
    assert abs(correlation) < 0.2
    assert seen.defense == {"scale": 0.1}


def test_a_report_says_nothing_of_what_there_was_not():
    model = models.create("mlp", input_shape=(8, 8, 3), num_classes=10)
    one_round, two_rounds = (jobs.assumptions(jobs.JobConfig.of(rounds=rounds), model) for rounds in (1, 2))
    for sentences in (one_round["known"], one_round["unknown"]):
        assert not any("defense" in sentence or "earlier" in sentence for sentence in sentences)
    assert sum("earlier" in sentence for sentence in two_rounds["known"]) == 2


def test_every_round_of_a_job_is_that_of_the_model_which_the_mean_update_led_to():
    config = jobs.JobConfig.of(model="mlp", size=12, targets=2, rounds=3, server_lr=0.5)
    task = jobs.prepare(config)
    seen = task.observations
    sent = jax.tree.map(lambda earlier, last: jnp.stack([*earlier, last]), seen.earlier_params, seen.params)
    received = jax.tree.map(
        lambda earlier, last: jnp.concatenate([earlier, last[:, None]], axis=1), seen.earlier_updates, seen.update
    )
    gradient = clients.fedsgd(models.cross_entropy(task.model.apply))
    for number in range(3):
        params = jax.tree.map(lambda leaf, number=number: leaf[number], sent)
        found = jax.tree.map(lambda leaf, number=number: leaf[:, number], received)
        expected = jax.vmap(gradient, in_axes=(None, 0))(params, task.truth)
        jax.tree.map(lambda f, e: np.testing.assert_allclose(f, e, rtol=1e-4, atol=1e-6), found, expected)
        if number < 2:
            moved = jax.tree.map(lambda p, u: p - 0.5 * u.mean(axis=0), params, found)
            following = jax.tree.map(lambda leaf, number=number: leaf[number + 1], sent)
            jax.tree.map(lambda f, e: np.testing.assert_allclose(f, e, rtol=1e-5, atol=1e-7), following, moved)
    assert jobs.prepare(jobs.JobConfig.of(model="mlp", size=12, targets=2)).observations.earlier_updates is None
    eavesdropper = jobs.JobConfig.of(model="mlp", size=12, targets=2, rounds=2, threat_model="B").granted
    assert eavesdropper.earlier_params
    with pytest.raises(
        ValueError, match=r"rounds is 2, but attack 'dense-layer' uses one round only; dlg, .*, auto use all"
    ):
        jobs.JobConfig.of(attack="dense-layer", model="mlp", rounds=2)
    with pytest.raises(ValueError, match=r"server_lr is 0\.5, which only several rounds use"):
        jobs.JobConfig.of(server_lr=0.5)


def test_attacks_run_after_the_truth_is_gone():
    config = jobs.JobConfig.of(attack="dense-layer", model="mlp", size=12, targets=2)
    task = jobs.prepare(config)
    before = jobs.execute(config, task.program, task.observations)
    for leaf in jax.tree.leaves(task.truth):
        leaf.delete()
    after = jobs.execute(config, task.program, task.observations)
    np.testing.assert_array_equal(before.reconstructions.inputs, after.reconstructions.inputs)


@pytest.mark.parametrize("attack", ["inverting-gradients", "dense-layer"])
def test_noise_in_place_of_the_truth_changes_no_reconstruction(attack):
    """The evaluator's truth enters the scores, and nothing that is reconstructed or selected."""
    config = jobs.JobConfig.of(attack=attack, model="mlp", size=12, targets=2, restarts=2, steps=3)
    task = jobs.prepare(config)
    noise = jax.random.uniform(jax.random.key(9), task.truth.inputs.shape)
    poisoned = task._replace(truth=task.truth._replace(inputs=noise))
    found, found_beside_noise = (
        jobs.measure(config, each, jobs.execute(config, each.program, each.observations)) for each in (task, poisoned)
    )
    np.testing.assert_array_equal(found.reconstruction, found_beside_noise.reconstruction)
    assert found.summary["targets"] == found_beside_noise.summary["targets"]
    assert found.summary["quality"] != found_beside_noise.summary["quality"]


def test_what_targets_share_has_no_axis(victim):
    batches = jax.tree.map(lambda leaf: jnp.stack([leaf] * 3), victim.batch)
    seen = observe_targets(
        victim.client_update, victim.params, batches, threat_model=LADDER["D"], surrogate=SURROGATE
    )
    assert seen.num_examples == 1
    assert seen.surrogate.shape == SURROGATE.shape
    assert seen.local_training == (1.0, 1)
    assert seen.labels is None
    assert jax.tree.map(jnp.shape, seen.params) == jax.tree.map(jnp.shape, victim.params)
    jax.tree.map(
        lambda all_targets, one: np.testing.assert_allclose(all_targets[2], one, rtol=1e-5, atol=1e-7),
        seen.update,
        victim.observation.update,
    )
    hidden = observe_targets(victim.client_update, victim.params, batches, threat_model=LADDER["A"])
    assert hidden._replace(update=None) == Observation(None, None)


def test_every_missing_field_is_named():
    check_needs(LADDER["C"], ["update", "params"], attack="any")
    with pytest.raises(ValueError, match=r"my-attack needs what .*: params .*, labels "):
        check_needs(LADDER["A"], ["update", "params", "labels"], attack="my-attack")


class Normalized(linen.Module):
    """One BatchNorm layer in train mode, and the head."""

    @linen.compact
    def __call__(self, x):
        x = linen.BatchNorm(use_running_average=False, name="norm")(x)
        return linen.Dense(3, name="head")(x.reshape(x.shape[0], -1))


def normalizing_network():
    model = models.from_linen(Normalized(), name="normalized", input_shape=(4, 4, 2), num_classes=3)
    return model, model.init(jax.random.key(0))


def test_aggregated_clients_send_the_mean_of_their_statistics():
    model, params = normalizing_network()
    batch = Batch(jax.random.uniform(jax.random.key(1), (4, 4, 4, 2)), jnp.zeros(4, jnp.int32))
    config = jobs.JobConfig.of(batch_norm="train", threat_model="E", num_examples=2, aggregate=2)
    sent = jobs.deployment_of(config, model).sent_statistics()(params, batch)
    means = batch.inputs.reshape(2, 2, 4, 4, 2).mean(axis=(1, 2, 3))
    np.testing.assert_allclose(sent["norm"]["mean"], 0.1 * means.mean(axis=0), rtol=1e-5)


def test_a_job_in_train_mode_sends_the_statistics_of_its_own_batch():
    """One FedSGD step: what the server reads off the running statistics is the private batch's mean and variance."""

    model, params = normalizing_network()
    batches = Batch(jax.random.uniform(jax.random.key(1), (2, 5, 4, 4, 2)), jnp.zeros((2, 5), jnp.int32))
    config = jobs.JobConfig.of(batch_norm="train", threat_model="E", num_examples=5)
    assert config.granted.batch_stats
    assert not jobs.JobConfig.of(threat_model="E").granted.batch_stats
    assert not jobs.JobConfig.of(batch_norm="train", threat_model="D").granted.batch_stats
    seen = observe_targets(
        clients.fedsgd(models.cross_entropy(model.apply)),
        params,
        batches,
        threat_model=config.granted,
        running_statistics=jobs.deployment_of(config, model).sent_statistics(),
    )
    found = jax.vmap(
        lambda sent: running_statistics.recover(sent, params["batch_stats"], momentum=models.BATCH_NORM_MOMENTUM)
    )(seen.batch_stats)
    expected = batches.inputs.mean(axis=(1, 2, 3)), batches.inputs.var(axis=(1, 2, 3))
    np.testing.assert_allclose(found["norm"]["mean"], expected[0], atol=1e-5)
    np.testing.assert_allclose(found["norm"]["var"], expected[1], atol=1e-5)


class Dropping(linen.Module):
    """Dropout before BatchNorm: its statistics depend on the draws."""

    @linen.compact
    def __call__(self, x, train):
        x = linen.Dropout(0.5, deterministic=not train)(x)
        x = linen.BatchNorm(use_running_average=not train, name="norm")(x)
        return linen.Dense(3, name="head")(x.reshape(x.shape[0], -1))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["fedsgd", "fedavg"])
def test_statistics_come_with_the_draws_of_the_update(kind):
    modes = {"batch_norm": "train", "dropout": "train"}
    model = models.from_linen(Dropping(), name="dropping", input_shape=(4, 4, 2), num_classes=3, **modes)
    params = model.init(jax.random.key(0))
    batches = Batch(jax.random.uniform(jax.random.key(1), (2, 2, 4, 4, 2)), jnp.zeros((2, 2), jnp.int32))
    settings = {"client": kind} if kind == "fedsgd" else {"client": kind, "local_batch_size": 2}
    config = jobs.JobConfig.of(**modes, threat_model="E", num_examples=2, **settings)
    deployment, key = jobs.deployment_of(config, model), jax.random.key(5)
    seen = observe_targets(
        deployment.sent_update({}),
        params,
        batches,
        threat_model=config.granted,
        running_statistics=deployment.sent_statistics(),
        client_key=key,
        statistics_key=key,
    )
    for target, own in enumerate(jax.random.split(key, 2)):
        drawn = own if kind == "fedsgd" else jax.random.split(own, 1)[0]  # one step
        batch = jax.tree.map(lambda leaf: leaf[target], batches)  # noqa: B023
        mean = model.batch_statistics(params, batch.inputs, drawn)["norm"]["mean"]
        np.testing.assert_allclose(seen.batch_stats["norm"]["mean"][target], 0.1 * mean, rtol=1e-5)
        gradient = jax.grad(lambda p: model.drawn_loss_fn(p, batch, drawn))(params)  # noqa: B023
        rate = 1.0 if kind == "fedsgd" else config.local_training.learning_rate
        found = seen.update["params"]["head"]["kernel"][target]
        np.testing.assert_allclose(found, rate * gradient["params"]["head"]["kernel"], atol=1e-6)
        quiet = model.batch_statistics(params, batch.inputs)["norm"]["mean"]
        assert jnp.abs(mean - quiet).max() > 1e-2
    one = jax.tree.map(lambda leaf: leaf[0], batches)
    keys = jax.random.split(jax.random.key(0), jobs.deployment.NUM_DRAWS)
    mean = np.mean([deployment.sent_statistics()(params, one, k)["norm"]["mean"] for k in keys], axis=0)
    np.testing.assert_allclose(deployment.simulated_statistics()(params, one)["norm"]["mean"], mean, rtol=1e-5)


def test_networks_without_statistics_are_refused_where_clients_should_send_them():
    model = models.mlp(input_shape=(4, 4, 2), num_classes=3, features=(4,))
    batch = Batch(jnp.zeros((2, 4, 4, 2)), jnp.zeros(2, jnp.int32))
    for client in ("fedsgd", "fedavg"):
        config = jobs.JobConfig.of(batch_norm="train", threat_model="E", num_examples=2, client=client)
        sent = jobs.deployment_of(config, model).sent_statistics()
        with pytest.raises(ValueError, match="has no running statistics of BatchNorm layers"):
            sent(model.init(jax.random.key(0)), batch)
