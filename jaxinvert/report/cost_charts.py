"""Charts of the cost of a defense: leakage against accuracy, and both over training rounds, for every setting.

Settings are identified by their numbers, next to every dot and at the end of every line, and in addition by color and
dashes.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxinvert.report.charts import MAX_KINDS, axis, dots, line
from jaxinvert.report.wording import plural

_LABEL_WIDTH, _LABEL_HEIGHT = 5.0, 7.0
"""Size of a number next to a dot, in percent of a plot."""


def cost_charts(settings: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Charts leakage against accuracy, and accuracy over rounds unless `round_charts` does; empty for one setting.

    Args:
      settings: settings of an audit's record, see `jaxinvert.audit.record`.
    """
    known = _with(settings, "utility")
    if len(known) < 2:
        return []
    tradeoff = _leakage_against_accuracy(known)
    return [tradeoff] if _with(settings, "leakage") else [tradeoff, _accuracy_by_round(known)]


def round_charts(settings: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Charts accuracy, identified clients and PSNR above the controls over rounds, for settings attacked in rounds.

    Args:
      settings: settings of an audit's record, see `jaxinvert.audit.record`.
    """
    known = _with(settings, "leakage")
    if not known:
        return []
    identified = [np.array([_percent_identified(after) for after in one["leakage"]]).T for _, one in known]
    excess = [np.array([_interval(after["excess_psnr_db"]) for after in one["leakage"]]).T for _, one in known]
    chance = 100 * known[0][1]["leakage"][0]["identified"]["chance"]
    return [
        _accuracy_by_round(known),
        _leakage_by_round(known, identified, chance, "clients identified in %"),
        _leakage_by_round(known, excess, 0.0, "PSNR above the controls in dB"),
    ]


def _with(settings: Sequence[Mapping[str, Any]], key: str) -> list[tuple[int, Mapping[str, Any]]]:
    """Settings with a non-empty `key`, and their numbers."""
    return [(number, one) for number, one in enumerate(settings, 1) if one[key]]


def _leakage_against_accuracy(settings: Sequence[tuple[int, Mapping[str, Any]]]) -> dict[str, Any]:
    """A dot for each setting, with bars for the intervals of leakage and accuracy."""
    excess = np.array([_interval(one["attackers"][one["worst"]]["excess_psnr_db"]) for _, one in settings])
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
        "marks": [(float(place_x(0.0)), "level of the controls")],
        "y_title": "accuracy in %; bars are 95 % intervals",
        "x_title": "leakage: PSNR above the controls in dB, worst attacker. Better is up and left.",
        "alt": f"Accuracy against leakage of {plural(len(settings), 'setting')}; the table above has the numbers.",
    }  # fmt: skip


def _accuracy_by_round(settings: Sequence[tuple[int, Mapping[str, Any]]]) -> dict[str, Any]:
    """A line for each setting."""
    lines = [
        (number, *(np.array(one["utility"][key], float) for key in ("rounds", "accuracy")))
        for number, one in settings
    ]
    place_x, x_ticks = axis(np.concatenate([rounds for _, rounds, _ in lines]), pad=0.03)
    place_y, y_ticks = axis(np.concatenate([100 * accuracy for _, _, accuracy in lines]), pad=0.06)
    drawn = [(number, place_x(rounds), 100 - place_y(100 * accuracy)) for number, rounds, accuracy in lines]
    ends = [(float(x[-1]) + 0.8, float(y[-1]) - 3.5) for _, x, y in drawn]
    return {
        "height": 300, "x": x_ticks, "y": [(100 - at, label) for at, label in y_ticks],
        "paths": [(f"line {_kind(number)}", line(x, y)) for number, x, y in drawn],
        "points": _numbers(settings, ends),
        "y_title": "accuracy in %", "x_title": "rounds of federated training",
        "alt": _along("accuracy in %", settings, [100 * accuracy for _, _, accuracy in lines]),
    }  # fmt: skip


def _leakage_by_round(
    settings: Sequence[tuple[int, Mapping[str, Any]]], figures: Sequence[np.ndarray], nothing: float, title: str
) -> dict[str, Any]:
    """A line for each setting with bars for the intervals, and a dashed line at the value without leakage.

    Args:
      settings: settings with their numbers.
      figures: for each setting `[3, P]`: lower ends, values and upper ends.
      nothing: the value without leakage.
      title: title of the vertical axis.
    """
    place_x, x_ticks = axis(np.concatenate([one["utility"]["rounds"] for _, one in settings]), pad=0.03)
    place_y, y_ticks = axis([*np.concatenate([each.ravel() for each in figures]), nothing], pad=0.06)
    level = 100 - float(place_y(nothing))
    width = 1.2 * (len(settings) - 1)  # total width of the bars of one round
    bars, middles, ends = [], [], []
    for (number, one), each, shift in zip(settings, figures, np.linspace(-width / 2, width / 2, len(settings))):
        places = place_x([after["round"] for after in one["leakage"]])
        across, (low, middle, high) = places + shift, 100 - place_y(each)
        up = "".join(f"M{x:.2f} {bottom:.2f}V{top:.2f}" for x, bottom, top in zip(across, low, high))
        bars.append((f"bar {_kind(number)}", up))
        middles += [(f"line {_kind(number)}", line(across, middle)), (f"mark {_kind(number)}", dots(across, middle))]
        ends.append((float(places[-1]) + width / 2 + 2.5, float(middle[-1]) - 3.5))
    return {
        "height": 300, "x": x_ticks, "y": [(100 - at, label) for at, label in y_ticks],
        "paths": [("level", f"M0 {level:.2f}H100"), *bars, *middles],
        "points": _numbers(settings, ends), "y_title": title, "x_title": "rounds of federated training",
        "alt": _along(title, settings, [each[1] for each in figures]),
    }  # fmt: skip


def _numbers(
    settings: Sequence[tuple[int, Mapping[str, Any]]], ends: Sequence[tuple[float, float]]
) -> list[tuple[float, float, str]]:
    """The settings' numbers at the ends of their lines; none for a single line."""
    return [(x, y, str(number)) for (number, _), (x, y) in zip(settings, _apart(ends)) if len(settings) > 1]


def _along(what: str, settings: Sequence[tuple[int, Mapping[str, Any]]], values: Sequence[np.ndarray]) -> str:
    """Describes a chart over rounds in words."""
    lines = (f"setting {number} from {each[0]:.1f} to {each[-1]:.1f}" for (number, _), each in zip(settings, values))
    return f"{what} by round: {'; '.join(lines)}. The table has the numbers."


def _interval(excess: Mapping[str, float]) -> list[float]:
    """Ends and middle; of one client, which has no interval, the middle alone."""
    return [excess[name] if np.isfinite(excess[name]) else excess["mean"] for name in ("low", "mean", "high")]


def _percent_identified(after: Mapping[str, Any]) -> list[float]:
    """Percentage of identified clients, between the ends of its interval."""
    found = after["identified"]
    return [100 * share for share in (found["low"], found["count"] / found["total"], found["high"])]


def _standard_error(utility: Mapping[str, Any]) -> float:
    """Standard error of the last accuracy, as a fraction."""
    accuracy = utility["accuracy"][-1]
    return float(np.sqrt(accuracy * (1 - accuracy) / utility["num_test"]))


def _kind(number: int) -> str:
    return f"kind{(number - 1) % MAX_KINDS}"


def _apart(places: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Moves labels, at positions in percent across and down, downward until none overlap."""
    placed: dict[int, tuple[float, float]] = {}
    for index in sorted(range(len(places)), key=lambda i: places[i][1]):
        x, y = places[index]
        for other_x, other_y in sorted(placed.values(), key=lambda place: place[1]):
            if abs(x - other_x) < _LABEL_WIDTH and abs(y - other_y) < _LABEL_HEIGHT:
                y = other_y + _LABEL_HEIGHT
        placed[index] = (x, y)
    return [placed[index] for index in range(len(places))]
