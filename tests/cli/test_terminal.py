"""What others named never acts on the terminal, and results are on the disk before anything is printed."""

import io
import json
import os
import subprocess
import sys

import numpy as np
import pyarrow.parquet
import pytest
from PIL import Image

from jaxinvert import cli, files, jobs, sweeps
from jaxinvert.cli import console
from jaxinvert.cli.invert import Table, write_outcome

NAMES = [b"\x1b]0;title\x07", b"caf\xe9", b"[red]x[nothing]", ":smile:\u202e\u2028".encode(), b"a\nb\rc\x9b"]
FAST = ["--model", "mlp", "--size", "12", "--restarts", "1", "--steps", "2"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Class folders with names of all kinds."""
    out = tmp_path_factory.mktemp("names")
    for number, name in enumerate(NAMES):
        (out / os.fsdecode(name)).mkdir()
        pixels = np.random.default_rng(number).integers(0, 255, (12, 12, 3), np.uint8)
        Image.fromarray(pixels).save(out / os.fsdecode(name) / "0.png")
    return out


def is_harmless(text):
    return all(character.isprintable() or character == "\n" for character in text) and text.encode()


@pytest.mark.slow
def test_names_are_shown_escaped_and_markup_as_it_is(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    out = tmp_path / "[red]out[/red][/]"
    assert cli.main(["invert", "--data", str(folder), *FAST, "--targets", "5", "--out", str(out)]) == 0
    shown = capsys.readouterr().out
    assert is_harmless(shown)
    for name in (r"\x1b]0;title\x07", r"caf\udce9", "[red]x[nothing]", r":smile:\u202e\u2028", r"a\nb\rc"):
        assert name in shown
    assert f"page: {out}" in shown
    assert len({len(line) for line in shown.splitlines() if line.startswith("│")}) == 1  # the table is straight
    assert len(json.loads((out / "summary.json").read_text())["images"]) == 5


@pytest.mark.parametrize("name", ["~nosuchuser/x", "/no/\x1b[31m[red]x", "/no/\udce9", "/no/[/]"])
def test_errors_show_outside_strings_escaped(name, capsys):
    assert cli.main(["invert", "--data", name]) == 2
    shown = capsys.readouterr().err
    assert is_harmless(shown)
    assert ("user who does not exist" if name.startswith("~") else "no dataset") in shown
    assert name.rpartition("/")[2].replace("\x1b", r"\x1b").replace("\udce9", r"\udce9") in shown


def test_a_damaged_image_is_named(folder, tmp_path, capsys):
    bad = tmp_path / os.fsdecode(b"\xff\x1b[2J") / "x.png"
    bad.parent.mkdir()
    bad.write_bytes(b"no image")
    assert cli.main(["invert", "--data", str(tmp_path), *FAST]) == 2
    shown = capsys.readouterr().err
    assert is_harmless(shown)
    assert r"\udcff\x1b[2J/x.png" in shown


def terminal(encoding="utf-8"):
    one = console.Terminal()
    one.file = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    return one


@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "latin-1"])
def test_whatever_is_printed_is_escaped(encoding):
    one = terminal(encoding)
    table = Table("\x1b[31m", title="\x1b[32m", caption="\ud800")
    table.add_row("[bold]\x9b", "≥")
    with console.progress_bar(one) as bar:
        bar.add_task("\x1b[33m[/]", total=1, loss="\x07", speed="\x1b")
        one.print(table, "plain \x1b[34m \udc80 [link=x]")
    one.file.seek(0)
    shown = one.file.read()
    assert all(character.isprintable() or character == "\n" for character in shown)
    assert r"plain \x1b[34m \udc80 [link=x]" in shown


def test_figures_are_shown_and_other_files_written_though_one_cannot_be(tmp_path, capsys):
    (tmp_path / "reconstructions.npz").mkdir()
    assert cli.main(["invert", *FAST, "--targets", "2", "--out", str(tmp_path)]) == 2
    captured = capsys.readouterr()
    assert "median" in captured.out
    assert "reconstructions.npz" in captured.err
    assert {path.name for path in tmp_path.iterdir() if path.is_file()} == {
        "summary.json",
        "report.html",
        "reconstructions.png",
    }


@pytest.mark.parametrize("command", ["invert", "audit", "audit table", "records", "tokens", "sweep"])
def test_results_are_written_before_they_are_printed(command, tmp_path, monkeypatch):
    """Printing the table fails, as a terminal that lacks a character once made it."""
    show = console.Terminal.print

    def failing(self, *objects, **options):
        if any(isinstance(one, Table) for one in objects):
            raise RuntimeError("not printable")
        show(self, *objects, **options)

    monkeypatch.setattr(console.Terminal, "print", failing)
    out = ["--out", str(tmp_path)]
    file = tmp_path / "sweep.yaml"
    file.write_text("{model: mlp, size: 12, restarts: 1, targets: 1, steps: 2, grid: {seed: [0, 1]}}")
    arguments, expected = {
        "invert": ([*FAST, "--targets", "1", *out], "summary.json"),
        "audit": ([*FAST, "--attack", "dlg", "--targets", "2", "--no-attack-free", *out], "audit.json"),
        "audit table": (
            ["--members", "1", "--steps", "2", "--targets", "2", "--num-examples", "1", *out],
            "audit.json",
        ),
        "records": (
            ["--members", "1", "--steps", "2", "--targets", "1", "--json", str(tmp_path / "x.json")],
            "x.json",
        ),
        "tokens": (["--targets", "1", "--json", str(tmp_path / "x.json")], "x.json"),
        "sweep": ([str(file), *out], "report.html"),
    }[command]
    with pytest.raises(RuntimeError, match="not printable"):
        cli.main([*command.split(), *arguments])
    assert (tmp_path / expected).stat().st_size > 100


@pytest.mark.slow
def test_a_reader_that_leaves_costs_no_results(tmp_path):
    """As in `jaxinvert invert | head -1`."""
    code = (
        "import os, sys, jaxinvert.cli as c; read, write = os.pipe(); os.dup2(write, 1); os.close(read)\n"
        f"sys.exit(c.main(['invert', *{[*FAST, '--targets', '1']!r}, '--out', {str(tmp_path / 'out')!r}]))"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert (tmp_path / "out" / "report.html").exists()


def test_a_folder_in_use_is_refused_with_one_message(tmp_path, capsys):
    file = tmp_path / "sweep.yaml"
    file.write_text("{model: mlp, size: 12, restarts: 1, targets: 1, steps: 2}")
    commands = [["invert", *FAST], ["audit", *FAST], ["audit", "text"], ["sweep", str(file)]]
    with files.alone_in(tmp_path / "out"):
        for command in commands:
            assert cli.main([*command, "--out", str(tmp_path / "out")]) == 2
            assert "another process writes its results to" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_class_name_that_cannot_be_encoded_is_written_everywhere(tmp_path):
    config = jobs.JobConfig.of(model="mlp", size=12, targets=1, restarts=1, steps=1)
    task = jobs.prepare(config)
    task = task._replace(class_names=("\ud800\x1b",) * len(task.class_names))
    outcome = jobs.measure(config, task, jobs.execute(config, task.program, task.observations))
    write_outcome(tmp_path, outcome)
    assert json.loads((tmp_path / "summary.json").read_text())["images"][0]["class_name"] == r"\ud800\x1b"
    plan = sweeps.Plan.__new__(sweeps.Plan, (sweeps.Job(jobs.job_name(config), config),), (), ())
    sweeps.records.write_plan_file(tmp_path, plan)
    sweeps.records.write_record(tmp_path, sweeps.records.make_record(plan.jobs[0], outcome, batch_size=1))
    sweeps.summarize(tmp_path)
    column = pyarrow.parquet.read_table(tmp_path / "summary.parquet")["class_name"]
    assert column.to_pylist() == [r"\ud800\x1b"]
