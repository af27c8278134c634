"""What a person looks at after an attack: a grid of pictures as PNG, and a self-contained page as HTML.

Both draw numbers that were measured elsewhere and add no verdict to them. The one figure computed here is a
yardstick: the PSNR that a flat picture of an original's mean color would get. Strings may come from anywhere
(class names are folder names), so everything that enters the page is escaped.

The summary is the JSON object that `jaxinvert invert` writes. Every key is optional::

    {"config": {"attack", "model", "data", "num_examples", "restarts", "settings": {...}, ...}, "num_steps",
     "images": [{"target", "example", "label", "class_name", "psnr_db", "ssim", "mse"}, ...],    # N rows
     "quality": {"psnr_db": {"mean", "median", "q25", "q75", "min", "max"}, "ssim": {...}},
     "targets": [{"attack_loss", "winner", "restart_losses": [...]}, ...],
     "selected_by": "attack_loss" | "closed form", "interrupted", "command",
     "assumptions": {"known": [...], "unknown": [...], "client": "..."},
     "seconds_compile", "seconds_run", "steps_per_second", "device", "versions": {...}}
"""

import base64
import io
import math
import shlex
from collections.abc import Callable, Mapping, Sequence
from importlib import resources
from os import PathLike
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from numpy.typing import ArrayLike
from PIL import Image, ImageDraw, ImageFont

SAME_DB = 30.0
"""Rule of thumb: from this PSNR on, most pictures look the same as their original."""
HARDLY_DB = 15.0
"""Rule of thumb: below this PSNR, most pictures are hardly recognizable."""

_PAGE_PIXELS, _MAX_LINES, _MAX_POINTS, _MAX_ROWS = 4_000_000, 120, 120, 24


