"""Captured updates: the same verdict as of simulated clients, or only what can be said without the truth."""

import jax
import numpy as np
import pytest
from flax import serialization
from flax.traverse_util import flatten_dict
from safetensors.numpy import save_file

from jaxinvert import audit, data, files, jobs
from jaxinvert.cli import main
from tests.report.test_report import Page

CONFIG = jobs.JobConfig.of(model="mlp", targets=3, restarts=1, steps=40, tv=1e-3)
PHOTOS = data.load("photos", split="test[:1]")
NORMALIZED = ["--mean", *map(str, PHOTOS.mean), "--std", *map(str, PHOTOS.std)]
FLAGS = ["--model", "mlp", "--restarts", "1", "--steps", "40", "--tv", "1e-3", "--update-kind", "delta"]
FLAGS += ["--client", "fedavg", "--local-lr", "1", *NORMALIZED]


@pytest.fixture(scope="module")
def task():
    return jobs.prepare(CONFIG)


@pytest.fixture(scope="module")
def capture(task, tmp_path_factory):
    """Files as a server of three clients might write them."""
    folder, seen = tmp_path_factory.mktemp("capture"), task.observations
    (folder / "params.msgpack").write_bytes(serialization.to_bytes(seen.params))
    for t in range(CONFIG.data.targets):
        delta = jax.tree.map(lambda leaf, t=t: np.asarray(-leaf[t]), seen.update)
        save_file(flatten_dict(delta, sep="/"), folder / f"delta{t}.safetensors")
    inputs, labels = (np.asarray(leaf)[:, 0] for leaf in task.truth)
    np.savez(folder / "truth.npz", inputs=inputs, labels=labels)
    updates = tuple(folder / f"delta{t}.safetensors" for t in range(CONFIG.data.targets))
    return audit.Capture(folder / "params.msgpack", updates, "delta", folder / "truth.npz", rate=1.0)


def test_a_capture_is_seen_as_the_simulated_clients_are(task, capture):
    seen = audit.observe_capture(CONFIG, capture, task.model)
    for name in ("params", "update", "labels"):
        jax.tree.map(np.testing.assert_array_equal, getattr(seen, name), getattr(task.observations, name))
    assert seen.num_examples == 1
    stranger = jobs.JobConfig.of(model="mlp", targets=3, threat_model="B")
    with pytest.raises(ValueError, match="withholds: num_examples"):
        audit.observe_capture(stranger, capture, task.model)


@pytest.mark.parametrize(
    ("defenses", "divided"),
    [
        (["none"], True),
        (["dp-sgd:multiplier=0.1"], True),
        (["clip:norm=0.1"], False),
        (["percentile-privacy"], False),
    ],
)
def test_a_difference_that_a_defense_has_changed_keeps_its_unit(capture, defenses, divided):
    trained = jobs.JobConfig.of(model="mlp", client="fedavg", local_lr=0.1)
    config, read = audit.job_of_capture(trained, capture._replace(rate=None), defenses=defenses)
    assert config.client.kind == ("fedsgd" if divided else "fedavg")
    assert read.rate == (0.1 if divided else None)
    assert audit.settings_for(config, defenses)  # such a client can have this defense


@pytest.mark.slow
@pytest.mark.parametrize("scale", [1e-20, 1e18])
def test_updates_of_any_size_are_read_at_the_scale_that_the_labels_tell(task, capture, tmp_path, scale):
    """Squares of such numbers leave the range of float32: unscaled, every distance would be 0, inf or NaN."""
    updates = []
    for t in range(CONFIG.data.targets):
        gradient = jax.tree.map(lambda leaf, t=t: np.asarray(leaf[t]) * np.float32(scale), task.observations.update)
        updates.append(tmp_path / f"gradient{t}.safetensors")
        save_file(flatten_dict(gradient, sep="/"), updates[-1])
    seen = audit.observe_capture(
        CONFIG, capture._replace(updates=tuple(updates), kind="pseudo-gradient", rate=None), task.model
    )
    for found, true in zip(jax.tree.leaves(seen.update), jax.tree.leaves(task.observations.update)):
        np.testing.assert_allclose(found, true, rtol=0.05, atol=1e-4 * float(np.abs(true).max()))
    reached, usual = (
        jobs.measure(CONFIG, task, jobs.execute(CONFIG, task.program, one)).summary["quality"]["psnr_db"]["min"]
        for one in (seen, task.observations)
    )
    assert reached == pytest.approx(usual, abs=0.5)
    shares = audit.captured.explained(
        task.program, seen, np.asarray(task.truth.inputs), np.asarray(task.truth.labels)
    )
    np.testing.assert_allclose(shares, 1, rtol=1e-5)


