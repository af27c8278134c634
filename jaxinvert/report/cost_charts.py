"""Charts of what protection costs: leakage against accuracy, and accuracy along the training, setting by setting.

Settings are told apart by their numbers, which stand beside every dot and at the end of every line, and only then by
color and dashes.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxinvert.report.charts import MAX_KINDS, axis, dots, line
from jaxinvert.report.wording import plural

_LABEL_WIDTH, _LABEL_HEIGHT = 5.0, 7.0
"""Of a number beside a dot, in percent of a plot."""


def cost_charts(settings: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Charts of the settings whose accuracy is known; none if there are fewer than two.

    Args:
      settings: of an audit's record, see `jaxinvert.audit.record`.
    """
    known = [(number, one) for number, one in enumerate(settings, 1) if one["utility"]]
    return [_leakage_against_accuracy(known), _along_training(known)] if len(known) > 1 else []


def _leakage_against_accuracy(settings: Sequence[tuple[int, Mapping[str, Any]]]) -> dict[str, Any]:
    """A dot for each setting; bars over the intervals of both."""
    excess = np.array([[_excess(one)[name] for name in ("low", "mean", "high")] for _, one in settings])
    accuracy = np.array([100 * one["utility"]["accuracy"][-1] for _, one in settings])
    errors = np.array([196 * _standard_error(one["utility"]) for _, one in settings])
    low, high = np.maximum(accuracy - errors, 0), np.minimum(accuracy + errors, 100)
    place_x, x_ticks = axis([*excess.ravel(), 0.0], pad=0.06)
    place_y, y_ticks = axis([*low, *high], pad=0.06)
    across, down = place_x(excess), 100 - place_y(accuracy)
    paths = []
    for (number, _), (left, middle, right), at, bottom, top in zip(settings, across, down, low, high):
        bars = f"M{left:.2f} {at:.2f}H{right:.2f}M{middle:.2f} {100 - place_y(bottom):.2f}V{100 - place_y(top):.2f}"
        paths += [(f"bar {_kind(number)}", bars), (f"mark {_kind(number)}", dots(np.array([middle]), np.array([at])))]
    places = _apart([(float(x) + 1.2, float(y) - 5.5) for (_, x, _), y in zip(across, down)])
    return {
        "height": 300, "x": x_ticks, "y": [(100 - at, label) for at, label in y_ticks], "paths": paths,
        "points": [(x, y, str(number)) for (number, _), (x, y) in zip(settings, places)],
        "marks": [(float(place_x(0.0)), "no more than the controls")],
        "y_title": "accuracy in %; bars are 95 % intervals",
        "x_title": "leakage: PSNR above the controls in dB, worst attacker. Better is up and left.",
        "alt": f"Accuracy against leakage of {plural(len(settings), 'setting')}; the table above has the numbers.",
    }  # fmt: skip


def _along_training(settings: Sequence[tuple[int, Mapping[str, Any]]]) -> dict[str, Any]:
    """A line for each setting."""
    lines = [
        (number, *(np.array(one["utility"][key], float) for key in ("rounds", "accuracy")))
        for number, one in settings
    ]
    place_x, x_ticks = axis(np.concatenate([rounds for _, rounds, _ in lines]), pad=0.03)
    place_y, y_ticks = axis(np.concatenate([100 * accuracy for _, _, accuracy in lines]), pad=0.06)
    drawn = [(number, place_x(rounds), 100 - place_y(100 * accuracy)) for number, rounds, accuracy in lines]
    ends = _apart([(float(x[-1]) + 0.8, float(y[-1]) - 3.5) for _, x, y in drawn])
    return {
        "height": 300, "x": x_ticks, "y": [(100 - at, label) for at, label in y_ticks],
        "paths": [(f"line {_kind(number)}", line(x, y)) for number, x, y in drawn],
        "points": [(x, y, str(number)) for (number, _, _), (x, y) in zip(drawn, ends)],
        "y_title": "accuracy in %", "x_title": "rounds of federated training",
        "alt": f"Accuracy along the training under {plural(len(settings), 'setting')}; the table above has the last.",
    }  # fmt: skip


def _excess(setting: Mapping[str, Any]) -> Mapping[str, float]:
    return setting["attackers"][setting["worst"]]["excess_psnr_db"]


def _standard_error(utility: Mapping[str, Any]) -> float:
    """Of the last accuracy, as a share."""
    accuracy = utility["accuracy"][-1]
    return float(np.sqrt(accuracy * (1 - accuracy) / utility["num_test"]))


def _kind(number: int) -> str:
    return f"kind{(number - 1) % MAX_KINDS}"


def _apart(places: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The places of labels, in percent across and down, moved down where one would lie on another."""
    placed: dict[int, tuple[float, float]] = {}
    for index in sorted(range(len(places)), key=lambda i: places[i][1]):
        x, y = places[index]
        for other_x, other_y in sorted(placed.values(), key=lambda place: place[1]):
            if abs(x - other_x) < _LABEL_WIDTH and abs(y - other_y) < _LABEL_HEIGHT:
                y = other_y + _LABEL_HEIGHT
        placed[index] = (x, y)
    return [placed[index] for index in range(len(places))]
