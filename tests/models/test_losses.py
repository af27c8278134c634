"""Cross-entropy against numbers by hand, with both kinds of labels and any `apply`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxinvert.models import cross_entropy
from jaxinvert.types import Batch


def linear(params, inputs):
    return inputs @ params


PARAMS = jax.random.normal(jax.random.key(0), (5, 3))
INPUTS = jax.random.normal(jax.random.key(1), (4, 5))
LABELS = jnp.array([0, 2, 2, 1])
loss_fn = cross_entropy(linear)


def test_value_by_hand():
    logits = np.asarray(INPUTS, np.float64) @ np.asarray(PARAMS, np.float64)
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    expected = -np.mean(np.log(probabilities[np.arange(4), LABELS]))
    np.testing.assert_allclose(loss_fn(PARAMS, Batch(INPUTS, LABELS)), expected, rtol=1e-5)
    # Equal logits: log K, whatever the label.
    np.testing.assert_allclose(loss_fn(0 * PARAMS, Batch(INPUTS, LABELS)), np.log(3), rtol=1e-6)


def test_gradient_is_softmax_minus_label():
    """d loss / d logits = (softmax - y) / B, so d loss / d params = x^T (softmax - y) / B."""
    residual = jax.nn.softmax(INPUTS @ PARAMS) - jax.nn.one_hot(LABELS, 3)
    update = jax.grad(loss_fn)(PARAMS, Batch(INPUTS, LABELS))
    np.testing.assert_allclose(update, INPUTS.T @ residual / 4, rtol=1e-5, atol=1e-6)


def test_integer_labels_equal_their_one_hot():
    soft = Batch(INPUTS, jax.nn.one_hot(LABELS, 3))
    for labels in (LABELS, LABELS.astype(jnp.uint8), np.asarray(LABELS)):
        np.testing.assert_array_equal(loss_fn(PARAMS, Batch(INPUTS, labels)), loss_fn(PARAMS, soft))


def test_differentiable_in_soft_labels_and_inputs():
    """The loss is linear in the labels: its derivative is -log softmax / B."""
    labels = jax.nn.softmax(jax.random.normal(jax.random.key(2), (4, 3)))
    d_batch = jax.grad(loss_fn, argnums=1)(PARAMS, Batch(INPUTS, labels))
    np.testing.assert_allclose(d_batch.labels, -jax.nn.log_softmax(INPUTS @ PARAMS) / 4, rtol=1e-5)
    assert np.any(d_batch.inputs != 0)


def test_huge_logits_stay_finite():
    value, update = jax.value_and_grad(loss_fn)(1e4 * PARAMS, Batch(INPUTS, LABELS))
    assert np.isfinite(value)
    assert np.isfinite(update).all()


@pytest.mark.parametrize(
    "labels",
    [jnp.zeros(4), jnp.zeros((4, 3), jnp.int32), jnp.zeros((4, 1)), jnp.zeros(3, jnp.int32), jnp.int32(0)],
)
def test_other_labels_are_refused(labels):
    with pytest.raises(ValueError, match="labels must be"):
        loss_fn(PARAMS, Batch(INPUTS, labels))
