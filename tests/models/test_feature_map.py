"""What dense layers read inside of models, against features computed by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxinvert import models
from jaxinvert.models import feature_map

INPUTS = jax.random.uniform(jax.random.key(1), (2, 8, 12, 3))


def created(name, **options):
    model = models.create(name, input_shape=INPUTS.shape[1:], mean=(0.5, 0.4, 0.3), std=(0.2, 0.2, 0.2), **options)
    return model, model.init(jax.random.key(0))


def test_the_map_is_what_the_convolutions_made():
    model, params = created("wide-convnet", units=6, channels=4)
    weights, x = params["params"], (INPUTS - jnp.array([0.5, 0.4, 0.3])[None, None, None]) / 0.2
    for name, stride in (("conv_0", 1), ("conv_1", 2)):
        padding, order = [(1, 1), (1, 1)], ("NHWC", "HWIO", "NHWC")
        x = lax.conv_general_dilated(x, weights[name]["kernel"], (stride, stride), padding, dimension_numbers=order)
        x = jnp.maximum(x + weights[name]["bias"][None, None, None], 0)
    found = jax.jit(lambda params, inputs: feature_map(model.apply, "params/dense", params, inputs))(params, INPUTS)
    assert found.shape == (2, 4, 6, 4)
    np.testing.assert_allclose(found, x, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "layer", "shape"),
    [
        ("mlp-5", "params/dense_0", (8, 12, 3)),  # the images themselves
        ("mlp-5", "params/head", (1, 1, 5)),
        ("lenet", "params/head", (2, 3, 12)),
    ],
)
def test_places_have_the_proportions_of_the_last_map(name, layer, shape):
    model, params = created(name)
    found = jax.eval_shape(lambda inputs: feature_map(model.apply, layer, params, inputs), INPUTS)
    assert found.shape == (2, *shape)


def test_pooled_maps_are_known_by_their_channels():
    model = models.create("convnet4", input_shape=(18, 9, 1))
    params = jax.eval_shape(model.init, jax.random.key(0))
    blank = jax.ShapeDtypeStruct((3, 18, 9, 1), jnp.float32)
    found = jax.eval_shape(lambda params, inputs: feature_map(model.apply, model.head, params, inputs), params, blank)
    assert found.shape == (3, 2, 1, 16)


@pytest.mark.slow
def test_what_cannot_be_seen_is_refused(victim):
    with pytest.raises(ValueError, match=r"'head' are only accessible in a Flax model"):
        feature_map(victim.model.apply, "head", victim.params, victim.batch.inputs)
    model, params = created("vit-plain-4-16-1")
    with pytest.raises(ValueError, match=r"reads \(2, 6, 48\), expected one vector of each example"):
        feature_map(model.apply, "params/patches", params, INPUTS)
