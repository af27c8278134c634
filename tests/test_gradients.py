"""Gradients against closed forms: softmax regression has one by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxinvert import gradients, models
from jaxinvert.types import Batch

LOSS = models.cross_entropy(lambda params, inputs: inputs @ params["kernel"] + params["bias"][None])
PARAMS = {"kernel": jax.random.normal(jax.random.key(0), (4, 3)), "bias": jnp.array([0.1, -0.2, 0.3])}
BATCH = Batch(jax.random.normal(jax.random.key(1), (5, 4)), jnp.array([0, 2, 1, 1, 0]))


def residual(batch):
    """Softmax minus one-hot, per example: d loss / d logits."""
    probabilities = jax.nn.softmax(batch.inputs @ PARAMS["kernel"] + PARAMS["bias"][None])
    return probabilities - jax.nn.one_hot(batch.labels, 3)


@pytest.mark.parametrize("chunk_size", [None, 1, 2])
def test_per_example_gradients_of_softmax_regression(chunk_size):
    found = gradients.per_example_gradients(LOSS, chunk_size=chunk_size)(PARAMS, BATCH)
    np.testing.assert_allclose(found["bias"], residual(BATCH), atol=1e-6)
    np.testing.assert_allclose(found["kernel"], np.einsum("bi,bj->bij", BATCH.inputs, residual(BATCH)), atol=1e-6)


def test_mean_gradient_is_the_mean_of_the_per_example_gradients():
    mean = gradients.mean_gradient(LOSS)(PARAMS, BATCH)
    each = gradients.per_example_gradients(LOSS)(PARAMS, BATCH)
    jax.tree.map(lambda m, e: np.testing.assert_allclose(m, e.mean(axis=0), atol=1e-6), mean, each)
