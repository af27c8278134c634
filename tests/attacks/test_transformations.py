"""Langevin noise of the right size in every tensor, and medians where they belong."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import ndimage

from jaxinvert.attacks import inverting_gradients
from jaxinvert.attacks.transformations import median_filter, median_of_neighbors
from tests.conftest import SHAPE


def test_medians_equal_scipy():
    images = jax.random.uniform(jax.random.key(0), (2, 6, 5, 3))
    expected = ndimage.median_filter(np.asarray(images), size=(1, 3, 3, 1), mode="nearest")
    np.testing.assert_array_equal(median_of_neighbors(images), expected)


def test_every_second_step_ends_in_medians():
    optimizer = optax.chain(optax.sgd(0.5), median_filter(every=2))
    images = jax.random.uniform(jax.random.key(0), (1, 6, 6, 1))
    grad = jax.random.uniform(jax.random.key(1), images.shape)
    state = optimizer.init(images)
    for step in range(1, 5):
        updates, state = optimizer.update(grad, state, images)
        plain = images - 0.5 * grad
        expected = median_of_neighbors(plain) if step % 2 == 0 else plain
        images = optax.apply_updates(images, updates)
        np.testing.assert_allclose(images, expected, atol=1e-6)


def test_filtered_images_are_smoother(victim):
    def last_iterate(median_every):
        attack = inverting_gradients(victim.problem, tv=0.0, horizon=4, median_every=median_every)
        state = jax.jit(attack.init)(jax.random.key(0), victim.observation)
        for count in range(2):
            state, _ = jax.jit(attack.step)(jax.random.key(count), state, victim.observation)
        return state.variables

    assert float(jnp.std(last_iterate(2))) < 0.8 * float(jnp.std(last_iterate(None)))


def test_refusals(victim):
    with pytest.raises(ValueError, match="at least 1, got 0"):
        median_filter(every=0)
    with pytest.raises(ValueError, match="median_every filters images"):
        inverting_gradients(victim.problem._replace(joint_labels=True), median_every=2)
    with pytest.raises(ValueError, match="median_filter needs the images"):
        median_filter(every=1).update(jnp.ones(SHAPE), median_filter(every=1).init(jnp.ones(SHAPE)))
