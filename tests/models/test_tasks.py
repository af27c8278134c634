"""What a network is trained for: read off labels and logits, with the loss that belongs to it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxinvert import models
from jaxinvert.types import Batch
from tests.conftest import apply, init, model_of

INPUTS = jax.random.uniform(jax.random.key(0), (4, 6, 6, 1))
PARAMS = init(jax.random.key(1))


@pytest.mark.parametrize(
    ("labels", "num_logits", "task"),
    [
        (np.array([0, 3]), 10, "classes"),
        (np.array([0, 1]), 1, "binary"),
        (np.array([[0.5, 0.5], [0, 1]]), 2, "classes"),
        (np.array([[1.0, 1], [0, 1]]), 2, "multi-label"),
        (np.array([[1.0, 2], [0, 1]]), 2, "regression"),
        (np.array([0.5, -3]), 1, "regression"),
    ],
)
def test_the_task_is_read_off(labels, num_logits, task):
    assert models.task_of(labels, num_logits) == task


def test_default_losses_by_hand():
    logits = np.asarray(apply(PARAMS, INPUTS), np.float64)
    p = 1 / (1 + np.exp(-logits))
    several = np.array([[0, 1, 1], [1, 1, 0], [0, 0, 0], [1, 0, 1]], np.float32)
    model = models.with_task(model_of(apply, init), several)
    expected = -np.mean(several * np.log(p) + (1 - several) * np.log(1 - p))
    np.testing.assert_allclose(model.loss(PARAMS, Batch(INPUTS, several)), expected, rtol=1e-5)

    def one(params, inputs):
        return apply(params, inputs)[:, :1]

    model = models.with_task(model_of(one, init, num_classes=1), np.array([0, 1]))
    wanted = np.array([0, 1, 1, 0])
    expected = -np.mean(wanted * np.log(p[:, 0]) + (1 - wanted) * np.log(1 - p[:, 0]))
    np.testing.assert_allclose(model.loss(PARAMS, Batch(INPUTS, jnp.asarray(wanted))), expected, rtol=1e-5)
    assert models.num_labels(model) == 2
    model = models.with_task(model_of(one, init, num_classes=1), np.array([0.5, 2.5]))
    values = np.array([0.5, -1, 2, 0], np.float32)
    expected = np.mean((logits[:, 0] - values) ** 2)
    np.testing.assert_allclose(model.loss(PARAMS, Batch(INPUTS, jnp.asarray(values))), expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("labels", "num_logits", "message"),
    [
        (np.array([0, 2]), 1, r"labels \[2\] are outside \[0, 2\)"),
        (np.array([0, 3]), 3, r"labels \[3\] are outside \[0, 3\)"),
        (np.array([[1.0, 1]]), 3, r"shape \(1, 2\), expected \(1, 3\) for multi-label"),
        (np.array([0.5, 2]), 3, "for regression"),
    ],
)
def test_labels_that_do_not_belong_to_the_logits_are_named(labels, num_logits, message):
    with pytest.raises(ValueError, match=message):
        models.check_labels(labels, task=models.task_of(labels, num_logits), num_classes=2 if num_logits == 1 else 3)


def test_labels_have_numbers_and_words():
    rows = np.array([[0, 1], [1, 1], [0, 1]], np.float32)
    ids = models.label_ids(rows)
    assert (ids[0] == ids[2], ids[0] == ids[1]) == (True, False)
    assert models.label_ids(np.array([4, 2])).tolist() == [4, 2]
    names = ("cat", "dog")
    assert models.label_in_words(np.int32(1), names) == "dog"
    assert models.label_in_words(rows[1], names) == "cat, dog"
    assert models.label_in_words(np.zeros(2, np.float32), names) == "none"
    assert models.label_in_words(np.float32(0.25), names) == "0.25"
