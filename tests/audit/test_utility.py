"""What a defense costs: accuracy of training under it, or why there is none."""

import numpy as np
import pytest

from jaxinvert import audit, jobs
from jaxinvert.audit import utility

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


@pytest.mark.parametrize("split", ["test", "train", "train[:100]"])
def test_accuracy_is_of_images_that_were_not_trained_on(setup, split):
    """The photos' split "test" has ten images, too few to tell accuracies apart: tiles are held out instead."""
    config = CONFIG.replace(split=split)
    training, test = utility.training_and_test(config, jobs.set_up(config))
    trained_on = {image.tobytes() for image in training.images}
    assert len(test.images) >= 50
    assert not any(image.tobytes() in trained_on for image in test.images)


def test_an_accuracy_of_few_images_is_refused(setup, tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (60, 32, 32, 3), dtype=np.uint8)
    labels = np.arange(60) % 10
    np.savez(tmp_path / "few.npz", train_images=images[:40], train_labels=labels[:40], test_images=images[40:],
             test_labels=labels[40:])  # fmt: skip
    config = CONFIG.replace(data=str(tmp_path / "few.npz"))
    with pytest.raises(ValueError, match="50 images that are not trained on"):
        utility.training_and_test(config, jobs.set_up(config))


def test_what_cannot_be_measured_is_refused(setup):
    with pytest.raises(ValueError, match="single clients of known order"):
        audit.train_under(CONFIG.replace(aggregate=2), setup, num_rounds=1)
