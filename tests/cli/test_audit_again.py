"""`jaxinvert audit` on the command line: what it prints without a terminal; a finished audit costs nothing."""

import json
import sys

import pytest

from jaxinvert import audit as audits
from jaxinvert.cli import auditing, console, main

forecast = sys.modules["jaxinvert.audit.forecast"]  # the package's name is the function's
SIZES = ["--num-sequences", "1", "--length", "3", "--vocabulary", "30", "--width", "16", "--depth", "1"]
TEXT = ["audit", "text", *SIZES, "--targets", "2", "--candidates", "20"]
TABLE = ["audit", "table", "--widths", "6", "--num-examples", "1", "--members", "2", "--steps", "2", "--targets", "2"]
IMAGES = ["audit", "--model", "mlp-8", "--attack", "dense-layer", "--targets", "2", "--no-attack-free"]


def forbidden(*_, **__):
    raise AssertionError("a finished audit computes nothing")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "run", "plan"),
    [
        (TEXT, "audit_text", "1 setting, 1 attack with its controls, on 2 simulated clients of 1 sequence"),
        (TABLE, "audit_table", "1 setting, 1 attack with its controls, on 2 simulated clients of 1 record"),
        (IMAGES, "audit", "1 setting, 1 attack with its controls, on 2 simulated clients of 1 example"),
    ],
    ids=["text", "table", "images"],
)
def test_a_finished_audit_is_shown_again_and_nothing_else_is(command, run, plan, tmp_path, capsys, monkeypatch):
    """By the contents of the record: another audit in the folder, or one with other contents or no page, is run."""
    out = ["--out", str(tmp_path)]
    assert main([*command, *out]) == 0
    first = capsys.readouterr().out
    assert plan in " ".join(first.split())
    assert "\r" not in first
    assert "\x1b" not in first
    assert "\nno defense, naive: attack" in first
    record = (tmp_path / "audit.json").read_text()
    with monkeypatch.context() as patch:
        patch.setattr(audits, run, forbidden)
        assert main([*command, *out]) == 0
        again = capsys.readouterr().out
        assert "nothing was computed" in again
        verdict = first[first.index("no defense: ") : first.rindex(" s; page: ")].rsplit("\n", 1)[0]
        assert verdict in again
        assert first[first.index("┏") : first.index("┘")] in again
        assert (tmp_path / "audit.json").read_text() == record
        with pytest.raises(AssertionError, match="computes nothing"):
            main([*command, "--candidates", "12", *out])
        (tmp_path / "audit.json").write_text(record.replace('"count": ', '"count": 1', 1))
        with pytest.raises(AssertionError, match="computes nothing"):
            main([*command, *out])
        (tmp_path / "audit.json").write_text(record)
        (tmp_path / "report.html").unlink()
        with pytest.raises(AssertionError, match="computes nothing"):
            main([*command, *out])
    (tmp_path / "audit.json").write_text(json.dumps({"settings": []}))
    capsys.readouterr()
    assert not auditing.show_finished(console.Terminal(), tmp_path, "name")


def test_an_interrupt_says_how_to_go_on(tmp_path, capsys, monkeypatch):
    def interrupted(*_, on_progress, **__):
        on_progress("halfway", None)
        raise KeyboardInterrupt

    monkeypatch.setattr(audits, "audit_text", interrupted)
    assert main([*TEXT, "--out", str(tmp_path)]) == console.EXIT_INTERRUPTED
    shown = capsys.readouterr().out
    assert "\nhalfway\ninterrupted\n" in shown
    assert "the same command resumes" in shown
    assert not (tmp_path / "audit.json").exists()


def test_lines_tell_what_is_new_and_from_time_to_time_how_far_it_is(capsys, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
    with console.progress_bar(console.Terminal()) as bar:
        row = bar.add_task("compiling", total=10, loss="", speed="")
        bar.refresh()
        for step in range(1, 5):
            now[0] += 14
            bar.update(row, description="attack", completed=step, speed="3 steps/s", refresh=True)
    assert capsys.readouterr().out == "compiling\nattack 1/10 3 steps/s\nattack 4/10 3 steps/s\n"


def test_a_dry_run_forecasts_every_part_and_writes_nothing(tmp_path, capsys, monkeypatch):
    """What cannot be measured, here the accuracy on tiles of 16 pixels, is said; a finished attack takes no time."""
    monkeypatch.setattr(forecast, "_attack_seconds", lambda config, task: (100.0, 1000.0))
    monkeypatch.setattr(forecast, "_figure_seconds", lambda config, task: 30.0)
    flags = ["--size", "16", "--model", "mlp-8", "--targets", "2", "--steps", "1000", "--accuracy-rounds", "2"]
    command = ["audit", *flags, "--attack", "dense-layer", "--out", str(tmp_path / "out")]
    assert main([*command, "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert "\nno defense, naive: attack and random update: 35 min" in shown
    assert "\nno defense: attack-free figure: 30.0 s\n" in shown
    assert "\nno defense: training for the accuracy: none, as accuracy needs a split 'train'" in shown
    assert "\nabout 35 min" in shown
    assert not (tmp_path / "out").exists()
    assert main(command) == 0
    (tmp_path / "out" / "audit.json").unlink()
    capsys.readouterr()
    assert main([*command, "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert "attack and random update: 35 min" not in shown
    assert "attack-free" not in shown


@pytest.mark.parametrize("command", [TEXT, TABLE], ids=["text", "table"])
def test_a_dry_run_for_records_and_text_forecasts_the_audit_and_writes_nothing(
    command, tmp_path, capsys, monkeypatch
):
    """A run takes a second, a compilation two: two clients are attacked, each with a random update beside its own."""
    part = "no defense, naive: attack and random update" if command[1] == "text" else "prior only"
    seconds = "6.0 s" if command[1] == "text" else "4.0 s"
    module = sys.modules["jaxinvert.audit.forecast_discrete"]
    monkeypatch.setattr(module, "_measured", lambda *_: (2.0, 1.0))
    command = [*command, "--out", str(tmp_path / "out")]
    assert main([*command, "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert f"\n{part}: {seconds}\n" in shown
    assert "\nno defense, naive: attack and random update: " in shown
    assert "on this machine; nothing was written" in shown
    assert not (tmp_path / "out").exists()
    assert main(command) == 0
    (tmp_path / "out" / "audit.json").unlink()
    capsys.readouterr()
    assert main([*command, "--dry-run"]) == 0  # all that is kept takes no time
    shown = capsys.readouterr().out
    assert f"\n{part}: 0.0 ms\n" in shown


@pytest.mark.slow
def test_a_dry_run_measures_what_is_to_be_computed(tmp_path, capsys):
    """Of TabLeak a few steps, from which all are extrapolated."""
    steps = TABLE.index("--steps") + 1
    seconds = []
    for number in ("20", "2000000"):
        assert main([*TABLE[:steps], number, *TABLE[steps + 1 :], "--dry-run", "--out", str(tmp_path / "out")]) == 0
        seconds.append(capsys.readouterr().out.splitlines()[-1])
    assert " min " not in seconds[0]
    assert " min " in seconds[1] or " h " in seconds[1]
    assert main([*TABLE, "--table", "iris", "--dry-run", "--out", str(tmp_path / "out")]) == 2
    assert "no table 'iris'" in capsys.readouterr().err


def test_a_dry_run_of_captured_updates_is_refused(tmp_path, capsys):
    files = ["--update", "a.npz", "--params", "b.npz"]
    assert main(["audit", *files, "--dry-run", "--out", str(tmp_path)]) == 2
    assert "dry_run measures simulated clients" in " ".join(capsys.readouterr().err.split())
