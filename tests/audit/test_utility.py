"""What a defense costs: accuracy of training under it, or why there is none."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxinvert import audit, jobs
from jaxinvert.audit import utility

CONFIG = jobs.JobConfig.of(model="mlp-32", targets=2, num_examples=2)


@pytest.fixture(scope="module")
def setup():
    return jobs.set_up(CONFIG)


@pytest.mark.slow
def test_training_without_a_defense_learns_and_continues_to_the_same_result(setup):
    found = [*audit.train_under(CONFIG, setup, num_rounds=40)]
    assert [one.round for one in found] == [0, 8, 16, 24, 32, 40]
    accuracy = [one.accuracy for one in found]
    assert accuracy[-1] >= accuracy[0] + 0.3
    between: list = []
    again = audit.train_under(
        CONFIG, setup, num_rounds=40, resume=lambda start: found[3].state, on_state=between.append
    )
    assert [one.accuracy for one in again] == accuracy[4:]
    assert between


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


def of_labels(folder, labels, num_outputs):
    """A job with a linear network of `num_outputs` outputs, on images whose upper half is as bright as told."""
    (folder / f"outputs{num_outputs}of{labels.dtype}.py").write_text(
        "from flax import linen as nn\n"
        "class Net(nn.Module):\n"
        "    @nn.compact\n"
        "    def __call__(self, x):\n"
        f"        return nn.Dense({num_outputs}, name='head')(x.reshape(len(x), -1))\n"
    )
    images = np.random.default_rng(0).uniform(0, 0.4, (160, 12, 12, 1))
    images[:, :6] += 0.5 * np.reshape(labels, (160, -1))[:, -1, None, None, None].clip(0, 1)
    parts = {"train": slice(0, 80), "test": slice(80, 160)}
    arrays = {f"{name}_images": np.rint(255 * images[part]).astype(np.uint8) for name, part in parts.items()}
    np.savez(folder / "own.npz", **arrays, **{f"{name}_labels": labels[part] for name, part in parts.items()})
    return jobs.JobConfig.of(
        model=f"outputs{num_outputs}of{labels.dtype}:Net",
        data=str(folder / "own.npz"),
        targets=2,
        restarts=1,
        steps=1,
    )


def halves():
    return np.arange(160) % 4 == 0


def test_one_logit_predicts_two_classes(tmp_path, monkeypatch):
    """Class 1 is rare: the largest of one logit would always be right for the three quarters of class 0."""
    monkeypatch.chdir(tmp_path)
    config = of_labels(tmp_path, halves().astype(np.int64), 1)
    accuracy = [one.accuracy for one in audit.train_under(config, jobs.set_up(config), num_rounds=60)]
    assert accuracy[-1] > 0.95
    apply = utility.classifier(jobs.set_up(config).program.model._replace(apply=lambda params, inputs: inputs))
    assert apply((), jnp.array([[-1.0], [2.0]])).tolist() == [[0.0, -1.0], [0.0, 2.0]]


def test_soft_labels_count_as_their_likeliest_class(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ones = np.where(halves(), 0.9, 0.1)
    config = of_labels(tmp_path, np.stack([1 - ones, ones], axis=1).astype(np.float32), 2)
    assert jobs.set_up(config).program.model.task == "classes"
    accuracy = [one.accuracy for one in audit.train_under(config, jobs.set_up(config), num_rounds=60)]
    assert accuracy[-1] > 0.95


@pytest.mark.parametrize(
    ("task", "labels"),
    [
        ("multi-label", np.stack([np.ones(160), halves()], axis=1).astype(np.int64)),
        ("regression", (10.0 * halves()).astype(np.float32)),
    ],
)
def test_what_predicts_no_classes_is_audited_without_an_accuracy(task, labels, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = of_labels(tmp_path, labels, labels[0].size)
    (found,) = audit.audit(audit.settings_for(config), num_candidates=4, accuracy_rounds=2, leakage_rounds=1)
    assert found.utility is None
    why = f"accuracy counts images of the right class, but the network's task is {task!r}"
    assert f"no accuracy and no leakage during training: {why}" in found.note
