"""`jaxinvert inspect`: files with and without their network, exit status, JSON, and refusals."""

import json
import os

import jax
import numpy as np
import pytest

from experiments import crafting
from jaxinvert import cli, inspection, models

SMALL = ["--model", "mlp-32", "--input-shape", "8", "8", "3"]
MODEL = models.create("mlp-32", input_shape=(8, 8, 3))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """An honest checkpoint and an imprinted one."""
    folder = tmp_path_factory.mktemp("params")
    honest = MODEL.init(jax.random.key(0))
    features = np.asarray(inspection.natural_images(MODEL.input_shape)).reshape(64, -1)
    crafted = crafting.imprint(honest, "params/dense_0", features, np.random.default_rng(0), bins=32)
    models.save_checkpoint(folder / "honest.safetensors", honest, {})
    models.save_checkpoint(folder / "crafted.safetensors", crafted, {})
    return folder


def test_honest_parameters_pass_with_their_network(saved, capsys):
    assert cli.main(["inspect", str(saved / "honest.safetensors"), *SMALL]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "running mlp-32 on 64 examples" in shown
    assert "nothing was found, which is no proof of honesty" in shown
    assert "not checked" not in shown.replace("not checked: parallel-units", "")


def test_crafted_parameters_are_found_without_the_network(saved, capsys, tmp_path):
    file = tmp_path / "found.json"
    arguments = ["inspect", str(saved / "crafted.safetensors"), "--head", "params/head", "--json", str(file)]
    assert cli.main(arguments) == 3
    shown = " ".join(capsys.readouterr().out.split())
    assert "planted-bins in params/dense_0/kernel: The units sort examples into bins" in shown
    assert "Do not train on these parameters" in shown
    assert "these parameters look CRAFTED" in shown
    assert "not checked: nested-units; the network is not known" in shown
    content = json.loads(file.read_text())
    assert content["crafted"] is True
    assert content["findings"][0]["check"] == "planted-bins"
    assert content["findings"][0]["value"] >= content["findings"][0]["limit"]
    assert set(content["skipped"]) >= set(inspection.NEED_NETWORK)


def test_a_small_file_that_expands_is_refused(tmp_path, capsys, monkeypatch):
    np.savez_compressed(tmp_path / "zeros.npz", kernel=np.zeros((1000, 1000), np.float16))
    assert cli.main(["inspect", str(tmp_path / "zeros.npz")]) == 0
    monkeypatch.setattr("jaxinvert.cli.inspect._ALWAYS_READ", 1 << 16)
    assert cli.main(["inspect", str(tmp_path / "zeros.npz")]) == 2
    assert "it expands to 2,000,000 bytes" in " ".join(capsys.readouterr().err.split())
    os.mkfifo(tmp_path / "pipe")
    assert cli.main(["inspect", str(tmp_path / "pipe"), *SMALL]) == 2
    assert "not a regular file" in capsys.readouterr().err


def test_files_of_other_formats_are_read(tmp_path, capsys):
    honest = MODEL.init(jax.random.key(0))["params"]
    np.savez(tmp_path / "list.npz", *(np.asarray(leaf) for leaf in jax.tree.leaves(honest)))
    assert cli.main(["inspect", str(tmp_path / "list.npz")]) == 0
    assert "planted-bins" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--num-classes", "10"], "num_classes belongs to the network: give model, too"),
        (["--head", "nowhere"], "has no layer 'nowhere'"),
        (["--model", "mlp-999999"], "expected sizes of at most"),
        (["--model", "mlp-32"], "dense_0/kernel has shape"),
        ([*SMALL, "--data", "photos", "--split", "test"], "need at least 48 examples, got 10"),
        (["--json", "/"], "/"),
    ],
)
def test_what_is_not_possible_is_said_in_one_line(saved, capsys, flags, said):
    assert cli.main(["inspect", str(saved / "honest.safetensors"), *flags]) == 2
    assert said in " ".join(capsys.readouterr().err.split())


def test_damaged_and_missing_files_are_refused(tmp_path, capsys):
    (tmp_path / "pickle.pt").write_bytes(b"\x80\x02}q\x00.")
    np.savez(tmp_path / "nan.npz", **{"in/kernel": np.full((4, 4), np.nan)})
    np.savez(tmp_path / "integers.npz", a=np.arange(4))
    for name, said in {
        "pickle.pt": "pickle, which would run code",
        "nan.npz": "in/kernel holds 16 values that are not finite",
        "integers.npz": "no tensor of floats",
        "nothing.npz": "no parameters at",
    }.items():
        assert cli.main(["inspect", str(tmp_path / name)]) == 2
        assert said in " ".join(capsys.readouterr().err.split())
