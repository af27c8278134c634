"""Gradients against closed forms: softmax regression has one by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen

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


class OneNorm(linen.Module):
    """Mode given to the layer or to its call, as Flax allows."""

    train: bool
    in_call: bool

    @linen.compact
    def __call__(self, x):
        x = x.reshape(x.shape[0], -1)
        if self.in_call:
            x = linen.BatchNorm(name="norm")(x, use_running_average=not self.train)
        else:
            x = linen.BatchNorm(use_running_average=not self.train, name="norm")(x)
        return linen.Dense(3, name="head")(x)


@pytest.mark.parametrize("in_call", [False, True])
def test_per_example_gradients_refuse_batch_norm_in_train_mode(in_call):
    batch = Batch(jax.random.normal(jax.random.key(1), (5, 2, 2, 1)), BATCH.labels)
    train, evaluate = (
        models.from_linen(OneNorm(mode, in_call), name="one-norm", input_shape=(2, 2, 1), num_classes=3)
        for mode in (True, False)
    )
    params = evaluate.init(jax.random.key(0))
    refused = gradients.per_example_gradients(models.cross_entropy(train.apply), chunk_size=2)
    with pytest.raises(ValueError, match="BatchNorm layer 'norm' is in train mode"):
        refused(params, batch)
    # Refused there only: the mean gradient is still what a client computes, and eval mode is free.
    gradients.mean_gradient(models.cross_entropy(train.apply))(params, batch)
    found = gradients.per_example_gradients(models.cross_entropy(evaluate.apply))(params, batch)
    mean = gradients.mean_gradient(models.cross_entropy(evaluate.apply))(params, batch)
    jax.tree.map(lambda m, e: np.testing.assert_allclose(m, e.mean(axis=0), atol=1e-6), mean, found)
