"""Flags and fields that another choice makes meaningless: they are refused or named, never ignored in silence."""

import importlib
from types import SimpleNamespace

import pytest

from jaxinvert import cli
from jaxinvert.cli.unused import _OF_CAPTURES, _of_data, note_of_audit
from jaxinvert.jobs import DataConfig, JobConfig

CAPTURED = ["audit", "--update", "a.npz", "--params", "b.npz"]
VALUES = {
    "input_shape": ["28", "28", "1"],
    "num_classes": ["7"],
    "mean": ["0.5"],
    "std": ["0.5"],
    "update_kind": ["pseudo-gradient"],  # the default
    "params": ["p.npz"],
    "truth": ["t.npz"],
    "clients": ["site-1"],
}


def refusal(words, capsys):
    assert cli.main(words) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    return error


@pytest.mark.parametrize("name", _OF_CAPTURES)
def test_what_describes_captured_updates_is_refused_for_simulated_clients(name, tmp_path, capsys):
    file, out = tmp_path / "audit.yaml", ["--out", str(tmp_path / "out")]
    value = VALUES[name][0] if len(VALUES[name]) == 1 and name not in ("mean", "std", "clients") else VALUES[name]
    file.write_text(f"{name}: {str(value).replace(chr(39), '') if isinstance(value, list) else value}")
    flags = [f"--{name.replace('_', '-')}", *VALUES[name]]
    for words in (["audit", *flags], ["audit", str(file)]):
        assert f"{name} describes captured updates only; " in refusal([*words, *out], capsys)
    assert not (tmp_path / "out").exists()


def test_the_refusal_says_what_simulated_clients_have_instead(capsys):
    error = refusal(["audit", "--num-classes", "7"], capsys)
    assert "simulated clients take it from their data (photos: 10 classes): leave it out, or give capture" in error
    assert _of_data("input_shape", DataConfig(size=16, split="auto")) == " (photos: 16 x 16 x 3)"
    assert _of_data("mean", DataConfig("nowhere")) == ""


@pytest.mark.parametrize("flags", [["--targets", "3"], ["--no-normalized"], ["--normalized"], ["--attack-free"]])
def test_what_describes_simulated_clients_is_refused_for_captured_updates(flags, capsys):
    name = flags[0].removeprefix("--").removeprefix("no-").replace("-", "_")
    assert f"{name} is for simulated clients only; " in refusal([*CAPTURED, *flags], capsys)


@pytest.mark.parametrize("command", [["audit"], ["audit", "table"]])
def test_a_training_without_an_epsilon_is_refused(command, capsys):
    training = ["--sampling-rate", "0.1", "--training-steps", "10"]
    error = refusal([*command, *training, "--defenses", "none", "gaussian"], capsys)
    assert "the epsilon of dp-sgd, which none of the defenses none gaussian has" in error
    assert "delta is 0.001, but an epsilon needs" in refusal([*command, "--delta", "1e-3"], capsys)


@pytest.mark.parametrize("flags", [["--lpips"], ["--candidates", "50"]])
def test_what_compares_with_true_images_needs_them(flags, capsys):
    assert "nothing is compared without the true images: give truth" in refusal([*CAPTURED, *flags], capsys)


def test_a_chunk_and_the_choice_of_one_exclude_each_other(tmp_path, capsys):
    error = refusal(["invert", "--plan", "--chunk", "2", "--out", str(tmp_path)], capsys)
    assert "chunk is 2, but plan chooses the fastest" in error


def test_a_split_of_images_needs_the_network_that_is_run_on_them(capsys):
    error = refusal(["inspect", "received.safetensors", "--split", "train"], capsys)
    assert "split belongs to the network: give model, too" in error


def test_flags_of_attacks_and_searches_that_are_not_used_are_named(tmp_path, capsys):
    small = ["--model", "mlp-4", "--size", "8", "--targets", "1"]
    assert cli.main(["rank", *small, "--linear-examples", "0", "--attack", "dlg", "--steps", "3"]) == 0
    assert capsys.readouterr().err == "note: rank runs no attack; not used: --attack, --steps\n"
    closed = ["invert", *small, "--attack", "dense-layer", "--precision", "high", "--out", str(tmp_path)]
    assert cli.main([*closed, "--restarts=2", "--steps", "3"]) == 0
    assert "note: attack 'dense-layer' does not search; not used: --restarts, --steps\n" in capsys.readouterr().err


NOTES = {
    ("dense-layer", False): "note: attack 'dense-layer' does not search; not used: --restarts, --steps\n",
    ("auto", False): "note: attack 'auto' took a closed form of every update; "
    "used by controls only: --restarts, --steps\n",
    ("auto", True): "",
}


@pytest.mark.parametrize(("attack", "searched"), NOTES)
def test_an_audit_names_what_its_closed_forms_do_not_use(attack, searched, capsys):
    """Of simulated clients and of captured updates; one attacker that searches uses the flags."""
    config = JobConfig.of(attack=attack)
    attackers = [SimpleNamespace(config=config, summary={"selected_by": by}) for by in ("closed form", "attack_loss")]
    setting = SimpleNamespace(attackers=dict(enumerate(attackers[: 1 + searched])), leakage=None)
    note_of_audit({"restarts", "steps", "tv"}, [setting])
    assert capsys.readouterr().err == NOTES[attack, searched]
    note_of_audit({"restarts", "steps"}, {"naive": (config, SimpleNamespace(searched=searched))})
    assert capsys.readouterr().err == NOTES[attack, searched]
    note_of_audit({"tv"}, [setting])
    assert not capsys.readouterr().err


class Noted(Exception):
    """Raised in place of writing the audit's files."""


def test_an_audit_names_what_its_flags_and_its_file_give(tmp_path, monkeypatch):
    module, found = importlib.import_module("jaxinvert.cli.audit"), [object()]

    def note(given, results):
        assert results is found
        raise Noted(set(given))

    monkeypatch.setattr(module, "with_progress", lambda *arguments: found)
    monkeypatch.setattr(module, "note_of_audit", note)
    file = tmp_path / "audit.yaml"
    file.write_text("steps: 2", encoding="utf-8")
    with pytest.raises(Noted) as raised:
        cli.main(["audit", str(file), "--restarts=2", "--out", str(tmp_path / "out")])
    assert raised.value.args == ({"steps", "restarts", "out"},)
