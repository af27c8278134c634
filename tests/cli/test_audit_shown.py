"""What `jaxinvert audit` prints: verdicts that are never cut, and whether a forecast was worth its time."""

import io
from typing import get_args

import pytest

from jaxinvert import audit
from jaxinvert.audit.verdict import Level
from jaxinvert.cli import auditing
from jaxinvert.cli.console import Terminal


def a_setting(level):
    images = {"median": 25.4, "max": 30.7}
    gain = {"mean": 13.8, "low": 10.2, "high": 17.5}
    attacker = {"identified": {"count": 9, "total": 9}, "attack": {"psnr_db": images}, "excess_psnr_db": gain}
    return {
        "name": "clip+gaussian (norm 1, scale 0.01)",
        "worst": "adaptive",
        "verdict": {"level": level, "headline": "Said.", "certainty": "Surely."},
        "attackers": {"naive": attacker, "adaptive": attacker},
    }


@pytest.mark.parametrize("width", [72, 80, 200])
def test_the_table_wraps_but_never_cuts_a_verdict(width):
    console = Terminal()
    console.file, console.width = io.StringIO(), width
    levels = get_args(Level)
    auditing.print_verdicts(console, {"settings": [a_setting(level) for level in levels]})
    table = console.file.getvalue().split("Said.")[0]
    assert "…" not in table
    cells = [part.strip() for line in table.splitlines() for part in line.split("│")]
    assert [level for level in levels if level not in cells] == []
    assert {line[-1] for line in table.splitlines() if line[0] in "┏┃┡│└"} <= set("┓┃┩│┘")  # the right edge


@pytest.mark.parametrize(("seconds", "cheap"), [(0.0, True), (1e6, False)])
def test_a_forecast_that_takes_longer_than_the_run_says_so(seconds, cheap, capsys):
    auditing.show_forecast(Terminal(), iter([audit.Part("attack", seconds)]))
    assert ("running it is cheaper than this forecast" in capsys.readouterr().out) == cheap
