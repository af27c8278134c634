"""Tables and text by the command line: figures beside guesses, what was assumed, interrupts and refusals."""

import json
import re
import sys

import jax
import numpy as np
import pytest

from jaxinvert import cli
from jaxinvert.jobs import build, records, text
from jaxinvert.types import Batch, Reconstruction

RECORDS = records.RecordsConfig(widths=(6,), num_examples=2, targets=2, members=2, steps=2)
TEXT = text.TextConfig(model="encoder", num_sequences=1, length=3, vocabulary=30, width=16)


def changed(**fields):
    return build(records.RecordsConfig, fields, base=RECORDS)


def run(*arguments, file):
    assert cli.main([*arguments, "--json", str(file)]) == 0
    return json.loads(file.read_text())


@pytest.mark.slow
def test_records_are_scored_beside_guesses(tmp_path, capsys):
    sizes = ["--widths", "6", "--num-examples", "2", "--targets", "2", "--members", "2", "--steps", "2"]
    summary = run("records", *sizes, file=tmp_path / "records.json")
    assert set(summary["rates"]) == {"tableak", "its best member", "guess: drawn", "guess: typical"}
    for target in summary["targets"]:
        assert np.shape(target["found"]) == np.shape(target["truth"]) == (2, 13)
    right = sum(target["records_right"] for target in summary["targets"])
    assert summary["rates"]["tableak"]["records"] == right / 4
    assert summary["config"]["widths"] == [6]
    assert summary["interrupted"] is False
    assert summary["command"].startswith("jaxinvert records --widths 6")
    assert "the label of every example" in summary["assumptions"]["known"]
    printed = capsys.readouterr().out
    assert "guess: typical" in printed
    assert "unknown: the records" in printed


def test_the_best_member_has_the_lowest_loss():
    members = np.arange(2 * 3 * 4.0).reshape(2, 3, 4, 1, 1, 1)
    losses = np.array([[3.0, 1.0, 2.0], [np.inf, 5.0, 4.0]])
    found = Reconstruction(members[:, 0], None, losses[:, 0], {"members": members, "member_losses": losses})
    np.testing.assert_array_equal(records.best_members(found), members[[0, 1], [1, 2]])


def test_clients_train_and_defend_themselves_as_they_are_told():
    """One local step with rate r sends r times the gradient; top-k keeps the share that the attacker is told."""
    plain = records.prepare_records(RECORDS)
    trained = records.prepare_records(changed(client="fedavg", local_lr=0.5))
    pruned = records.prepare_records(changed(defense="top-k", defense_settings={"keep": 0.25}, adaptive=True))
    assert plain.observations.labels is not None
    leaves = [jax.tree.leaves(task.observations.update) for task in (plain, trained, pruned)]
    for gradient, change, kept in zip(*leaves):
        np.testing.assert_allclose(change, 0.5 * gradient, atol=1e-6)
        np.testing.assert_array_equal(kept, np.where(kept != 0, gradient, 0))
    sizes = [(np.count_nonzero(leaf), leaf.size) for leaf in leaves[2]]
    num_kept, num_all = np.sum(sizes, axis=0)
    assert num_kept == num_all // 4
    assert pruned.observations.defense == {"top-k.keep": 0.25}


def test_an_interrupt_keeps_the_clients_that_are_done():
    def interrupt(done):
        if done == 1:
            raise KeyboardInterrupt

    task = records.prepare_records(RECORDS)
    found = records.attack_records(
        jax.random.key(0),
        lambda key, observation: Reconstruction(observation.labels, None, jax.numpy.zeros(()), {}),
        task.observations,
        on_progress=interrupt,
    )
    np.testing.assert_array_equal(found.inputs, task.observations.labels[:1])
    attacked = text.attack_text(TEXT, on_progress=interrupt)
    assert len(attacked) == 1
    assert text.measure_text(TEXT, attacked)["interrupted"]


def test_tokens_are_scored_beside_a_guess(tmp_path, capsys):
    sizes = ["--num-sequences", "1", "--length", "3", "--vocabulary", "30", "--width", "16", "--targets", "1"]
    summary = run("tokens", "--model", "encoder", *sizes, file=tmp_path / "tokens.json")
    assert set(summary["rates"]["dager"].values()) == {1}
    assert summary["rates"]["guess: drawn"]["tokens"] < 1
    (target,) = summary["targets"]
    assert target["exact"]
    assert target["certified"]
    assert target["found"] == target["truth"]
    printed = capsys.readouterr().out
    assert "1 of 1 clients certified" in printed
    assert "unknown: the sequences; the label of every example" in printed


def test_text_is_the_same_in_any_order_with_its_own_labels():
    tokens, labels = np.array([[1, 2], [1, 3]]), np.array([[5, 6], [7, 8]])
    truth = Batch(tokens, labels)
    assert text.same_text(Batch(tokens[::-1], labels[::-1]), truth)
    assert text.same_text(Batch(tokens, np.array([[7, 6], [5, 8]])), truth)  # both follow the same beginning
    assert not text.same_text(Batch(tokens, np.array([[5, 8], [7, 6]])), truth)
    assert not text.same_text(Batch(tokens[[0, 0]], labels), truth)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["records", "--table", "iris"], "no table 'iris': expected diabetes or wine"),
        (["records", "--num-examples", "178"], "num_examples is 178, expected fewer than the 178 of wine"),
        (["records", "--members", "0"], "members is 0, expected at least 1"),
        (["tokens", "--lora-rounds", "1"], "lora_rounds is 1, which only lora_rank uses"),
        (
            ["tokens", "--lora-rank", "2", "--lora-layers", "conv"],
            "lora_layers holds 'conv', but model decoder has no",
        ),
        (["records", "--local-epochs", "2"], "local_epochs is 2, which only client='fedavg' uses"),
        (["records", "--defense", "magic"], "unknown defense 'magic'"),
        (["records", "--adaptive"], "there is no defense to adapt to"),
        (["tokens", "--law", "zipf"], "--law is now --distribution"),
        (["tokens", "--targets", "0"], "targets is 0, expected at least 1"),
        (["tokens", "--width", "30"], "width is 30, expected a multiple of the number of attention heads, 4"),
        (["tokens", "--json", "/dev/null/rows.json"], "/dev/null is not a folder"),
    ],
)
def test_bad_input_is_one_clear_error(arguments, message, capsys):
    assert refused(arguments, capsys, message)


def test_without_scikit_learn_the_command_says_what_brings_it(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    assert refused(["records"], capsys, r"needs scikit-learn: pip install 'jaxinvert\[tabular\]'")


def refused(arguments, capsys, message):
    try:
        status = cli.main(arguments)
    except SystemExit as stop:  # what the argument parser itself refuses
        status = stop.code
    captured = capsys.readouterr()
    said = re.sub(r"[\s│╭╰─╮╯]+", " ", captured.err + captured.out)
    assert re.search(message, said), said
    assert "Traceback" not in said
    return status == 2
