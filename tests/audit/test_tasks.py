"""Networks for other things than classes, and labels of other forms: simulated, captured and audited alike."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxinvert import audit, jobs, labels, models
from jaxinvert.cli import main
from jaxinvert.integrations import capture
from jaxinvert.types import Batch, LocalTraining, Observation

NETS = """
import jax.numpy as jnp, optax
from flax import linen as nn

class Net(nn.Module):
    logits: int
    @nn.compact
    def __call__(self, x):
        return nn.Dense(self.logits, name="head")(nn.sigmoid(nn.Dense(16, name="first")(x.reshape(len(x), -1))))

def one(): return Net(1)
def three(): return Net(3)

def own():
    net = Net(1)
    def loss(params, batch):
        logits = net.apply(params, batch.inputs)[:, 0]
        return optax.sigmoid_binary_cross_entropy(logits, batch.labels.astype(jnp.float32)).mean()
    return net, loss
"""
SHAPE = (12, 12, 1)
LABELS = {
    "binary": ("tasknets:own", np.array([0, 1])),
    "multi-label": ("tasknets:three", np.array([[1, 0, 1], [0, 0, 0]])),
    "soft": ("tasknets:three", np.array([[0.2, 0.8, 0], [0.5, 0, 0.5]], np.float32)),
    "regression": ("tasknets:one", np.array([-1.5, 20.0], np.float32)),
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "tasknets.py").write_text(NETS)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def captured(folder, name, *, truth=True):
    """Two clients with one example each; the labels of the truth have the form in which users have them."""
    model_name, values = LABELS[name]
    inputs = np.random.default_rng(0).uniform(size=(2, *SHAPE)).astype(np.float32)
    as_read = values if values.ndim == 1 and values.dtype.kind == "i" else values.astype(np.float32)
    model = models.with_task(models.import_model(model_name, input_shape=SHAPE), as_read)
    params = model.init(jax.random.key(0))
    writer = capture.Writer(folder / name, kind="pseudo-gradient", normalization="none", facts={"input_shape": SHAPE})
    writer.params({path: leaf for path, leaf in leaves(params)})
    for i in range(2):
        gradient = jax.grad(model.loss)(
            params, Batch(jnp.asarray(inputs[i : i + 1]), jnp.asarray(as_read[i : i + 1]))
        )
        writer.client(str(i), {path: leaf for path, leaf in leaves(gradient)}, num_examples=1)
        if truth:
            writer.truth(str(i), inputs[i : i + 1], values[i : i + 1])
    return model_name, folder / name


def leaves(tree):
    return [
        (jax.tree_util.keystr(p, simple=True, separator="/"), np.asarray(x))
        for p, x in jax.tree.leaves_with_path(tree)
    ]


def audited(model_name, where, *flags):
    out = where / "audit"
    search = ["--restarts", "1", "--steps", "2"]
    command = ["audit", "--capture", str(where), "--model", model_name, *search, *flags, "--out", str(out)]
    return main(command), out / "audit.json"


@pytest.mark.slow
@pytest.mark.parametrize(("name", "attack"), [("multi-label", "spectral"), ("regression", "dense-layer")])
def test_a_capture_with_its_truth_gets_a_verdict(name, attack, folder):
    status, record = audited(*captured(folder, name), "--attack", attack)
    assert status == 0
    content = json.loads(record.read_text())
    assert "explain" not in content["settings"][0]["verdict"]["certainty"]  # the truth explains the updates wholly
    images = content["settings"][0]["attackers"]["naive"]["images"]
    assert [image["label"] for image in images] == LABELS[name][1].tolist()


@pytest.mark.slow
def test_one_logit_without_the_truth_has_its_labels_restored(folder):
    status, record = audited(*captured(folder, "binary", truth=False), "--attack", "spectral")
    assert status == 0
    assert json.loads(record.read_text())["explained"]["naive"]["config"]["label_rule"] == "sigmoid"


@pytest.mark.parametrize("num_classes", [None, 1, 2])
def test_one_logit_has_two_labels(num_classes, folder):
    model_name, _ = captured(folder, "binary")
    model = models.import_model(model_name, input_shape=SHAPE, num_classes=num_classes)
    model = models.with_task(model, np.array([0, 1]))
    assert (model.num_classes, models.num_labels(model), model.task) == (1, 2, "binary")


def test_soft_labels_are_read_and_granted(folder):
    _, where = captured(folder, "soft")
    model = models.with_task(models.import_model("tasknets:three", input_shape=SHAPE), LABELS["soft"][1])
    config = jobs.JobConfig.of(model="tasknets:three", targets=2, attack="spectral")
    files = tuple(where / f"truth-{i}.npz" for i in range(2))
    read = audit.Capture(where / "params.safetensors", tuple(where / f"client-{i}.safetensors" for i in range(2)),
                         truth=files)  # fmt: skip
    seen = audit.observe_capture(config, read, model)
    np.testing.assert_allclose(seen.labels[:, 0], LABELS["soft"][1])
    share = audit.captured.explained(
        jobs.Program(config, model), seen, *map(np.asarray, audit.true_batches(config, files, model))
    )
    np.testing.assert_allclose(share, 1, rtol=1e-5)


@pytest.mark.parametrize(
    ("fields", "task", "message"),
    [
        ({"attack": "dlg"}, "binary", "assumes softmax cross-entropy, but the network's task is binary; .*spectral"),
        ({"attack": "spectral", "labels": "joint"}, "regression", "optimizes softmax labels"),
    ],
)
def test_what_assumes_classes_refuses_other_tasks(fields, task, message, victim):
    config = jobs.JobConfig.of(model="mlp", **fields)
    with pytest.raises(ValueError, match=message):
        jobs.Program(config, victim.model._replace(task=task))


@pytest.mark.parametrize(
    ("rule", "task", "message"),
    [
        ("moments", "binary", "label rule sigmoid does not"),
        ("sigmoid", "classes", "moments-surrogate"),
        ("idlg", "regression", "no rule restores such labels: grant them"),
    ],
)
def test_label_rules_refuse_other_tasks(rule, task, message):
    with pytest.raises(ValueError, match=f"label rule '{rule}' is for the task .*{message}"):
        jobs.checks.check_rule(rule, task)


def observed(loss, batch, num_logits):
    """The observation of a linear model's gradient; its dummy outputs are near one half."""
    params = {"params": {"head": {"kernel": jnp.full((4, num_logits), 0.01), "bias": jnp.zeros(num_logits)}}}

    def apply(params, inputs):
        head = params["params"]["head"]
        return inputs.reshape(len(inputs), -1) @ head["kernel"] + head["bias"][None]

    update = jax.grad(loss(apply))(params, batch)
    return apply, Observation(params, update, num_examples=len(batch.inputs), local_training=LocalTraining(1.0, 1))


@pytest.mark.parametrize("wanted", [[0], [1], [0, 1, 1, 0, 1], [1] * 6])
def test_counts_of_one_logit(wanted):
    inputs = jax.random.uniform(jax.random.key(0), (len(wanted), 2, 2, 1))
    apply, seen = observed(models.one_logit_cross_entropy, Batch(inputs, jnp.array(wanted)), 1)
    rule = labels.sigmoid(apply, dummies=labels.white_noise(jax.random.key(1), input_shape=(2, 2, 1), num_inputs=8))
    assert rule(seen).tolist() == [wanted.count(0), wanted.count(1)]


def test_several_labels_of_one_example():
    wanted = jnp.array([[0.0, 1.0, 1.0]])
    _, seen = observed(models.binary_cross_entropy, Batch(jnp.ones((1, 2, 2, 1)), wanted), 3)
    assert labels.several_labels(seen).tolist() == wanted.tolist()
    with pytest.raises(ValueError, match="not which example has which"):
        labels.several_labels(seen._replace(num_examples=2))
