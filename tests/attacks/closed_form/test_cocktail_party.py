"""Independent components: planted sources come back, and photographs out of a dense layer's gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxinvert import clients, data, models
from jaxinvert.attacks import Problem
from jaxinvert.attacks.closed_form.cocktail_party import cocktail_party
from jaxinvert.attacks.closed_form.independent_components import (
    balanced_channels,
    independent_components,
    spatial_differences,
)
from jaxinvert.observation.observe import observe
from jaxinvert.types import Batch, Observation


def best_correlations(found, truth):
    """Of each true row with the row that is most like it."""
    return np.abs(np.corrcoef(found, truth)[: len(found), len(found) :]).max(axis=0)


@pytest.mark.parametrize("missing", [0, 2])
def test_laplacian_sources_come_back_from_as_many_dimensions_as_they_span(missing):
    rng = np.random.default_rng(0)
    sources = rng.laplace(size=(5 - missing, 4000))
    mixtures = jnp.asarray(rng.normal(size=(5, 5 - missing)) @ sources, jnp.float32)
    start = jax.random.normal(jax.random.key(0), (5, 5))
    unmixing = independent_components(start, mixtures, num_components=5 - missing, num_steps=60)
    assert not np.any(unmixing[:missing])
    assert best_correlations(np.asarray(unmixing[missing:] @ mixtures), sources).min() > 0.99


def test_spatial_differences_of_a_ramp_are_equal_and_of_single_pixels_the_pixels():
    ramp = jnp.arange(12.0).reshape(1, -1)
    np.testing.assert_allclose(
        spatial_differences(ramp, (3, 4, 1))[0, :8] - spatial_differences(ramp, (3, 4, 1))[0, 0], 0
    )
    np.testing.assert_allclose(spatial_differences(ramp, (1, 1, 12)), ramp - 5.5)


def test_balanced_channels_are_of_one_strength_but_for_dead_ones():
    strengths = jnp.array([1.0, 0.1, 1e-6, 0.0])
    samples = jax.random.normal(jax.random.key(0), (3, 500, 4)) * strengths[None, None]
    balanced = balanced_channels(samples.reshape(3, -1), 4).reshape(3, -1, 4)
    found = jnp.sqrt(jnp.mean(balanced**2, axis=(0, 1)))
    np.testing.assert_allclose(found, strengths / (strengths + 0.01), rtol=0.1)


@pytest.fixture(scope="module")
def photos():
    return data.load("photos", split="test[:6]")


@pytest.mark.slow
def test_photographs_are_recognizable_and_a_foreign_gradient_is_not(photos):
    model = models.create("mlp", features=(64,), mean=photos.mean, std=photos.std)
    client = clients.fedsgd(models.cross_entropy(model.apply))
    batch = Batch(jnp.asarray(photos.images), jnp.asarray(photos.labels))
    params = model.init(jax.random.key(0))
    solve = jax.jit(cocktail_party(Problem(client, model, 6)))
    found = solve(jax.random.key(1), observe(client, params, batch))
    truth = photos.images.reshape(6, -1)
    assert best_correlations(found.inputs.reshape(6, -1), truth).mean() > 0.9
    assert found.info["valid"].all()
    assert float(found.attack_loss) < 1e-3  # the right space
    noise = jax.tree.map(lambda leaf: jax.random.normal(jax.random.key(2), leaf.shape), params)
    null = solve(jax.random.key(1), Observation(params, noise))
    assert best_correlations(null.inputs.reshape(6, -1), truth).mean() < 0.3
    assert float(null.attack_loss) > 0.5
    nothing = solve(jax.random.key(1), Observation(params, jax.tree.map(jnp.zeros_like, params)))
    assert np.all(np.isfinite(nothing.inputs))
    assert float(nothing.attack_loss) == 1


def test_more_images_than_units_are_refused(photos):
    model = models.create("mlp", features=(4,))
    params = model.init(jax.random.key(0))
    with pytest.raises(ValueError, match="at least 6 units, as many as images; this one has 4"):
        cocktail_party(Problem(clients.fedsgd(model.loss), model, 6))(jax.random.key(0), Observation(params, params))
