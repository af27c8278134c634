"""The first guess: its regression by hand, what it finds behind a linear client, and in noise."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxinvert.observe import observe
from jaxinvert.regression import directions, entries_of, kernel, regressed, ridge_regression
from jaxinvert.types import Batch

SHAPE = (2, 6, 6, 1)
PARAMS = {"kernel": jax.random.normal(jax.random.key(0), (40, 72)), "bias": jnp.zeros(40)}
BATCH = Batch(jnp.stack([jnp.linspace(0, 1, 36).reshape(6, 6, 1), jnp.full((6, 6, 1), 0.9)]), jnp.array([0, 1]))


def linear_client(params, batch):
    """Forty readings of every pixel of the batch, each of another strength, beside a part that is always there."""
    return {"kernel": 10 + params["kernel"] * (batch.inputs.ravel() - 0.5)[None], "bias": params["bias"]}


def error(guess, observation):
    found = jax.jit(guess)(jax.random.key(1), observation)
    assert found.shape == SHAPE
    assert 0 <= float(found.min()) <= float(found.max()) <= 1
    return float(jnp.mean((found - BATCH.inputs) ** 2))


def test_a_linear_law_is_predicted_where_it_was_not_seen():
    """Values are exactly linear in features, so the least of the ridges is best, and shrinks by a known share."""
    points = jax.random.normal(jax.random.key(0), (50, 3))
    points -= points.mean(axis=0, keepdims=True)
    values = points @ jnp.array([[1.0, 2.0], [0.0, -1.0], [3.0, 0.0]]) + 7
    new = jnp.array([1.0, -2.0, 0.5])
    predicted = ridge_regression(points @ points.T, points @ new, values)
    scale = float(jnp.mean(jnp.sum(points**2, axis=1)))
    expected = new @ np.linalg.solve(points.T @ points + 0.003 * scale * np.eye(3), points.T @ (values - 7)) + 7
    np.testing.assert_allclose(predicted, expected, rtol=1e-4)


def test_where_values_have_nothing_to_do_with_features_their_mean_is_predicted():
    points, values = jax.random.normal(jax.random.key(0), (40, 30)), jax.random.normal(jax.random.key(1), (40, 500))
    points -= points.mean(axis=0, keepdims=True)
    predicted = ridge_regression(points @ points.T, points @ points[0], values)
    mean = values.mean(axis=0)
    assert float(jnp.linalg.norm(predicted - mean)) < 0.5 * float(jnp.linalg.norm(values[0] - mean))


def test_every_layer_has_the_same_say_and_constant_ones_have_none():
    wide, narrow = jax.random.normal(jax.random.key(0), (20, 8)), jax.random.normal(jax.random.key(1), (20, 3))
    gram, likeness = kernel([wide, 1e-3 * narrow, jnp.ones((20, 5))], [wide[0], 1e-3 * narrow[0], jnp.ones(5)])
    np.testing.assert_allclose(jnp.trace(gram), 2 * 20, rtol=1e-5)
    np.testing.assert_allclose(likeness, gram[0], rtol=1e-3, atol=1e-5)


def test_large_layers_are_read_at_the_same_random_places_and_biases_are_not():
    update = {"a": jnp.arange(10_000.0).reshape(100, 100), "b": jnp.ones(3), "c": jnp.full((2, 2), 3.0)}
    entries = entries_of(jax.random.key(0), update)
    large, small = directions(update, entries)
    np.testing.assert_allclose(small, 0.5)
    assert large.shape == (4096,)
    np.testing.assert_allclose(large, entries[0] / jnp.linalg.norm(update["a"]), rtol=1e-5)
    (only,) = directions({"b": jnp.full(4, 2.0)}, entries_of(jax.random.key(0), {"b": jnp.ones(4)}))
    np.testing.assert_allclose(only, 0.5)


def test_finds_large_shapes_of_both_images_in_an_update_of_any_scale_and_none_in_noise():
    observation = observe(linear_client, PARAMS, BATCH)
    guess = regressed(linear_client, batch_shape=SHAPE, num_simulations=300)
    found = error(guess, observation)
    assert found < 0.015
    scaled = observation._replace(update=jax.tree.map(lambda leaf: 100 * leaf, observation.update))
    assert error(guess, scaled) == pytest.approx(found, rel=0.1)
    noise = {"kernel": 10 + 0.3 * jax.random.normal(jax.random.key(5), (40, 72)), "bias": jnp.zeros(40)}
    assert error(guess, observation._replace(update=noise)) > 0.05


def test_blind_to_the_update_the_mean_of_known_pictures_is_left():
    observation = observe(linear_client, PARAMS, BATCH)
    blind = regressed(
        lambda params, batch: jax.tree.map(jnp.ones_like, params), batch_shape=SHAPE, num_simulations=50
    )
    guess = jax.jit(blind)(jax.random.key(1), observation)
    assert float(jnp.abs(guess - 0.5).max()) < 0.2


def test_says_what_it_lacks():
    with pytest.raises(ValueError, match="num_simulations is 1, a regression needs at least 2"):
        regressed(linear_client, batch_shape=SHAPE, num_simulations=1)
    guess = regressed(linear_client, batch_shape=SHAPE, num_simulations=2)
    with pytest.raises(ValueError, match="labels"):
        guess(jax.random.key(0), observe(linear_client, PARAMS, BATCH)._replace(labels=None))
