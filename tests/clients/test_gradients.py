"""Gradients against closed forms: softmax regression has one by hand."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen

from jaxinvert import models
from jaxinvert.attacks import objectives
from jaxinvert.clients import gradients
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


@pytest.mark.parametrize("chunk_size", [1, 2, 5, 9])
def test_chunks_add_up_to_the_mean_gradient(chunk_size):
    found = gradients.mean_gradient(LOSS, chunk_size=chunk_size)(PARAMS, BATCH)
    expected = gradients.mean_gradient(LOSS)(PARAMS, BATCH)
    jax.tree.map(lambda f, e: np.testing.assert_allclose(f, e, rtol=1e-5, atol=1e-7), found, expected)


def matching_loss(network, params, chunk_size, batch):
    gradient = gradients.mean_gradient(models.cross_entropy(network.apply), chunk_size=chunk_size)
    return objectives.squared_l2(gradient(params, batch), jax.tree.map(jnp.ones_like, params))


@pytest.mark.slow
def test_derivatives_in_inputs_and_soft_labels_are_the_same_in_chunks():
    network = models.create("small-convnet", width=4, input_shape=(8, 8, 3))
    params = network.init(jax.random.key(0))
    labels = jax.nn.softmax(jax.random.normal(jax.random.key(1), (6, 10)))
    batch = Batch(jax.random.uniform(jax.random.key(2), (6, 8, 8, 3)), labels)
    plain, chunked = (jax.grad(functools.partial(matching_loss, network, params, size))(batch) for size in (None, 4))
    scale = jax.tree.map(lambda leaf: float(jnp.abs(leaf).max()), plain)
    jax.tree.map(lambda p, c, s: np.testing.assert_allclose(c, p, rtol=1e-5, atol=1e-5 * s), plain, chunked, scale)


def test_memory_does_not_grow_with_the_batch():
    """Temporary memory of an attack's gradient, 16 and 256 examples by chunks of 16, beyond the batch's own size."""
    network = models.create("small-convnet", width=8, input_shape=(16, 16, 3))
    params = jax.eval_shape(network.init, jax.random.key(0))

    def temporary_bytes(num_examples, chunk_size):
        batch = Batch(
            jax.ShapeDtypeStruct((num_examples, 16, 16, 3), jnp.float32),
            jax.ShapeDtypeStruct((num_examples,), jnp.int32),
        )
        gradient = jax.grad(
            lambda inputs, labels, params: matching_loss(network, params, chunk_size, Batch(inputs, labels))
        )
        compiled = jax.jit(gradient).lower(*batch, params).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    small, large = temporary_bytes(16, 16), temporary_bytes(256, 16)
    assert large < 1.5 * small
    assert temporary_bytes(64, None) > 2 * small  # what a plain program needs for a quarter of that


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
    with pytest.raises(ValueError, match="'norm' is in train mode"):
        gradients.mean_gradient(models.cross_entropy(train.apply), chunk_size=2)(params, batch)
    refused = gradients.per_example_gradients(models.cross_entropy(train.apply), chunk_size=2)
    with pytest.raises(ValueError, match="BatchNorm layer 'norm' is in train mode"):
        refused(params, batch)
    # Refused there only: the mean gradient is still what a client computes, and eval mode is free.
    gradients.mean_gradient(models.cross_entropy(train.apply))(params, batch)
    found = gradients.per_example_gradients(models.cross_entropy(evaluate.apply))(params, batch)
    mean = gradients.mean_gradient(models.cross_entropy(evaluate.apply))(params, batch)
    jax.tree.map(lambda m, e: np.testing.assert_allclose(m, e.mean(axis=0), atol=1e-6), mean, found)
