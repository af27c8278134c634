"""Charts of what protection costs: points where the figures are, numbers apart, nothing from too little."""

import re

import numpy as np
import pytest

from jaxinvert.report.cost_charts import cost_charts


def setting(excess, accuracy, worst="naive"):
    low, mean, high = excess
    attacker = {"excess_psnr_db": {"low": low, "mean": mean, "high": high}}
    utility = accuracy and {"rounds": [0, 5, 10], "accuracy": accuracy, "num_test": 100}
    return {"worst": worst, "attackers": {worst: attacker}, "utility": utility}


LEAKS, HIDES = setting((8, 10, 12), [0.1, 0.4, 0.5]), setting((-1, 0, 1), [0.1, 0.1, 0.2], "adaptive")


def places(path):
    return np.array([[float(part) for part in point.split()] for point in re.findall(r"M([-\d.]+ [-\d.]+)h0", path)])


def test_more_leakage_is_right_and_more_accuracy_is_up():
    tradeoff, training = cost_charts([LEAKS, HIDES])
    (first,), (second,) = (places(path) for style, path in tradeoff["paths"] if style.startswith("mark"))
    assert first[0] > second[0]
    assert first[1] < second[1]
    ((control, _),) = tradeoff["marks"]
    assert second[0] == pytest.approx(control, abs=0.01)
    assert [label for _, _, label in training["points"]] == ["1", "2"]
    assert len(training["paths"]) == 2


def test_numbers_stay_those_of_the_table_and_do_not_lie_on_each_other():
    unmeasured = setting((0, 1, 2), None)
    charts = cost_charts([LEAKS, unmeasured, LEAKS, LEAKS])
    for chart in charts:
        (*at, one), (*there, two), (*last, three) = chart["points"]
        assert (one, two, three) == ("1", "3", "4")
        heights = sorted([at[1], there[1], last[1]])
        assert np.min(np.diff(heights)) >= 7 - 1e-9


def test_one_accuracy_is_no_comparison():
    assert cost_charts([LEAKS, setting((0, 1, 2), None)]) == []
