"""What a defense costs: accuracy of training under it, or why there is none."""

import pytest

from jaxinvert import audit, jobs

CONFIG = jobs.JobConfig.of(model="mlp-32", targets=2, num_examples=2)


@pytest.fixture(scope="module")
def setup():
    return jobs.set_up(CONFIG)


def test_training_without_a_defense_learns_and_repeats(setup):
    found, again = ([*audit.train_under(CONFIG, setup, num_rounds=40)] for _ in range(2))
    assert [one.round for one in found] == [0, 8, 16, 24, 32, 40]
    accuracy = [one.accuracy for one in found]
    assert accuracy[-1] >= accuracy[0] + 0.3
    assert [one.accuracy for one in again] == accuracy


def test_what_cannot_be_measured_is_refused(setup):
    with pytest.raises(ValueError, match="single clients of known order"):
        audit.train_under(CONFIG.replace(aggregate=2), setup, num_rounds=1)
