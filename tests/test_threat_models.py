"""What is withheld cannot be read, and truth reaches an attack through the update and what is granted alone."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxinvert import job, threat_models
from jaxinvert.observe import observe, observe_targets
from jaxinvert.threat_models import LADDER, check_needs
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
    assert granted[0] == {"update"}
    assert granted[-1] == set(Observation._fields) == set(threat_models.MEANINGS)


def test_truth_is_in_the_update_and_the_granted_labels_only(victim):
    other = Batch(1 - victim.batch.inputs, (victim.batch.labels + 1) % 3)
    seen, seen_of_other = (
        observed(victim, batch, LADDER["E"])._replace(update=None, labels=None) for batch in (victim.batch, other)
    )
    jax.tree.map(np.testing.assert_array_equal, seen, seen_of_other)
    assert observed(victim, victim.batch, LADDER["D"]).labels is None


def test_attacks_run_after_the_truth_is_gone():
    config = job.JobConfig(attack="dense-layer", model="mlp", size=12, targets=2)
    task = job.prepare(config)
    before = job.execute(config, task.model, task.observations)
    for leaf in jax.tree.leaves(task.truth):
        leaf.delete()
    after = job.execute(config, task.model, task.observations)
    np.testing.assert_array_equal(before.reconstructions.inputs, after.reconstructions.inputs)


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
