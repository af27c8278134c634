"""A group of seeds: registration undoes shifts, agreement begins when it should, and the best seed is returned."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxinvert import trees
from jaxinvert.attacks.group_consistency import consistent_group, registered_mean
from jaxinvert.attacks.matching import search_inputs
from jaxinvert.priors import parametrizations
from jaxinvert.priors.regularizers import weighted
from tests.conftest import SHAPE


def test_registration_undoes_shifts():
    image = jax.random.uniform(jax.random.key(0), (1, 12, 10, 3))
    # Most seeds agree, so that the plain mean is dominated by them; one is shifted.
    seeds = jnp.stack([image, image, image, jnp.roll(image, (2, -3), axis=(1, 2))])
    np.testing.assert_allclose(registered_mean(seeds), image, atol=1e-6)
    assert float(jnp.abs(jnp.mean(seeds, axis=0) - image).max()) > 0.05


def test_the_group_can_do_without_registration(victim):
    """One of four seeds is shifted: registered all agree, while the plain mean differs from each of them."""
    losses = []
    for registration in (0.0, 1.0):
        attack = make_group(weight=1.0, start=0, registration=registration)
        state = jax.jit(attack.init)(jax.random.key(0), victim.observation)
        seed = state.variables[0]
        shifted = jnp.stack([seed, seed, seed, jnp.roll(seed, 1, axis=1)])
        state = state._replace(variables=shifted)
        images = jnp.clip(shifted, 0, 1)
        expected = jnp.mean(images, axis=0) if registration == 0 else registered_mean(images)
        _, info = jax.jit(attack.step)(jax.random.key(1), state, victim.observation)
        distances = jnp.sqrt(jnp.sum(jnp.square(images - expected[None]), axis=(1, 2, 3, 4)))
        np.testing.assert_allclose(info.attack_loss, distances.min(), rtol=1e-5, atol=1e-5)
        losses.append(float(info.attack_loss))
    assert losses[1] < 1e-5 < 0.1 < losses[0]


def make_group(weight, start, registration=1.0):
    def one_seed(group_term):
        return search_inputs(
            lambda observation, batch: 0.0 * jnp.sum(batch.inputs),
            regularizer=weighted((weight, group_term)),
            optimizer=optax.sgd(0.1),
            parametrization=parametrizations.pixels(SHAPE),
            name="nothing but the group",
        )

    return consistent_group(one_seed, num_seeds=4, start=start, registration=registration)


def spread(state):
    return float(jnp.std(state.variables, axis=0).mean())


def test_seeds_stay_apart_until_the_group_comes_together(victim):
    attack = make_group(weight=1.0, start=3)
    state = jax.jit(attack.init)(jax.random.key(0), victim.observation)
    spreads = [spread(state)]
    for count in range(6):
        state, info = jax.jit(attack.step)(jax.random.key(count), state, victim.observation)
        spreads.append(spread(state))
        assert (float(info.attack_loss) > 0) == (count >= 3)
    assert spreads[0] == spreads[3] > spreads[4] > spreads[6]


def test_losses_from_before_do_not_compete(victim):
    """Without the group term the loss is 0, which nothing afterwards could beat."""
    attack = make_group(weight=1.0, start=2)
    state = jax.jit(attack.init)(jax.random.key(0), victim.observation)
    for count in range(4):
        state, _ = jax.jit(attack.step)(jax.random.key(count), state, victim.observation)
        assert (float(state.best_loss) == 0) == (count < 2)


def test_returns_the_seed_with_the_lowest_loss(victim):
    def one_seed(group_term):
        del group_term
        return search_inputs(
            lambda observation, batch: trees.tree_norm(batch.inputs - 0.5),
            optimizer=optax.sgd(0.0),
            parametrization=parametrizations.pixels(SHAPE),
            name="distance from gray",
        )

    attack = consistent_group(one_seed, num_seeds=5, start=100)
    state = jax.jit(attack.init)(jax.random.key(0), victim.observation)
    starts = state.variables
    state, _ = jax.jit(attack.step)(jax.random.key(0), state, victim.observation)
    found = attack.decode(state, victim.observation)
    distances = jnp.linalg.norm((starts - 0.5).reshape(5, -1), axis=1)
    np.testing.assert_array_equal(found.inputs, starts[jnp.argmin(distances)])
    np.testing.assert_allclose(found.attack_loss, distances.min(), rtol=1e-6)
