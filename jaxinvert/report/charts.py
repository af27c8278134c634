"""Charts as SVG paths in percent of a plot that scales with the page; the template sets the text around them."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from jaxinvert.report.wording import number, plural

MOST_DB = 60.0
"""A higher PSNR is drawn here: no difference is visible."""
MAX_KINDS = 6
"""Maximal number of distinguishable lines in a chart."""

_MAX_LINES, _MAX_POINTS, _MAX_ROWS = 120, 120, 24


def psnr_chart(psnr: np.ndarray, flat_db: float, recognized: np.ndarray | None = None) -> dict[str, Any] | None:
    """One dot per image on a PSNR axis, with dots of similar PSNR stacked; outliers are drawn at the edge.

    Args:
      psnr: `[N]` in dB; images with NaN are not drawn.
      flat_db: PSNR of a uniform picture, which is marked.
      recognized: `[N]` booleans: recognizable reconstructions have dots of their own.
    """
    order = np.argsort(psnr, kind="stable")[: int(np.sum(~np.isnan(psnr)))]
    known = psnr[order]
    if not len(known):
        return None
    finite = known[np.isfinite(known)]
    low, high = min([5.0, *finite - 1]), min(60.0, max([45.0, *finite + 2]))
    place, ticks = axis([low, high])
    x = place(np.clip(known, low, high))
    _, columns, counts = np.unique((x / 2.5).astype(int), return_inverse=True, return_counts=True)
    level = np.arange(len(x)) - (np.cumsum(counts) - counts)[columns]
    rise = min(11.0, 110 / max(1, level.max()))
    height = 60 + rise * level.max()
    center = np.array([x[columns == column].mean() for column in range(len(counts))])[columns]
    y = 100 - 100 * (9 + rise * level) / height
    seen = np.zeros(len(x), bool) if recognized is None else np.asarray(recognized)[order]
    flat = float(place(flat_db))
    beyond, missing = int(np.sum(known > high)), len(psnr) - len(known)
    return {
        "height": round(height), "x": ticks,
        "paths": [
            (style, dots(center[part], y[part])) for style, part in (("dot", ~seen), ("seen", seen)) if part.any()
        ],
        "legend": [] if recognized is None else [("seen", "recognizable"), ("dot", "not recognizable")],
        "marks": [(flat, "flat color")] if 0 <= flat <= 100 else [],
        "x_title": "PSNR in dB, one dot per image"
        + (f"; {beyond:,} above {high:.0f} dB at the right edge" if beyond else "")
        + (f"; {missing:,} without a PSNR not drawn" if missing else ""),
        "alt": f"One dot per image from {low:.0f} to {high:.0f} dB; the table of images has the numbers.",
    }  # fmt: skip


def loss_chart(history: Mapping[str, ArrayLike] | None) -> dict[str, Any] | None:
    """Lowest attack loss so far over steps: restarts thin, the best one thick (median over targets)."""
    if not history or not np.size(history["step"]):
        return None
    step, loss = (np.asarray(history[key], dtype=float) for key in ("step", "best_loss"))
    if loss.ndim != 3 or step.shape != loss.shape[:1]:
        raise ValueError(f"history has step {step.shape}, best_loss {loss.shape}, expected [P] and [P, T, R]")
    finite = loss[np.isfinite(loss)]
    if not len(finite):
        return None
    keep = np.unique(np.linspace(0, len(step) - 1, _MAX_POINTS).astype(int))
    step, loss = step[keep], np.where(np.isfinite(loss), loss, np.inf)[keep]
    lowest = loss.min(axis=2)[:, np.isfinite(loss).any(axis=(0, 2))]
    thick, name = np.median(lowest, axis=1), "best restart so far"
    if loss.shape[1] > 1:
        name = f"median of {plural(lowest.shape[1], 'target')}, each with its best restart so far"
    thin, thin_name = loss.reshape(len(step), -1), "every restart"
    if thin.shape[1] > _MAX_LINES:
        thin, thin_name = lowest[:, :_MAX_LINES], f"best restart of each target, {_MAX_LINES} at most"
    log = bool(finite.min() > 0)
    place_y, y_ticks = axis(finite, log=log, pad=0.04)
    place_x, x_ticks = axis(step)
    lines = [*((column, "thin") for column in thin.T if thin.shape[1] > 1), (thick, "thick")]
    start, end = number(float(thick[0])), number(float(thick[-1]))
    return {
        "height": 300, "x": x_ticks, "y": [(100 - at, label) for at, label in y_ticks],
        "paths": [(style, line(place_x(step), 100 - place_y(column))) for column, style in lines],
        "x_title": "optimizer steps", "y_title": f"attack loss, {'log' if log else 'linear'} scale",
        "alt": f"Attack loss over {step[-1]:,.0f} steps; {name}: from {start} to {end}.",
        "legend": [("thick", name), ("thin", thin_name)][: len(lines)],
    }  # fmt: skip


def restart_chart(targets: Sequence[Mapping], losses: Sequence[np.ndarray]) -> dict[str, Any] | None:
    """One row per target with the final attack loss of every restart; the winner is marked."""
    finite = [row[np.isfinite(row)] for row in losses]
    if max(map(len, losses), default=0) < 2 or not any(map(len, finite)):
        return None
    ratios = [row.max() / row.min() for row in finite if len(row) > 1 and row.min() > 0]
    every = np.concatenate(finite)
    rows = min(len(losses), _MAX_ROWS)
    log = bool(every.min() > 0)
    place, ticks = axis(every, log=log, pad=0.04)
    y = 100 * (np.arange(rows) + 0.5) / rows
    points: dict[str, list[tuple[float, float]]] = {"dot": [], "won": []}
    for row, at, target in zip(losses, y, targets):
        for i in np.flatnonzero(np.isfinite(row)):
            points["won" if i == target.get("winner") else "dot"].append((float(place(row[i])), at))
    return {
        "height": 22 * rows + 12, "x": ticks, "y": [(at, f"target {i}") for i, at in enumerate(y)],
        "paths": [(style, dots(*np.array(pairs).T)) for style, pairs in points.items() if pairs],
        "x_title": f"final attack loss, {'log' if log else 'linear'} scale"
        + (f"; {plural(len(losses) - rows, 'more target')} not drawn" if len(losses) > rows else ""),
        "alt": f"Final attack loss of every restart for {plural(rows, 'target')}, the winners marked.",
        "legend": [("won", "the restart that is shown"), ("dot", "other restarts")],
        "worst_over_best": float(np.median(ratios)) if ratios else None,
        "num_restarts": sum(map(len, losses)), "num_finite": len(every),
    }  # fmt: skip


def sweep_chart(
    name: str, lines: Mapping[str, tuple[np.ndarray, np.ndarray]], *, reach: Sequence[float]
) -> dict[str, Any]:
    """Median PSNR against the value of a field, with one line per kind of job and bars between the quartiles.

    Args:
      name: name of the field.
      lines: for at most `MAX_KINDS` kinds: ascending values `[P]`, and quartiles of the PSNR in dB `[P, 3]`.
      reach: lowest and highest PSNR of the plot, so that plots are comparable.
    """
    values = np.unique(np.concatenate([x for x, _ in lines.values()]))
    positive = values[values > 0]
    log = bool(values[0] >= 0 and len(positive) > 1 and positive[-1] > 10 * positive[0])
    zero_at = positive[0] / (positive[-1] / positive[0]) ** (1 / (len(positive) - 1)) if log else 0.0
    drawn = np.where(values == 0, zero_at, values)
    place_x, _ = axis(drawn, log=log, pad=0.08)
    place_y, y_ticks = axis(reach, pad=0.06)
    paths: dict[str, list[tuple[str, str]]] = {"bar": [], "line": [], "mark": []}
    for kind, (x, quartiles) in enumerate(lines.values()):
        if not len(x):
            continue
        across = place_x(np.where(x == 0, zero_at, x)) + 1.2 * (kind - (len(lines) - 1) / 2)  # bars side by side
        low, middle, high = 100 - place_y(quartiles.T)
        bars = "".join(f"M{at:.2f} {a:.2f}V{b:.2f}" for at, a, b in zip(across, low, high))
        for style, path in (("bar", bars), ("line", line(across, middle)), ("mark", dots(across, middle))):
            paths[style].append((f"{style} kind{kind}", path))
    return {
        "height": 280, "x": _ticks_at(place_x(drawn), values), "y": [(100 - at, label) for at, label in y_ticks],
        "paths": [path for style in paths.values() for path in style],
        "x_title": f"{name}, {'log' if log else 'linear'} scale"
        + (" apart from 0, at the left edge" if log and values[0] == 0 else ""),
        "y_title": "PSNR in dB: line at the median, bar between the quartiles of the images",
        "alt": f"Median PSNR over {name}, {plural(len(lines), 'line')}; the table below has the numbers.",
        "legend": [(f"kind{kind}", label) for kind, (label, (x, _)) in enumerate(lines.items()) if label and len(x)],
    }  # fmt: skip


def psnr_ranges(
    figures: Sequence[Mapping[str, float]], *, unit: str = "dB"
) -> tuple[str, list[list[tuple[str, str]]]]:
    """Box plots for the rows of a table, all on one scale.

    A PSNR above `MOST_DB` is drawn there: one exact row would squeeze all others.

    Args:
      figures: `min`, `q25`, `median`, `q75` and `max` of every row; nothing is drawn for NaN.
      unit: unit of the figures.

    Returns:
      The scale in words, and the paths of every row, in percent across and 50 down.
    """
    ends = [row[name] for row in figures for name in ("min", "max") if np.isfinite(row[name])]
    if not ends:
        return "", [[] for _ in figures]
    most = MOST_DB if unit == "dB" else np.inf
    low, high = np.floor(min(min(ends), most - 1)), min(np.ceil(max(ends)), most)
    high += low == high
    at = [{name: 100 * (min(value, most) - low) / (high - low) for name, value in row.items()} for row in figures]
    paths = [
        [
            ("whole", f"M{row['min']:.1f} 50H{row['max']:.1f}"),
            ("half", f"M{row['q25']:.1f} 50H{row['q75']:.1f}"),
            ("middle", f"M{row['median']:.1f} 50h0"),
        ]
        if np.isfinite(row["median"])
        else []
        for row in at
    ]
    return f"{low:.0f} to {'≥ ' if max(ends) > most else ''}{high:.0f} {unit}", paths


def _ticks_at(places: np.ndarray, values: np.ndarray) -> list[tuple[float, str]]:
    """A tick at every value, with as many labels as fit."""
    ticks, last = [], -np.inf
    for place, value in zip(places, values):
        ticks.append((float(place), f"{value:g}" if place - last >= 14 else ""))
        last = place if ticks[-1][1] else last
    return ticks


def axis(
    values: ArrayLike, *, log: bool = False, pad: float = 0.0
) -> tuple[Callable[[ArrayLike], np.ndarray], list[tuple[float, str]]]:
    """Returns what maps values to percent of an axis, and its ticks as `(percent, label)`."""
    from matplotlib import ticker

    forward = np.log10 if log else np.asarray
    low, high = (float(forward(value)) for value in (np.min(values), np.max(values)))
    extra = pad * (high - low) if high > low else max(0.1, 0.1 * abs(low))
    low, high = low - extra, high + extra

    def place(at: ArrayLike) -> np.ndarray:
        return 100 * (forward(np.asarray(at, dtype=float)) - low) / (high - low)

    bounds = (10**low, 10**high) if log else (low, high)
    locators: list[ticker.Locator] = [ticker.MaxNLocator(most, steps=[1, 2, 5, 10]) for most in (5, 9)]
    if log:
        locators = [ticker.LogLocator(subs=subs, numticks=7) for subs in ((1,), (1, 3), (1, 2, 5))] + locators
    found = ([at for at in locator.tick_values(*bounds) if bounds[0] <= at <= bounds[1]] for locator in locators)
    ticks = next((ticks for ticks in found if len(ticks) >= 3), [float(np.mean(bounds))])
    return place, [(float(place(at)), f"{at:,.0f}" if abs(at) >= 10 else number(at)) for at in ticks]


def line(x: np.ndarray, y: np.ndarray) -> str:
    """SVG path through the finite points; it ends in a zero-length stroke, so that a single point is visible."""
    points = [f"{across:.2f} {down:.2f}" for across, down in zip(x, y) if np.isfinite(down)]
    return "M" + "L".join(points) + "h0" if points else ""


def dots(x: np.ndarray, y: np.ndarray) -> str:
    """SVG path of zero-length strokes: round caps keep them round when the plot is stretched."""
    return "".join(f"M{across:.2f} {down:.2f}h0" for across, down in zip(x, y))
