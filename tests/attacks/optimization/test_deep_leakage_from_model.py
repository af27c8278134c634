"""DLM and DLM+: the client's learning rate is not needed, and is found where the method finds it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxinvert import attacks, search, trees
from jaxinvert.attacks import objectives
from tests.conftest import NUM_CLASSES

RATE = 0.01


@pytest.fixture(scope="module")
def seen(victim):
    """One step of SGD, with nothing known of it."""
    update = trees.scaled(victim.observation.update, RATE)
    return victim.observation._replace(update=update, labels=None, local_training=None)


def solve(attack, observation):
    return jax.jit(search.best_of(search.run(attack, num_steps=1500), num_restarts=2))(jax.random.key(0), observation)


def test_dlm_plus_finds_the_image_at_any_learning_rate(victim, seen):
    found = solve(attacks.dlm_plus(victim.problem, learning_rate=0.03), seen)
    assert float(jnp.mean((found.inputs - victim.batch.inputs) ** 2)) < 1e-2
    assert int(jnp.argmax(found.labels[0])) == int(victim.batch.labels[0])


def test_hard_labels_give_the_learning_rate_away(victim, seen):
    attack = attacks.dlm_best_scale(victim.problem, learning_rate=0.03)
    found = solve(attack, seen)
    assert float(jnp.mean((found.inputs - victim.batch.inputs) ** 2)) < 1e-3
    assert float(found.info["scale"]) == pytest.approx(1 / RATE, rel=0.02)


@pytest.mark.parametrize("share", [1.0, 0.5, 0.0])
def test_soft_labels_leave_the_scale_open(share, victim, seen):
    """The true image with the label p - c (p - y) and k = c / rate explains the update for every c."""
    outputs = jax.nn.softmax(victim.model.apply(victim.params, victim.batch.inputs))
    soft = outputs - share * (outputs - jax.nn.one_hot(victim.batch.labels, NUM_CLASSES))
    attack = attacks.dlm(victim.problem, initial_scale=share / RATE)
    state = jax.jit(attack.init)(jax.random.key(0), seen)
    state = state._replace(
        variables=(((victim.batch.inputs - 0.5) / 0.25, jnp.log(soft + 1e-30)), state.variables[1])
    )
    _, info = jax.jit(attack.step)(jax.random.key(0), state, seen)
    np.testing.assert_allclose(info.attack_loss, 0, atol=1e-9)


def test_mean_scaled_distance_is_blind_to_the_scale_of_each_tensor():
    g = {"a": jnp.array([1.0, -3.0]), "b": jnp.zeros(2)}
    assert float(objectives.mean_scaled_l2(g, {"a": g["a"] * 7, "b": jnp.zeros(2)})) == pytest.approx(0, abs=1e-10)
    # |(1, -3)| has mean 2 and (1, 1) has mean 1: (0.5 - 1)^2 + (-1.5 - 1)^2 = 6.5.
    assert float(objectives.mean_scaled_l2(g, {"a": jnp.ones(2), "b": jnp.zeros(2)})) == pytest.approx(6.5)


def test_dlm_moves_the_scale_toward_what_the_images_want(victim, seen):
    """At the true image the loss is a parabola in k around 1 / rate: k rises from below and falls from above."""
    labels = jnp.where(jax.nn.one_hot(victim.batch.labels, NUM_CLASSES) > 0, 100.0, 0.0)
    for start, sign in ((60.0, 1), (140.0, -1)):
        attack = attacks.dlm(victim.problem, initial_scale=start)
        state = jax.jit(attack.init)(jax.random.key(0), seen)
        state = state._replace(variables=(((victim.batch.inputs - 0.5) / 0.25, labels), state.variables[1]))
        state, _ = jax.jit(attack.step)(jax.random.key(0), state, seen)
        assert sign * (float(state.variables[1]) - start) > 0.05
    assert attack.decode(state, seen).info["scale"].shape == ()
