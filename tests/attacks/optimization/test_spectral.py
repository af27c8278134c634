"""Spectral matching: its loss by hand, its result and its null, and what makes it quick."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxinvert import search
from jaxinvert.attacks import objectives, registry, spectral
from jaxinvert.attacks.initial_guess import gray_noise, regressed
from jaxinvert.priors import parametrizations, regularizers
from jaxinvert.types import Batch
from tests.conftest import SHAPE


def error(found, victim):
    return float(jnp.mean((found.inputs - victim.batch.inputs) ** 2))


def solved(attack, observation, *, steps):
    return jax.jit(search.run(attack, num_steps=steps))(jax.random.key(1), observation)


def test_the_prior_multiplies_the_distance(victim):
    attack = spectral(victim.problem, tv=0.7, horizon=100, guess=gray_noise)
    state = jax.jit(attack.init)(jax.random.key(0), victim.observation)
    x = attack.decode(state, victim.observation).inputs
    _, info = jax.jit(attack.step)(jax.random.key(0), state, victim.observation)
    simulated = jax.jit(victim.client_update)(victim.params, Batch(x, victim.batch.labels))
    distance = objectives.kernel_cosine(simulated, victim.observation.update)
    expected = distance * np.exp(0.7 * float(regularizers.total_variation(x)))
    np.testing.assert_allclose(info.attack_loss, expected, rtol=1e-4)


def test_recovers_the_example_far_better_than_from_another_clients_gradient(victim):
    """The control uses the update of a client that holds another image: it must not score."""
    attack = spectral(victim.problem, horizon=300, guess=gray_noise)
    other = victim.client_update(victim.params, Batch(1 - victim.batch.inputs, victim.batch.labels))
    leaked = solved(attack, victim.observation, steps=300)
    assert error(leaked, victim) < 1e-4
    assert error(solved(attack, victim.observation._replace(update=other), steps=300), victim) > 0.05


def test_starts_near_the_guess_and_restarts_differ(victim):
    picture = 0.25 + 0.5 * victim.batch.inputs
    attack = spectral(victim.problem, guess=lambda problem: lambda observation: picture)
    init = jax.jit(attack.init)
    starts = jnp.stack([init(jax.random.key(seed), victim.observation).variables for seed in range(8)])
    found = jax.vmap(parametrizations.spectrum(SHAPE).decode)(starts)
    np.testing.assert_allclose(found.mean(axis=0), picture, atol=0.03)
    assert 0.005 < float(found.std(axis=0).mean()) < 0.05


def test_a_guess_needs_labels(victim):
    with pytest.raises(ValueError, match="a guess needs known labels"):
        spectral(
            victim.problem._replace(joint_labels=True), guess=lambda problem: lambda observation: victim.batch.inputs
        )


def test_images_to_start_from_take_the_place_of_a_guess(victim):
    def guess(problem):
        return lambda observation: victim.batch.inputs

    def start(**options):
        return spectral(victim.problem, **options).init(jax.random.key(0), victim.observation).variables

    picture = 1 - victim.batch.inputs
    images = parametrizations.spectrum(SHAPE, around=picture)
    around = images.project(images.init(jax.random.key(0)))
    np.testing.assert_allclose(start(start_images=picture), around, atol=1e-5)
    np.testing.assert_allclose(start(start_images=picture, guess=guess), around, atol=1e-5)


@pytest.mark.slow
def test_by_name_it_guesses_where_the_network_has_a_head_and_nobody_adapts(victim):
    def start(problem):
        attack = registry.REGISTRY["spectral"].build(problem, {}, 100)
        return attack.init(jax.random.key(0), victim.observation).variables

    gray = spectral(victim.problem, guess=gray_noise).init(jax.random.key(0), victim.observation).variables
    guess = regressed(victim.problem)(victim.observation)
    headless = victim.problem._replace(model=victim.model._replace(head=""))
    adapting = victim.problem._replace(objective=objectives.angular)
    np.testing.assert_allclose(start(victim.problem), parametrizations.near(jax.random.key(0), guess), atol=1e-4)
    with_labels = registry.REGISTRY["spectral"].build(victim.problem._replace(joint_labels=True), {}, 100)
    assert with_labels.init(jax.random.key(0), victim.observation).variables[0].shape == SHAPE
    assert bool(jnp.all(start(headless) == gray))
    assert bool(jnp.all(start(adapting) == gray))


def test_labels_are_found_where_they_are_variables(victim):
    attack = spectral(victim.problem._replace(joint_labels=True), horizon=400)
    found = solved(attack, victim.observation._replace(labels=None), steps=400)
    assert int(jnp.argmax(found.labels)) == int(victim.batch.labels[0])
    assert error(found, victim) < 1e-2


@pytest.mark.slow
def test_where_the_update_is_noise_the_prior_keeps_its_weight(victim):
    """Added to the loss, a weight fit for exact updates would leave the picture as rough as the noise."""
    leaves, structure = jax.tree.flatten(victim.observation.update)
    keys = jax.random.split(jax.random.key(5), len(leaves))
    noisy = [g + jnp.std(g) * jax.random.normal(k, g.shape) for g, k in zip(leaves, keys)]
    observation = victim.observation._replace(update=structure.unflatten(noisy))

    def roughness(tv):
        attack = spectral(victim.problem, tv=tv, horizon=200, guess=gray_noise)
        return float(regularizers.total_variation(solved(attack, observation, steps=200).inputs))

    assert roughness(3.0) < 0.7 * roughness(0.0)
