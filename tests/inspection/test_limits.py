"""The limits of the checks are those that the committed results are about, and the results keep what is promised."""

import json
from pathlib import Path

import pytest

from experiments import crafted_parameters
from jaxinvert.inspection import CHECKS

RESULTS = Path(__file__).parents[2] / "experiments" / "results" / "crafted_parameters.json"
ROWS = json.loads(RESULTS.read_text(encoding="utf-8"))["rows"]
ALL = {row["part"]: row for row in ROWS if row["networks"] == "all"}


@pytest.mark.parametrize("name", CHECKS)
def test_limits_lie_above_the_calibration_networks(name):
    highest = ALL["calibration"][f"highest_{name}"]
    assert highest is None or highest < CHECKS[name].limit


def test_the_rows_are_those_of_the_limits():
    measured = [row for row in ROWS if row["networks"] != "all"]
    assert [crafted_parameters.judged(row) for row in measured] == measured


def test_imprints_are_found_and_honest_networks_pass():
    assert ALL["honest"]["count"] >= 200
    assert ALL["honest"]["share"] <= 0.01
    assert ALL["crafted"]["count"] >= 200
    assert ALL["crafted"]["share"] >= 0.95
