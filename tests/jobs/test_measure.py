"""What a job's summary says of labels that were not granted."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxinvert.jobs import JobConfig
from jaxinvert.jobs.measure import label_quality

RESTORED = JobConfig.of(labels="restored", num_examples=2)


@pytest.mark.parametrize("soft", [False, True])
def test_classes_are_counted_in_any_order(soft):
    found = jnp.array([[2, 0], [1, 1]])
    told = label_quality(RESTORED, jnp.eye(3)[found] if soft else found, np.array([[0, 2], [1, 2]]))
    assert told is not None
    assert list(told["exact"]) == [True, False]
    assert told["recall"] == 0.75


def test_several_or_soft_labels_of_an_example_are_not_called_exact():
    truth = np.array([[[1.0, 0.0, 1.0], [0.0, 0.0, 0.0]]])
    assert label_quality(RESTORED, jnp.asarray(truth), truth) is None
    assert label_quality(JobConfig(), jnp.array([[0]]), np.array([[0]])) is None  # granted
