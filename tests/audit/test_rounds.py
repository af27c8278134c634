"""Captured rounds: `audit --capture FOLDER` needs no other flag, and mistakes in what is declared are named."""

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxinvert import audit, data, jobs, manifest, models, trees
from jaxinvert.audit import diagnosis, reading
from jaxinvert.cli import captured, main
from jaxinvert.integrations import capture
from jaxinvert.types import Batch, Observation

PHOTOS = data.load("photos", split="test[:6]")
NORMALIZATION = (PHOTOS.mean, PHOTOS.std)
FACTS = {"input_shape": [32, 32, 3], "num_classes": 10, "local": {"learning_rate": 0.1, "epochs": 1, "batch_size": 4}}
MODEL = models.create("mlp", like=PHOTOS)
PARAMS = jax.jit(MODEL.init)(jax.random.key(0))
GRADIENT = jax.jit(jax.grad(MODEL.loss))


def named(tree):
    return models.to_named(MODEL, tree)


def trained(place, *, rate=0.1, size=1):
    """Parameters after one step of SGD on photos from `place` on."""
    batch = Batch(*(jnp.asarray(array[place : place + size]) for array in (PHOTOS.images, PHOTOS.labels)))
    gradient = GRADIENT(PARAMS, batch)
    return jax.tree.map(lambda p, g: p - rate * g, PARAMS, gradient)


def written(folder, *, facts=FACTS, normalization=NORMALIZATION, kind="weights", arrays=named, num_clients=3):
    """A round of clients with one photo each."""
    writer = capture.Writer(folder, kind=kind, normalization=normalization, facts=facts)
    writer.params(arrays(PARAMS))
    for i in range(num_clients):
        writer.client(f"site-{i}", arrays(trained(i)), num_examples=1)
        writer.truth(f"site-{i}", PHOTOS.images[i : i + 1], PHOTOS.labels[i : i + 1])
    return writer


def audited(folder, *flags):
    out = folder.parent / "audit"
    command = ["audit", "--capture", str(folder), "--model", "mlp", *flags, "--out", str(out)]
    return main(command), out / "audit.json"


@pytest.mark.slow
def test_a_capture_needs_no_other_flag(tmp_path):
    writer = written(tmp_path / "round-0001", num_clients=2)
    writer.client("large", named(trained(2, size=3)), num_examples=3)
    writer.truth("large", PHOTOS.images[2:5], PHOTOS.labels[2:5])
    status, record = audited(tmp_path / "round-0001", "--attack", "dense-layer")  # without: auto, which takes longer
    assert status == 0
    found = json.loads(record.read_text())["settings"][0]
    assert found["attackers"]["naive"]["config"]["client"] == "fedsgd"  # one local step is a gradient
    assert found["attackers"]["naive"]["attack"]["psnr_db"]["min"] > 40
    told = found["verdict"]["certainty"]
    assert "divided by the learning rate 0.1" in told
    assert "Clients of 1 examples are audited; left out are clients of other sizes (1 of 3)" in told
    assert "Clients 0 to 1 are, in this order, site-0, site-1." in told
    assert "explain" not in told
    assert "The capture does not say optimizer, weight_decay, batch_norm; assumed: plain SGD," in told


def test_what_a_capture_does_not_say_of_training_is_named():
    local = {"learning_rate": 0.1, "epochs": 1, "batch_size": 4, "optimizer": "sgd", "weight_decay": 0.0}
    facts = manifest.checked({"format": manifest.FORMAT, "kind": "delta", "clients": {}, "local": local})
    told = captured.assumed(facts, jobs.JobConfig())
    assert told == ("The capture does not say batch_norm; assumed: running statistics in BatchNorm layers, if any.",)
    assert captured.assumed(facts, jobs.JobConfig.of(model="small-convnet-bn16", batch_norm="train")) == ()
    decaying = jobs.JobConfig.of(client="fedavg", local_optimizer="adam", local_weight_decay=0.1)
    assert captured.assumed(facts, decaying)[1].startswith("Weight decay is simulated apart from the gradient")
    few = manifest.checked(
        {"format": manifest.FORMAT, "kind": "delta", "clients": {}, "local": {"learning_rate": 1.0}}
    )
    assert "epochs, batch_size, optimizer" in captured.assumed(few, jobs.JobConfig())[0]


