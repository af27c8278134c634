"""Images behind convolutions and a wide dense layer: recognizable, not from noise, and only where there are units."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxinvert import clients, data, metrics, models, search
from jaxinvert.attacks import Problem
from jaxinvert.attacks.optimization.cocktail_party_features import cocktail_party_features
from jaxinvert.audit import controls
from jaxinvert.observation.observe import observe_targets
from jaxinvert.types import Batch, Observation

NUM_IMAGES = 4


@pytest.fixture(scope="module")
def photos():
    return data.load("photos", split=f"test[:{NUM_IMAGES}]", size=24)


@pytest.fixture(scope="module")
def model(photos):
    return models.create(
        "wide-convnet", units=64, channels=24, input_shape=(24, 24, 3), mean=photos.mean, std=photos.std
    )


def attack(model, **options):
    return cocktail_party_features(Problem(clients.fedsgd(model.loss), model, NUM_IMAGES), **options)


@pytest.mark.slow
def test_photographs_are_recognizable_and_noise_gives_none(photos, model):
    """Two clients in one program: an honest one, and normal noise in place of its update."""
    batch = Batch(jnp.asarray(photos.images)[None], jnp.asarray(photos.labels)[None])
    client = clients.fedsgd(models.cross_entropy(model.apply))
    honest = observe_targets(client, model.init(jax.random.key(0)), batch)._replace(labels=None)
    noise = controls.random_update(jax.random.key(2), honest)
    update = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), honest.update, noise.update)
    solve = search.over_targets(search.run(attack(model, horizon=100), num_steps=100))
    found = jax.jit(solve)(jax.random.key(1), honest._replace(update=update))
    of_truth, of_noise = (metrics.evaluate(np.asarray(inputs), photos.images).psnr_db for inputs in found.inputs)
    assert of_truth.mean() > 22
    assert of_noise.max() < 17
    assert found.labels is None
    assert found.attack_loss[0] < 0.1 < found.attack_loss[1]


@pytest.mark.parametrize(
    ("options", "units", "message"),
    [
        ({}, 3, "at least 4 units, as many as images; 'params/dense' has 3"),
        ({"layer": "params/conv_0"}, 8, r"a dense layer with bias, params/conv_0; found \{'params/dense'"),
    ],
)
def test_layers_that_cannot_be_unmixed_are_refused(options, units, message):
    model = models.create("wide-convnet", units=units, channels=4, num_classes=2, input_shape=(24, 24, 3))
    params = jax.eval_shape(model.init, jax.random.key(0))
    update = jax.tree.map(lambda leaf: jnp.ones(leaf.shape), params)
    with pytest.raises(ValueError, match=message):
        attack(model, **options).init(jax.random.key(0), Observation(params, update))
