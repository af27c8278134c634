"""A smooth network, six examples, and comparisons of trees, shared by the tests of clients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxinvert import models
from jaxinvert.types import Batch

NUM_EXAMPLES, FEATURES, NUM_CLASSES = 6, 5, 3


def apply(params, inputs):
    """Smooth, so that finite differences are exact to second order."""
    hidden = jnp.tanh(inputs @ params["first"])
    return hidden @ params["head"]["kernel"] + params["head"]["bias"][None]


LOSS = models.cross_entropy(apply)
RNG = np.random.default_rng(0)
PARAMS = {
    "first": RNG.normal(size=(FEATURES, 4)),
    "head": {"kernel": RNG.normal(size=(4, NUM_CLASSES)), "bias": RNG.normal(size=NUM_CLASSES)},
}
INPUTS, LABELS = RNG.normal(size=(NUM_EXAMPLES, FEATURES)), np.array([0, 2, 1, 1, 0, 2])
GRADIENT = jax.jit(jax.grad(LOSS))


@pytest.fixture
def double():
    """Everything in float64."""
    with jax.enable_x64(True):
        yield jax.tree.map(jnp.asarray, PARAMS), Batch(jnp.asarray(INPUTS), jnp.asarray(LABELS))


def single():
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), PARAMS)
    return params, Batch(jnp.asarray(INPUTS, jnp.float32), jnp.asarray(LABELS))


def assert_trees_close(found, expected, **tolerance):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    jax.tree.map(lambda f, e: np.testing.assert_allclose(f, e, **tolerance), found, expected)