@pytest.mark.parametrize(
    ("change", "flags", "message"),
    [
        ({"kind": "delta"}, [], "these look like weights after training, but the kind is 'delta'"),
        (
            {"arrays": lambda tree: named(jax.tree.map(jnp.subtract, tree, PARAMS))},
            [],
            "look like a gradient or a diff",
        ),
        ({}, ["--clients", "site-9"], "there is no client 'site-9'"),
        ({}, ["--update", "x.npz"], "update is a file of its own"),
        ({"facts": FACTS | {"local": {"epochs": 2}}}, [], "took 2 local steps, but their learning rate is not given"),
        ({}, ["--num-examples", "2"], "no client in .* has 2 examples"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(change, flags, message, tmp_path, capsys):
    writer = capture.Writer(tmp_path / "r", normalization="none", facts=FACTS)
    writer.params(named(PARAMS))
    if "arrays" in change:
        writer.client("site-0", change["arrays"](trained(0)), num_examples=1)
    else:
        written(tmp_path / "r", num_clients=1, **change)
    status, _ = audited(tmp_path / "r", "--attack", "spectral", "--steps", "1", *flags)
    assert status == 2
    assert re.search(message, capsys.readouterr().err.replace("\n", " "))


def random_step():
    leaves, structure = jax.tree.flatten(PARAMS)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    return structure.unflatten([jax.random.normal(key, leaf.shape) for key, leaf in zip(keys, leaves)])


@pytest.mark.parametrize("length", [0.1, 1.0, 3.0, 20.0])
def test_the_kind_is_told_however_far_training_went(length):
    """`length` is that of the training, in units of the parameters' own; 20 is more than training does."""
    step = random_step()
    step = trees.scaled(step, length * trees.tree_norm(PARAMS) / trees.tree_norm(step))
    weights = trees.moved(PARAMS, step)
    reading.check_kind(weights, PARAMS, kind="weights", path="w")
    reading.check_kind(step, PARAMS, kind="pseudo-gradient", path="g")
    with pytest.raises(ValueError, match="look like a gradient"):
        reading.check_kind(step, PARAMS, kind="weights", path="g")
    if length <= 3:
        with pytest.raises(ValueError, match="look like weights"):
            reading.check_kind(weights, PARAMS, kind="delta", path="w")


def test_a_decayed_difference_is_no_weights_and_its_sign_is_told():
    """Weight decay moves along the weights, at another size; a difference of opposite sign has a negative cosine."""
    step = random_step()
    step = trees.scaled(step, 0.01 * trees.tree_norm(PARAMS) / trees.tree_norm(step))
    decayed = jax.tree.map(lambda leaf, change: change + 0.01 * leaf, PARAMS, step)
    reading.check_kind(decayed, PARAMS, kind="pseudo-gradient", path="g")
    with pytest.raises(ValueError, match=r"cosine of -0\.7"):
        reading.check_kind(trees.scaled(decayed, -1.0), PARAMS, kind="weights", path="g")


def read(config, folder, model=MODEL, **changes):
    files = sorted(folder.glob("client-*"))
    truth = tuple(sorted(folder.glob("truth-*")))
    one = audit.Capture(folder / "params.safetensors", tuple(files), "weights", truth)._replace(**changes)
    return audit.read_capture(config, one, model), audit.true_batches(config, truth, model)


CONFIG = jobs.JobConfig.of(model="mlp", targets=3, attack="spectral")


def mistakes(folder, model=MODEL, *, reorder=None, **changes):
    seen, truth = read(CONFIG, folder, model, **changes)
    truth = truth if reorder is None else jax.tree.map(lambda leaf: leaf[jnp.array(reorder)], truth)
    return " ".join(diagnosis.likely_mistakes(CONFIG, jobs.Program(CONFIG, model), seen, truth))


@pytest.mark.slow
def test_the_likely_mistake_is_named(tmp_path):
    written(tmp_path)
    assert mistakes(tmp_path, rate=0.1) == ""
    plain = models.create("mlp", input_shape=(32, 32, 3))
    assert "with mean 0.5 and std 0.25 they would explain 100.0%" in mistakes(tmp_path, plain, rate=0.1)
    assert "another order of clients" in mistakes(tmp_path, rate=0.1, reorder=[1, 2, 0])
    assert "10 times as long as the declared training gives" in mistakes(tmp_path, rate=0.01)
    for path in tmp_path.glob("client-*"):
        path.write_bytes((tmp_path / "params.safetensors").read_bytes())
    with pytest.raises(ValueError, match="zero in every tensor"):
        mistakes(tmp_path)


@pytest.mark.slow
def test_the_flatten_order_is_named(tmp_path):
    """The head of a convolutional network, converted from (channel, row, column) without reordering its rows."""
    model = models.create("lenet", like=PHOTOS)
    params = jax.jit(model.init)(jax.random.key(0))
    batch = Batch(jnp.asarray(PHOTOS.images[:1]), jnp.asarray(PHOTOS.labels[:1]))
    gradient = jax.jit(jax.grad(model.loss))(params, batch)

    def shuffled(tree):
        head = tree["params"]["head"]
        rows = head["kernel"].reshape(64, 12, 10).swapaxes(0, 1).reshape(768, 10)
        return {**tree, "params": {**tree["params"], "head": {**head, "kernel": rows}}}

    seen = audit.Seen(
        Observation(shuffled(params), jax.tree.map(lambda leaf: leaf[None], shuffled(gradient))),
        shuffled(params),
        gradient,
    )
    config = jobs.JobConfig.of(model="lenet", targets=1, attack="spectral")
    truth = jax.tree.map(lambda leaf: leaf[None], batch)
    (told,) = diagnosis.likely_mistakes(config, jobs.Program(config, model), seen, truth)
    assert "the rows of params/head/kernel in the other flatten order they would explain 100.0%" in told


def delta_of(folder, model, labels):
    """A delta of one local step at rate 0.05, which is not given; eight photos."""
    photos = data.load("photos", split="test[:8]")
    params = jax.jit(model.init)(jax.random.key(0))
    batch = Batch(jnp.asarray(photos.images), jnp.array(labels))
    delta = jax.tree.map(lambda g: -0.05 * g, jax.jit(jax.grad(model.loss))(params, batch))
    writer = capture.Writer(folder, kind="delta", normalization=NORMALIZATION)
    writer.params(models.to_named(model, params))
    writer.client("1", models.to_named(model, delta), num_examples=8)
    return audit.Capture(folder / "params.safetensors", (folder / "client-1.safetensors",), "delta")


RESTORED = jobs.JobConfig.of(model="lenet", num_examples=8, targets=1, attack="spectral", labels="restored")


@pytest.mark.slow
@pytest.mark.parametrize("labels", [[3, 3, 3, 3, 7, 7, 1, 1], [0, 1, 2, 3, 4, 5, 6, 7]])
def test_restored_labels_estimate_an_unknown_learning_rate(labels, tmp_path):
    model = models.create("small-convnet8", like=PHOTOS)
    files = delta_of(tmp_path, model, labels)
    seen = audit.read_capture(RESTORED, files, model)
    rate = float(re.search(r"not given; ([0-9.]+) is estimated", seen.notes[0])[1])
    assert rate == pytest.approx(0.05, rel=0.03)
    found = jobs.Program(RESTORED, model).restore_labels(jax.random.key(0), seen.observation)
    assert found[0].tolist() == sorted(labels)


@pytest.mark.slow
def test_a_rate_that_cannot_be_told_is_asked_for_and_never_one(tmp_path):
    """LeNet's wide initial weights make one class nearly certain, which may hide any number of examples."""
    model = models.create("lenet", like=PHOTOS)
    files = delta_of(tmp_path, model, [3, 3, 3, 3, 7, 7, 1, 1])
    with pytest.raises(ValueError, match=r"learning rate is not given.* rates fit the class counts.*give local_lr"):
        audit.read_capture(RESTORED, files, model)
    with pytest.raises(ValueError, match=r"10 examples may have all of the 10 classes.*give local_lr"):
        audit.read_capture(RESTORED.replace(num_examples=10), files, model)
    unknown = audit.read_capture(RESTORED.replace(attack="dense-layer", labels="known"), files, model)
    assert unknown.observation.local_training is None
    assert "scale of the updates is unknown" in unknown.notes[0]


@pytest.mark.slow
def test_statistics_of_batch_norm_in_train_mode_are_read(tmp_path):
    model = models.create("small-convnet-bn4", input_shape=(12, 12, 1), num_classes=3, batch_norm="train")
    params = jax.jit(model.init)(jax.random.key(0))
    batch = Batch(jnp.asarray(np.random.default_rng(0).uniform(size=(2, 12, 12, 1)), jnp.float32), jnp.array([0, 1]))
    gradient = jax.jit(jax.grad(model.loss))(params, batch)
    measured = jax.jit(model.batch_statistics)(params, batch.inputs)
    after = jax.tree.map(lambda p, g: p - 0.1 * g, params, gradient)
    after = {**after, "batch_stats": jax.tree.map(lambda r, b: 0.9 * r + 0.1 * b, params["batch_stats"], measured)}
    writer = capture.Writer(tmp_path, normalization="none")
    writer.params(models.to_named(model, params))
    writer.client("1", models.to_named(model, after), num_examples=2)
    config = jobs.JobConfig.of(
        model="small-convnet-bn4", num_examples=2, targets=1, attack="spectral", labels="joint", batch_norm="train",
        threat_model="E",
    )  # fmt: skip
    files = audit.Capture(tmp_path / "params.safetensors", (tmp_path / "client-1.safetensors",), "weights", rate=0.1)
    seen = audit.observe_capture(config, files, model)
    for found, wanted in zip(jax.tree.leaves(seen.batch_stats), jax.tree.leaves(after["batch_stats"])):
        np.testing.assert_allclose(found[0], wanted, rtol=1e-5)
    wanted = models.to_named(model, gradient)
    for name, found in models.to_named(model, seen.update).items():
        np.testing.assert_allclose(found[0], wanted[name], atol=2e-5)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(seen.update["batch_stats"]))