@pytest.mark.slow
def test_with_the_truth_there_is_a_verdict(capture, tmp_path):
    updates = [str(path) for path in capture.updates]
    command = ["audit", *FLAGS, "--update", *updates, "--params", str(capture.params), "--truth", str(capture.truth)]
    assert main([*command, "--out", str(tmp_path)]) == 0
    page = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert "3 of 3 clients had an image picked out among 91 candidates" in " ".join(page.text.split())
    assert (tmp_path / "audit.json").exists()


@pytest.mark.slow
def test_without_the_truth_there_is_none_but_updates_are_explained(task, capture, tmp_path):
    blind, _ = audit.job_of_capture(CONFIG, capture._replace(truth=None))
    assert blind.attacker.labels == "restored"
    found = audit.explain_capture(blind, capture._replace(truth=None), task.model)
    assert found.share.shape == (3,)
    assert found.share.min() > 0.3
    assert found.share_of_noise.max() < 0.03
    assert found.searched
    closed = blind.replace(attack="dense-layer", labels="known", label_rule=None, tv=None, lr=None, settings={})
    assert not audit.explain_capture(closed, capture._replace(truth=None), task.model).searched
    seen = audit.observe_capture(blind, capture, task.model)
    inputs, labels = map(np.asarray, task.truth)
    np.testing.assert_allclose(audit.captured.explained(task.program, seen, inputs, labels), 1, rtol=1e-5)
    from jaxinvert import report

    report.save_capture_html(tmp_path / "x.html", found={"naive": (blind, found)}, title="<mlp>")
    files.save_json(tmp_path / "audit.json", audit.record_of_capture({"naive": (blind, found)}))
    page = Page((tmp_path / "x.html").read_text(encoding="utf-8"))
    assert len(page.all("img")) == 6
    assert "No true images were given" in page.text


def test_results_are_kept_apart_for_another_rate_normalization_or_task(task, capture, tmp_path):
    readings = [
        (capture, task.model),
        (capture._replace(rate=0.1), task.model),
        (capture, task.model._replace(mean=(0.1,) * 3)),
        (capture, task.model._replace(task="multi-label")),
        (capture._replace(kind="weights"), task.model),
    ]
    stores = {audit.captured._store(tmp_path, *reading) for reading in readings}
    assert len({store.file("job", "attack") for store in stores}) == len(readings)
    assert len({store.role("attack") for store in stores}) == len(readings)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--params", "nowhere"], "params describes captured updates only"),
        (["--update", "a.npz"], "need the parameters"),
        (["--update", "a.npz", "--params", "b.npz"], "b.npz"),
        (["--update", "a.npz", "--params", "b.npz", "--defenses", "none", "sign"], "one defense, not 2"),
        (["--update", "a.npz", "--params", "b.npz", "--rounds", "2"], "one round"),
    ],
)
def test_an_incomplete_capture_is_refused_in_one_line(flags, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["audit", "--model", "mlp", "--attack", "dlg", "--out", "x", *flags]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error


def test_a_truth_of_another_size_is_refused(task, capture):
    four = jobs.JobConfig.of(model="mlp", targets=4)
    with pytest.raises(ValueError, match="3 examples, expected 4 clients of 1"):
        audit.true_batches(four, capture.truth, task.model)
