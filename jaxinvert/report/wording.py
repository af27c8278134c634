"""Formats numbers, durations and names for pages and captions."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxinvert.metrics import MAX_PSNR_DB
from jaxinvert.metrics.recognition import LineUp

BY_CHANCE = 0.05
"""From this p-value on, as many recognizable reconstructions are called chance."""


def captions(summary: Mapping[str, Any]) -> list[str]:
    """Captions with name and quality of every image in a summary, such as "cat · 41.2 dB · SSIM 0.990"."""
    lines = []
    for i, row in enumerate(summary.get("images") or ()):
        psnr = [number(row["psnr_db"], "psnr_db") + " dB"] if "psnr_db" in row else []
        ssim = ["SSIM " + number(row["ssim"], "ssim")] if "ssim" in row else []
        lines.append(" · ".join([image_name(i, row), *psnr, *ssim]))
    return lines


def image_name(index: int, row: Mapping[str, Any]) -> str:
    """The class name of an image, else its class number or index."""
    by_label = f"image {index}" if row.get("label") is None else f"class {row['label']}"
    return by_label if row.get("class_name") is None else str(row["class_name"])


def conclusion(found: LineUp, *, pooled: bool = False) -> str:
    """What a person can conclude: how many private images are recognizable in their reconstructions.

    Args:
      found: the line-up.
      pooled: whether several reconstructions are of the same image, so that reconstructions are counted.
    """
    count, total = int(found.recognized.sum()), len(found.recognized)
    noun, where = ("reconstruction", "") if pooled else ("private image", " in its reconstruction")
    if total == 1:
        return f"The {noun} is {'' if count else 'not '}recognizable{where}"
    if not count:
        return f"None of {total:,} {noun}s is recognizable{where}"
    who = f"{'All' if count == total else f'{count:,} of'} {total:,} {noun}s"
    said = f"{who} {'is' if count == 1 else 'are'} recognizable"
    said += where if count == 1 or pooled else " in their reconstructions"
    return said if found.p_value < BY_CHANCE else f"{said}, no more than by chance"


def number(value: Any, key: str = "") -> str:
    """Formats a number; values that are not finite as NaN or ∞, `None` as a dash."""
    if value is None:
        return "—"
    if isinstance(value, bool) or not isinstance(value, int | float | np.number):
        return str(value)
    as_float = float(value)
    if not math.isfinite(as_float):
        return "NaN" if math.isnan(as_float) else "∞" if as_float > 0 else "-∞"
    if key == "psnr_db":  # PSNR is capped
        return f"{as_float:.1f}" if as_float < MAX_PSNR_DB else f"≥ {MAX_PSNR_DB:.0f}"
    if key in ("ssim", "haarpsi"):
        return f"{as_float:.3f}"
    if isinstance(value, int | np.integer):
        return str(value) if key in ("seed", "label") else f"{value:,}"
    return f"{as_float:.2e}" if key == "mse" else f"{as_float:.3g}"


def duration(seconds: Any) -> str:
    """Formats seconds as "4.2 ms", "4.2 s", "3 min 12 s" or "2 h 05 min"."""
    if not isinstance(seconds, int | float | np.number) or not math.isfinite(seconds):
        return number(seconds)
    if seconds < 59.95:
        return f"{seconds:.1f} s" if seconds >= 0.1 else f"{1000 * seconds:.1f} ms"
    minutes, rest = divmod(round(float(seconds)), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def plural(count: Any, noun: str) -> str:
    """Formats a count with its noun: "1 image", "2 images"."""
    return f"{number(count)} {noun}" + ("" if count == 1 else "s")


def flattened(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Flattens nested settings to pairs such as `("settings.tv", "0.01")`."""
    pairs = []
    for key, value in values.items():
        nested = isinstance(value, Mapping)
        pairs += flattened(value, f"{prefix}{key}.") if nested else [(prefix + key, number(value, key))]
    return pairs


def floats(values: Any) -> np.ndarray:
    """Numbers of a JSON list, `[n]`; null and other values become NaN."""
    numbers = (value if isinstance(value, int | float | np.number) else np.nan for value in values)
    return np.fromiter(numbers, dtype=float)
