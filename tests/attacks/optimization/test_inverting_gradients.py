"""Inverting Gradients: its step against the paper's rule by hand, its schedule, its result, its null."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxinvert import search
from jaxinvert.attacks import inverting_gradients, objectives
from jaxinvert.attacks.schedules import step_decay
from jaxinvert.priors import regularizers
from jaxinvert.types import Batch


@pytest.mark.slow
def test_the_first_step_moves_every_pixel_by_the_rate_against_the_sign(victim):
    mean, std, tv, rate = 0.4, 0.25, 0.3, 0.05
    model = victim.model._replace(mean=(mean,), std=(std,))
    attack = inverting_gradients(victim.problem._replace(model=model), tv=tv, learning_rate=rate, horizon=100)
    state = attack.init(jax.random.key(0), victim.observation)
    z = state.variables

    def loss(z):
        x = z * std + mean
        distance = objectives.cosine(
            victim.client_update(victim.params, Batch(x, victim.batch.labels)), victim.observation.update
        )
        return distance + tv * regularizers.total_variation(z)

    after, info = attack.step(jax.random.key(0), state, victim.observation)
    np.testing.assert_allclose(info.attack_loss, loss(z), rtol=1e-4)
    # Adam's first step on a sign is the rate times the sign; then the box.
    expected = jnp.clip(z - rate * jnp.sign(jax.grad(loss)(z)), -mean / std, (1 - mean) / std)
    np.testing.assert_allclose(after.variables, expected, atol=1e-4)


def test_the_rate_drops_at_three_five_and_seven_eighths():
    rates = [float(step_decay(0.1, 4800)(step)) for step in (0, 1799, 1800, 2999, 3000, 4199, 4200, 4800)]
    np.testing.assert_allclose(rates, [0.1, 0.1, 0.01, 0.01, 1e-3, 1e-3, 1e-4, 1e-4], rtol=1e-5)


def test_recovers_the_example_far_better_than_from_another_clients_gradient(victim):
    """The control uses the update of a client that holds another image: it must not score."""
    attack = inverting_gradients(victim.problem, tv=0.0, horizon=400)
    solve = jax.jit(search.best_of(search.run(attack, num_steps=400), num_restarts=2))
    other = victim.client_update(victim.params, Batch(1 - victim.batch.inputs, victim.batch.labels))

    def error(observation):
        found = solve(jax.random.key(1), observation)
        return float(jnp.mean((found.inputs - victim.batch.inputs) ** 2))

    leaked, null = error(victim.observation), error(victim.observation._replace(update=other))
    assert leaked < 1e-3
    assert null > 0.05


def test_joint_labels_are_found_without_being_read(victim):
    """One example: the class and the image come out although the observation holds no labels."""
    attack = inverting_gradients(victim.problem._replace(joint_labels=True), tv=0.0, horizon=400)
    solve = jax.jit(search.best_of(search.run(attack, num_steps=400), num_restarts=2))
    found = solve(jax.random.key(1), victim.observation._replace(labels=None))
    assert found.labels.shape == (1, 3)
    assert int(jnp.argmax(found.labels)) == int(victim.batch.labels[0])
    assert float(jnp.mean((found.inputs - victim.batch.inputs) ** 2)) < 1e-2
