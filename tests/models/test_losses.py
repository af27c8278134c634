"""Cross-entropies against numbers by hand, with both kinds of labels and any `apply`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxinvert.models import binary_cross_entropy, cross_entropy
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


MULTI_LABELS = np.array([[1, 0, 1], [0, 0, 0], [1, 1, 1], [0.25, 1, 0]], np.float32)
multi_label_loss = binary_cross_entropy(linear)


def test_binary_value_and_gradient_by_hand():
    """-mean (y log p + (1 - y) log (1 - p)), whose derivative in the logits is (p - y) / (B K)."""
    logits = np.asarray(INPUTS, np.float64) @ np.asarray(PARAMS, np.float64)
    p, y = 1 / (1 + np.exp(-logits)), np.asarray(MULTI_LABELS, np.float64)
    value, update = jax.value_and_grad(multi_label_loss)(PARAMS, Batch(INPUTS, MULTI_LABELS))
    np.testing.assert_allclose(value, -np.mean(y * np.log(p) + (1 - y) * np.log(1 - p)), rtol=1e-5)
    np.testing.assert_allclose(update, INPUTS.T @ (p - y) / 12, rtol=1e-5, atol=1e-6)
    # Zero logits: log 2, whatever the labels.
    np.testing.assert_allclose(multi_label_loss(0 * PARAMS, Batch(INPUTS, MULTI_LABELS)), np.log(2), rtol=1e-6)


def test_binary_is_differentiable_in_labels():
    """The loss is linear in the labels: log p - log (1 - p) is the logit, so the derivative is -logit / (B K)."""
    d_batch = jax.grad(multi_label_loss, argnums=1)(PARAMS, Batch(INPUTS, jnp.asarray(MULTI_LABELS)))
    np.testing.assert_allclose(d_batch.labels, -(INPUTS @ PARAMS) / 12, rtol=1e-4, atol=1e-6)


def test_binary_is_stable_for_huge_logits():
    """Logits of +-1e4 on the right side cost nothing, on the wrong side their size; no gradient overflows."""
    inputs, labels = jnp.array([[1e4, -1e4]]), jnp.array([[1.0, 0.0]])
    identity = jnp.eye(2)
    value, update = jax.value_and_grad(multi_label_loss)(identity, Batch(inputs, labels))
    assert (value, np.any(update)) == (0, False)
    value, update = jax.value_and_grad(multi_label_loss)(identity, Batch(inputs, 1 - labels))
    np.testing.assert_allclose(value, 1e4, rtol=1e-6)
    assert np.isfinite(update).all()
    second = jax.grad(lambda x: jnp.sum(jax.grad(multi_label_loss)(identity, Batch(x, labels)) ** 2))(0 * inputs)
    assert np.isfinite(second).all()


@pytest.mark.parametrize("labels", [LABELS, jnp.zeros((4, 3), jnp.int32), jnp.zeros((4, 1)), jnp.zeros(3)])
def test_other_labels_are_refused_by_the_binary_loss(labels):
    with pytest.raises(ValueError, match=r"labels must be \[B, K\] floats"):
        multi_label_loss(PARAMS, Batch(INPUTS, labels))
