"""What long commands say where their output is piped: plain lines while they work, not only at the end.

The audits' lines are tested in `test_audit_again.py`.
"""

import sys

import pytest

from jaxinvert import data
from jaxinvert.cli import console, main

FAST = ["--model", "mlp-8", "--size", "12", "--targets", "1", "--restarts", "2", "--steps", "2"]
ALL = "model: mlp-8\nsize: 12\ntargets: 1\nrestarts: 1\nsteps: 2\ngrid: {attack: [dlg, idlg]}\n"


@pytest.mark.parametrize(
    ("command", "lines"),
    [
        (["invert", *FAST], ["compiling", "inverted 2/2"]),
        (["invert", *FAST, "--dry-run"], ["measuring --chunk 1", "measuring --chunk 2"]),
        (["rank", *FAST], ["simulating the clients", "measuring the attack-free figure"]),
        (["tokens", "--width", "16", "--num-sequences", "1", "--targets", "1"], ["inverting 1/1 clients"]),
        (["sweep", "s.yaml"], ["jobs 0/2", "jobs 2/2"]),
        (["sweep", "s.yaml", "--dry-run"], ["measuring program 1 of 2: dlg on mlp-8", "measuring program 2 of 2"]),
    ],
    ids=lambda value: " ".join(value[:2]) if isinstance(value, list) else None,
)
def test_there_are_lines_between_the_first_and_the_last(command, lines, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(console, "_SECONDS_BETWEEN_LINES", 0.0)
    (tmp_path / "s.yaml").write_text(ALL)
    assert main(command) == 0
    shown = capsys.readouterr().out
    assert "\r" not in shown
    assert "\x1b" not in shown
    places = [shown.index(line) for line in lines]
    assert places == sorted(places)
    assert shown[places[-1] :].count("\n") > 1


def test_data_prepare_says_that_it_works(tmp_path, capsys, monkeypatch):
    def prepare(name, source):
        assert capsys.readouterr().out == f"downloading {name}, which takes minutes\n"
        return tmp_path

    monkeypatch.setattr(data, "prepare", prepare)
    assert main(["data", "prepare", "mnist"]) == 0
    assert capsys.readouterr().out == f"mnist is ready in {tmp_path}\n"


def test_on_a_terminal_what_is_done_is_one_line_that_goes_away(capsys, monkeypatch):
    one = console.Terminal()
    one._force_terminal, one.is_interactive, one.file = True, True, sys.stdout
    monkeypatch.setenv("TERM", "xterm")
    with console.saying(one) as say:
        say("first\x1b[2J")
        say("second")
    shown = capsys.readouterr().out
    assert "second" in shown
    assert "\x1b[2J" not in shown
    assert shown.count("\n") <= 2
