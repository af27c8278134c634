"""Writes one self-contained HTML page about an attack.

The page shows numbers measured elsewhere. Computed here are the line-up of the headline, see `metrics.recognition`,
and a reference: the PSNR of a uniform picture with an original's mean color. Strings are untrusted (class names are
folder names), so everything on the page is escaped.

The summary is the JSON object that `jaxinvert invert` writes. Every key is optional::

    {"config": {"attack", "model", "data", "num_examples", "restarts", "settings": {...}, ...}, "num_steps",
     "images": [{"target", "example", "label", "class_name", "psnr_db", "ssim", "mse"}, ...],    # N rows
     "quality": {"psnr_db": {"mean", "median", "q25", "q75", "min", "max"}, "ssim": {...}},
     "targets": [{"attack_loss", "winner", "restart_losses": [...]}, ...],
     "selected_by": "attack_loss" | "closed form", "interrupted", "command",
     "assumptions": {"known": [...], "unknown": [...], "client": "...", "labels": "..."},
     "labels": {"exact": [...], "recall"},
     "seconds_compile", "seconds_run", "steps_per_second", "device", "versions": {...}}
"""

import shlex
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from jaxinvert.files import save_bytes
from jaxinvert.report.charts import loss_chart, psnr_chart, restart_chart
from jaxinvert.report.line_up import line_up_of
from jaxinvert.report.pictures import as_byte_pairs, data_uri, flat_psnr
from jaxinvert.report.templates import render
from jaxinvert.report.wording import conclusion, flattened, floats, image_name

_MAX_PIXELS = 4_000_000


def save_report_html(
    path: str | PathLike[str],
    *,
    summary: Mapping[str, Any],
    truth: ArrayLike,
    reconstruction: ArrayLike,
    history: Mapping[str, ArrayLike] | None = None,
) -> None:
    """Writes one self-contained HTML page: no scripts, no requests, embedded pictures and charts.

    If there are too many pictures for a page, it shows pairs evenly spaced from worst to best PSNR.

    Args:
      path: the file to write.
      summary: the run's summary, see the module docstring; numbers may be NaN, infinite or None.
      truth: `[N, H, W, C]` originals in [0, 1], `C` 1 or 3, in the order of `summary["images"]`.
      reconstruction: `[N, H, W, C]`, matched one-to-one with `truth`.
      history: `step`, `[P]` optimizer steps done at each progress report, and `best_loss`, `[P, T, R]` lowest attack
        loss of every restart so far; or `None`.

    Raises:
      ValueError: if the shapes are not two equal `[N, H, W, C]`, or not `[P]` and `[P, T, R]`.
    """
    originals, rebuilt = as_byte_pairs(truth, reconstruction)
    images = [dict(row) for row in summary.get("images") or ()][: len(originals)]
    images += [{} for _ in range(len(originals) - len(images))]
    seen = line_up_of(originals, rebuilt)
    if seen is not None:
        for row, likeness, recognized in zip(images, seen.likeness, seen.recognized):
            row |= {"haarpsi": float(likeness), "recognizable": "yes" if recognized else "no"}
    psnr = floats(row.get("psnr_db") for row in images)
    targets = summary.get("targets") or []
    losses = [floats(target.get("restart_losses") or ()) for target in targets]
    flat_db = float(np.median([flat_psnr(image) for image in originals]))
    figures = [
        (image_name(i, images[i]), images[i], data_uri(originals[i]), data_uri(rebuilt[i]))
        for i in _chosen(psnr, originals[0].shape)
    ]
    command = summary.get("command") or ""
    page = render(
        "page.html.jinja",
        summary=summary, seen=seen, headline=conclusion(seen) if seen else None, psnr=psnr, flat_db=flat_db,
        command=command if isinstance(command, str) else shlex.join(map(str, command)),
        figures=figures, shape=originals.shape, several=len(images) > 1,
        images=images, columns=list(dict.fromkeys(key for row in images for key in row)),
        psnr_chart=psnr_chart(psnr, flat_db, seen.recognized if seen else None), loss_chart=loss_chart(history),
        restart_chart=restart_chart(targets, losses),
        settings=flattened(summary.get("config") or {}), versions=flattened(summary.get("versions") or {}),
    )  # fmt: skip
    save_bytes(Path(path), page)


def _chosen(psnr: np.ndarray, shape: Sequence[int]) -> list[int]:
    """Chooses the pairs of a page: all of them, or pairs evenly spaced from the worst to the best."""
    budget = min(max(_MAX_PIXELS // (2 * shape[0] * shape[1]), 12), 120)
    order = np.argsort(np.where(np.isnan(psnr), -np.inf, psnr), kind="stable")
    ranks = np.rint(np.linspace(0, len(psnr) - 1, min(budget, len(psnr)))).astype(int)
    return sorted(order[ranks].tolist())