def save_reconstructions_png(
    path: str | PathLike[str],
    *,
    truth: ArrayLike,
    reconstruction: ArrayLike,
    captions: Sequence[str] = (),
    columns: int | None = None,
    max_pairs: int = 120,
    title: str = "",
) -> None:
    """Draws originals and reconstructions side by side, small ones enlarged without smoothing.

    Args:
      path: the file to write.
      truth: `[N, H, W, C]` originals in [0, 1], `C` 1 or 3; clamped, and black where not finite.
      reconstruction: `[N, H, W, C]`, matched one-to-one with `truth`.
      captions: one line under each pair (two at most are shown), such as `captions(summary)`; may be empty.
      columns: pairs per row; by default what gives a landscape picture with few gaps.
      max_pairs: pairs drawn; a line says how many were left out.
      title: a line above the grid, or nothing.

    Raises:
      ValueError: if the shapes are not two equal `[N, H, W, C]`, or the captions are not 0 or N.
    """
    originals, rebuilt = _pairs(truth, reconstruction)
    count = len(originals)
    if len(captions) not in (0, count):
        raise ValueError(f"captions has {len(captions)} entries, expected 0 or {count}")
    if max_pairs < 1 or (columns or 1) < 1:
        raise ValueError(f"max_pairs is {max_pairs} and columns is {columns}, expected at least 1")
    shown = min(count, max_pairs)
    side = 256 if shown <= 4 else 128
    pairs = [(_tile(a, side), _tile(b, side)) for a, b in zip(originals[:shown], rebuilt[:shown])]
    tile_width, tile_height = pairs[0][0].size
    margin, inner, gutter, line, header = 24, 6, 28, 19, 22
    pair_width = 2 * (half := max(tile_width, 120)) + inner
    small, bold = _font(13), _font(17, "DejaVuSans-Bold")
    texts = [_wrapped(caption, small, pair_width, 2) for caption in captions[:shown]] or [[]] * shown
    row_height = tile_height + line * max(map(len, texts)) + 22
    columns = min(columns or _landscape_columns(shown, pair_width + gutter, row_height), shown)
    width = 2 * margin + columns * (pair_width + gutter) - gutter
    title_lines = _wrapped(title, bold, width - 2 * margin, 3)
    top = margin + (24 * len(title_lines) + 10 if title_lines else 0)
    height = top + header + -(-shown // columns) * row_height - 22 + margin + (line + 12 if count > shown else 0)

    canvas = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(canvas)
    for i, text in enumerate(title_lines):
        draw.text((margin, margin - 4 + 24 * i), text, font=bold, fill="#1c1b19")
    for i, ((left, right), lines) in enumerate(zip(pairs, texts)):
        x = margin + (i % columns) * (pair_width + gutter)
        y = top + header + (i // columns) * row_height
        if i < columns:
            draw.text((x, top), "original", font=small, fill="#5f5b54")
            draw.text((x + half + inner, top), "reconstruction", font=small, fill="#5f5b54")
        canvas.paste(left, (x, y))
        canvas.paste(right, (x + half + inner, y))
        for j, text in enumerate(lines):
            draw.text((x, y + tile_height + 5 + line * j), text, font=small, fill="#1c1b19")
    if count > shown:
        text = f"{count - shown:,} more of {count:,} left out"
        draw.text((margin, height - margin - line + 4), text, font=small, fill="#5f5b54")
    canvas.save(path, format="PNG")


def save_report_html(
    path: str | PathLike[str],
    *,
    summary: Mapping[str, Any],
    truth: ArrayLike,
    reconstruction: ArrayLike,
    history: Mapping[str, ArrayLike] | None = None,
) -> None:
    """Writes one HTML page that needs nothing else: no script, no request, pictures and charts inside.

    Where there are more pictures than a page can hold, it shows pairs evenly spread from worst to best PSNR.

    Args:
      path: the file to write.
      summary: the run's summary, see the module's docstring; numbers may be NaN, infinite or None.
      truth: `[N, H, W, C]` originals in [0, 1], `C` 1 or 3, in the order of `summary["images"]`.
      reconstruction: `[N, H, W, C]`, matched one-to-one with `truth`.
      history: `step`, `[P]` optimizer steps done at each report, and `best_loss`, `[P, T, R]` lowest attack
        loss of every restart so far; or `None`.

    Raises:
      ValueError: if the shapes are not two equal `[N, H, W, C]`, or not `[P]` and `[P, T, R]`.
    """
    originals, rebuilt = _pairs(truth, reconstruction)
    images = [dict(row) for row in summary.get("images") or ()][: len(originals)]
    images += [{} for _ in range(len(originals) - len(images))]
    psnr = _floats(row.get("psnr_db") for row in images)
    targets = summary.get("targets") or []
    losses = [_floats(target.get("restart_losses") or ()) for target in targets]
    flat_db = float(np.median([_flat_psnr(image) for image in originals]))
    figures = [
        (_name(i, images[i]), images[i], _data_uri(originals[i]), _data_uri(rebuilt[i]))
        for i in _spread(psnr, originals[0].shape)
    ]
    command = summary.get("command") or ""
    env = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    env.filters.update(number=_number, duration=_duration, plural=_plural)
    source = resources.files("jaxinvert").joinpath("templates/report.html.jinja").read_text(encoding="utf-8")
    page = env.from_string(source).render(
        summary=summary, psnr=psnr, flat_db=flat_db, same_db=SAME_DB, hardly_db=HARDLY_DB,
        command=command if isinstance(command, str) else shlex.join(map(str, command)),
        figures=figures, shape=originals.shape, several=len(images) > 1,
        images=images, columns=list(dict.fromkeys(key for row in images for key in row)),
        psnr_chart=_psnr_chart(psnr, flat_db), loss_chart=_loss_chart(history),
        restart_chart=_restart_chart(targets, losses),
        settings=_flattened(summary.get("config") or {}), versions=_flattened(summary.get("versions") or {}),
    )  # fmt: skip
    Path(path).write_bytes(page.encode("utf-8", "replace"))  # folder names may hold lone surrogates


def captions(summary: Mapping[str, Any]) -> list[str]:
    """Names every image of a summary and its quality: "cat · 41.2 dB · SSIM 0.990"."""
    lines = []
    for i, row in enumerate(summary.get("images") or ()):
        psnr = [_number(row["psnr_db"], "psnr_db") + " dB"] if "psnr_db" in row else []
        ssim = ["SSIM " + _number(row["ssim"], "ssim")] if "ssim" in row else []
        lines.append(" · ".join([_name(i, row), *psnr, *ssim]))
    return lines


def _name(index: int, row: Mapping[str, Any]) -> str:
    by_label = f"image {index}" if row.get("label") is None else f"class {row['label']}"
    return by_label if row.get("class_name") is None else str(row["class_name"])


def _number(value: Any, key: str = "") -> str:
    """Writes a number for people; what is not finite as NaN or ∞, what is absent as a dash."""
    if value is None:
        return "—"
    if isinstance(value, bool) or not isinstance(value, int | float | np.number):
        return str(value)
    number = float(value)
    if not math.isfinite(number):
        return "NaN" if math.isnan(number) else "∞" if number > 0 else "-∞"
    if key in ("psnr_db", "ssim"):
        return f"{number:.1f}" if key == "psnr_db" else f"{number:.3f}"
    if isinstance(value, int | np.integer):
        return str(value) if key in ("seed", "label") else f"{value:,}"
    return f"{number:.2e}" if key == "mse" else f"{number:.3g}"


def _duration(seconds: Any) -> str:
    """Writes seconds as "4.2 ms", "4.2 s", "3 min 12 s" or "2 h 05 min"."""
    if not isinstance(seconds, int | float | np.number) or not math.isfinite(seconds):
        return _number(seconds)
    if seconds < 59.95:
        return f"{seconds:.1f} s" if seconds >= 0.1 else f"{1000 * seconds:.1f} ms"
    minutes, rest = divmod(round(float(seconds)), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def _plural(count: Any, noun: str) -> str:
    return f"{_number(count)} {noun}" + ("" if count == 1 else "s")


def _flattened(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Turns nested settings into pairs such as `("settings.tv", "0.01")`."""
    pairs = []
    for key, value in values.items():
        nested = isinstance(value, Mapping)
        pairs += _flattened(value, f"{prefix}{key}.") if nested else [(prefix + key, _number(value, key))]
    return pairs


# Charts: points in percent of a plot that stretches with the page; the template sets the text around it ---


def _psnr_chart(psnr: np.ndarray, flat_db: float) -> dict[str, Any] | None:
    """One dot per image along the decibels, stacked by the decibel; what is beyond stands at the edge."""
    known = np.sort(psnr[~np.isnan(psnr)])
    if not len(known):
        return None
    finite = known[np.isfinite(known)]
    low, high = min([5.0, *finite - 1]), min(60.0, max([45.0, *finite + 2]))
    place, ticks = _axis([low, high])
    x = place(np.clip(known, low, high))
    _, columns, counts = np.unique((x / 2.5).astype(int), return_inverse=True, return_counts=True)
    level = np.arange(len(x)) - (np.cumsum(counts) - counts)[columns]
    rise = min(11.0, 110 / max(1, level.max()))
    height = 112 + rise * level.max()
    center = np.array([x[columns == column].mean() for column in range(len(counts))])[columns]
    hardly, same, flat = (float(place(value)) for value in (HARDLY_DB, SAME_DB, flat_db))
    beyond, missing = int(np.sum(known > high)), len(psnr) - len(known)
    return {
        "height": round(height), "x": ticks,
        "paths": [("dot", _dots(center, 100 - 100 * (9 + rise * level) / height))],
        "bands": [
            (0, hardly, f"below {HARDLY_DB:.0f}\u00a0dB: hardly recognizable", "shade"),
            (hardly, same, "in between", ""),
            (same, 100, f"above {SAME_DB:.0f}\u00a0dB: looks the same", "shade"),
        ],
        "marks": [(flat, "flat color")] if 0 <= flat <= 100 else [],
        "x_title": "PSNR in dB, one dot per image"
        + (f"; {beyond:,} above {high:.0f} dB at the right edge" if beyond else "")
        + (f"; {missing:,} without a PSNR not drawn" if missing else ""),
        "alt": f"One dot per image from {low:.0f} to {high:.0f} dB; the table of images has the numbers.",
    }  # fmt: skip


def _loss_chart(history: Mapping[str, ArrayLike] | None) -> dict[str, Any] | None:
    """Lowest attack loss so far over steps: restarts thin, the best (median over targets) thick."""
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
        name = f"median of {_plural(lowest.shape[1], 'target')}, each with its best restart so far"
    thin, thin_name = loss.reshape(len(step), -1), "every restart"
    if thin.shape[1] > _MAX_LINES:
        thin, thin_name = lowest[:, :_MAX_LINES], f"best restart of each target, {_MAX_LINES} at most"
    log = bool(finite.min() > 0)
    place_y, y_ticks = _axis(finite, log=log, pad=0.04)
    place_x, x_ticks = _axis(step)
    lines = [*((column, "thin") for column in thin.T if thin.shape[1] > 1), (thick, "thick")]
    start, end = _number(float(thick[0])), _number(float(thick[-1]))
    return {
        "height": 300, "x": x_ticks, "y": [(100 - at, label) for at, label in y_ticks],
        "paths": [(style, _line(place_x(step), 100 - place_y(column))) for column, style in lines],
        "x_title": "optimizer steps", "y_title": f"attack loss, {'log' if log else 'linear'} scale",
        "alt": f"Attack loss over {step[-1]:,.0f} steps; {name}: from {start} to {end}.",
        "legend": [("thick", name), ("thin", thin_name)][: len(lines)],
    }  # fmt: skip


def _restart_chart(targets: Sequence[Mapping], losses: Sequence[np.ndarray]) -> dict[str, Any] | None:
    """A row per target: the final attack loss of every restart, the winner marked."""
    finite = [row[np.isfinite(row)] for row in losses]
    if max(map(len, losses), default=0) < 2 or not any(map(len, finite)):
        return None
    ratios = [row.max() / row.min() for row in finite if len(row) > 1 and row.min() > 0]
    every = np.concatenate(finite)
    rows = min(len(losses), _MAX_ROWS)
    log = bool(every.min() > 0)
    place, ticks = _axis(every, log=log, pad=0.04)
    y = 100 * (np.arange(rows) + 0.5) / rows
    points: dict[str, list[tuple[float, float]]] = {"dot": [], "won": []}
    for row, at, target in zip(losses, y, targets):
        for i in np.flatnonzero(np.isfinite(row)):
            points["won" if i == target.get("winner") else "dot"].append((float(place(row[i])), at))
    return {
        "height": 22 * rows + 12, "x": ticks, "y": [(at, f"target {i}") for i, at in enumerate(y)],
        "paths": [(style, _dots(*np.array(pairs).T)) for style, pairs in points.items() if pairs],
        "x_title": f"final attack loss, {'log' if log else 'linear'} scale"
        + (f"; {_plural(len(losses) - rows, 'more target')} not drawn" if len(losses) > rows else ""),
        "alt": f"Final attack loss of every restart for {_plural(rows, 'target')}, the winners marked.",
        "legend": [("won", "the restart that is shown"), ("dot", "other restarts")],
        "worst_over_best": float(np.median(ratios)) if ratios else None,
        "num_restarts": sum(map(len, losses)), "num_finite": len(every),
    }  # fmt: skip


def _axis(
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
    locators: list[ticker.Locator] = [ticker.MaxNLocator(5, steps=[1, 2, 5, 10])]
    if log:
        locators = [ticker.LogLocator(subs=subs, numticks=7) for subs in ((1,), (1, 3), (1, 2, 5))] + locators
    found = ([at for at in locator.tick_values(*bounds) if bounds[0] <= at <= bounds[1]] for locator in locators)
    ticks = next((ticks for ticks in found if len(ticks) >= 3), [float(np.mean(bounds))])
    return place, [(float(place(at)), f"{at:,.0f}" if abs(at) >= 10 else _number(at)) for at in ticks]


def _line(x: np.ndarray, y: np.ndarray) -> str:
    """SVG path through the finite points; it ends in a stroke without length, so that a lone point shows."""
    points = [f"{across:.2f} {down:.2f}" for across, down in zip(x, y) if np.isfinite(down)]
    return "M" + "L".join(points) + "h0" if points else ""


def _dots(x: np.ndarray, y: np.ndarray) -> str:
    """SVG path of strokes without length: round caps keep them round, however the plot is stretched."""
    return "".join(f"M{across:.2f} {down:.2f}h0" for across, down in zip(x, y))


def _pairs(truth: ArrayLike, reconstruction: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Checks the shapes and returns both as bytes."""
    pairs = np.asarray(truth, dtype=np.float32), np.asarray(reconstruction, dtype=np.float32)
    shape, other = (images.shape for images in pairs)
    if len(shape) != 4 or shape != other or 0 in shape or shape[3] not in (1, 3):
        raise ValueError(f"truth is {shape}, reconstruction is {other}, expected two equal [N, H, W, C], C 1 or 3")
    clipped = (np.clip(np.nan_to_num(images, nan=0.0, posinf=1.0, neginf=0.0), 0, 1) for images in pairs)
    first, second = (np.rint(255 * images).astype(np.uint8) for images in clipped)
    return first, second


def _image(pixels: np.ndarray) -> Image.Image:
    return Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)


def _data_uri(pixels: np.ndarray) -> str:
    buffer = io.BytesIO()
    _image(pixels).save(buffer, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def _tile(pixels: np.ndarray, side: int) -> Image.Image:
    """Enlarges by a whole factor to at least `side` pixels; larger pictures are reduced to at most 256."""
    image = _image(pixels).convert("RGB")
    factor = -(-side // max(image.size))
    if factor > 1:
        return image.resize((factor * image.width, factor * image.height), Image.Resampling.NEAREST)
    image.thumbnail((256, 256))
    return image


def _flat_psnr(pixels: np.ndarray) -> float:
    """PSNR in dB of a picture that shows the mean color everywhere; infinite if the picture does, too."""
    scaled = pixels / 255.0
    mse = float(np.mean((scaled - scaled.mean(axis=(0, 1))) ** 2))
    return -10 * math.log10(mse) if mse else math.inf


def _spread(psnr: np.ndarray, shape: Sequence[int]) -> list[int]:
    """Chooses the pairs of a page: all of them, or evenly spread from the worst to the best."""
    budget = min(max(_PAGE_PIXELS // (2 * shape[0] * shape[1]), 12), 120)
    order = np.argsort(np.where(np.isnan(psnr), -np.inf, psnr), kind="stable")
    ranks = np.rint(np.linspace(0, len(psnr) - 1, min(budget, len(psnr)))).astype(int)
    return sorted(order[ranks].tolist())


def _landscape_columns(count: int, width: int, height: int) -> int:
    def cost(columns: int) -> float:
        rows = -(-count // columns)
        return abs(math.log(columns * width / (rows * height) / 1.5)) + (rows * columns - count) / count

    return min(range(1, count + 1), key=cost)


def _font(size: int, name: str = "DejaVuSans") -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which comes with matplotlib: the same letters on every machine."""
    import matplotlib

    return ImageFont.truetype(str(Path(matplotlib.get_data_path(), "fonts", "ttf", f"{name}.ttf")), size)


def _wrapped(text: str, font: ImageFont.FreeTypeFont, width: int, max_lines: int) -> list[str]:
    """Breaks text into lines of at most `width` pixels; what does not fit ends in an ellipsis."""
    rest = " ".join(text.encode("utf-8", "replace").decode("utf-8").split())[:400]
    lines: list[str] = []
    while rest:
        fits = len(rest)
        while fits > 1 and font.getlength(rest[:fits]) > width:
            fits -= 1
        if fits < len(rest) and len(lines) == max_lines - 1:
            return [*lines, rest[: max(fits - 1, 1)].rstrip() + "…"]
        if fits < len(rest) and " " in rest[: fits + 1]:
            fits = rest.rindex(" ", 0, fits + 1)
        lines.append(rest[:fits].rstrip(" ·"))
        rest = rest[fits:].lstrip(" ·")
    return lines


def _floats(values: Any) -> np.ndarray:
    """Numbers of a JSON list, `[n]`; null and what is no number become NaN."""
    numbers = (value if isinstance(value, int | float | np.number) else np.nan for value in values)
    return np.fromiter(numbers, dtype=float)
