"""Charts of what protection costs: points where the figures are, numbers apart, nothing from too little."""

import re

import numpy as np
import pytest

from jaxinvert.report.charts import axis
from jaxinvert.report.cost_charts import cost_charts, round_charts


def setting(excess, accuracy, worst="naive"):
    low, mean, high = excess
    attacker = {"excess_psnr_db": {"low": low, "mean": mean, "high": high}}
    utility = accuracy and {"rounds": [0, 5, 10], "accuracy": accuracy, "num_test": 100}
    return {"worst": worst, "attackers": {worst: attacker}, "utility": utility, "leakage": None}


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


def along(base, rounds, counts, excess):
    leakage = [
        {
            "round": after,
            "identified": {"count": count, "total": 8, "low": 0.5 * count / 8, "high": 1.0, "chance": 0.125},
            "excess_psnr_db": {"low": mean - 1, "mean": mean, "high": mean + 1},
        }
        for after, count, mean in zip(rounds, counts, excess)
    ]
    return base | {"leakage": leakage}


def test_leakage_by_round_is_drawn_where_the_figures_are():
    settings = [along(LEAKS, [0, 5, 10], [8, 4, 0], [9.0, 3.0, 0.0]), along(HIDES, [0, 10], [1, 1], [0.0, 0.0])]
    (tradeoff,) = cost_charts(settings)
    assert "Better is up and left" in tradeoff["x_title"]
    accuracy, identified, excess = round_charts(settings)
    for chart, expected in ((identified, [100, 50, 0]), (excess, [9.0, 3.0, 0.0])):
        first, second = (places(path) for style, path in chart["paths"] if style.startswith("mark"))
        assert len(first) == 3
        assert len(second) == 2
        scale = (first[0, 1] - first[2, 1]) / (expected[0] - expected[2])
        np.testing.assert_allclose(first[1, 1] - first[2, 1], scale * (expected[1] - expected[2]), atol=0.02)
        np.testing.assert_allclose(np.diff(first[:, 0]), 0.5 * (first[2, 0] - first[0, 0]), atol=0.02)
        ((_, level),) = [path for path in chart["paths"] if path[0] == "level"]
        nothing = second[0, 1]  # 1 of 8 is guessing here, and 0 dB no excess
        assert float(level.removeprefix("M0 ").removesuffix("H100")) == pytest.approx(nothing, abs=0.02)
    assert identified["alt"].startswith("clients identified in % by round: setting 1 from 100.0 to 0.0; setting 2")
    assert "setting 1 from 9.0 to 0.0" in excess["alt"]
    assert [label for *_, label in accuracy["points"]] == ["1", "2"]


def test_one_setting_has_its_rounds_and_no_number_at_its_lines():
    only = along(LEAKS, [0, 10], [8, 8], [1.0, 1.0])
    assert cost_charts([only]) == []
    assert [chart["points"] for chart in round_charts([only])] == [[], [], []]
    assert round_charts([LEAKS]) == []


def test_a_range_with_two_round_numbers_has_finer_ticks():
    _, ticks = axis([-2.0, 9.0])
    assert [label for _, label in ticks] == ["-2", "0", "2", "4", "6", "8"]
