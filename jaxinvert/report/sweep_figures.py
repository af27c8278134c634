"""Statistics of a sweep for each setting, over seeds and images, and their terminal table.

Rows are mappings, one per image, as returned by `sweeps.summarize`: `job`, the fields in which jobs differ,
`psnr_db`, `ssim` and other facts about the image. Rows of one job are in the order of its pictures. A setting
comprises all jobs that differ only in their `seed`.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from rich import box
from rich.table import Table
from rich.text import Text

from jaxinvert.escaping import visible
from jaxinvert.metrics import MAX_PSNR_DB
from jaxinvert.report.wording import floats, number, plural

FAIR_DB = 20.0
"""Rule of thumb: from this PSNR on, the content of most pictures is recognizable, though not in detail."""


class GridPoint(NamedTuple):
    """Jobs that differ only in their seed, with their joint statistics.

    Attributes:
      values: values of the fields in which jobs differ, without `seed`.
      images: the row of every image, and its index among the pictures of its job.
      psnr_db: `[N]` PSNR of the images, NaN if not measured.
      figures: `median`, `mean`, `q25`, `q75`, `min`, `max` of the measured PSNR in dB; `ssim`, the median; `share`,
        the fraction of all images with at least `FAIR_DB`. NaN without any image to count.
      num_jobs: number of finished jobs, one per seed.
      num_planned: number of jobs of this setting, finished or not.
    """

    values: dict[str, Any]
    images: list[tuple[Mapping[str, Any], int]]
    psnr_db: np.ndarray
    figures: dict[str, float]
    num_jobs: int
    num_planned: int

    @property
    def num_unmeasured(self) -> int:
        """Images without a PSNR."""
        return int(np.isnan(self.psnr_db).sum())


def settings_of(
    rows: Iterable[Mapping[str, Any]],
    varied: Sequence[str],
    jobs: Mapping[str, Mapping[str, Any]] | None = None,
) -> list[GridPoint]:
    """Groups images by setting.

    Args:
      rows: one per image, see the module docstring.
      varied: the fields in which jobs differ.
      jobs: values of these fields for every job of the sweep, finished or not; by default only finished jobs count.

    Returns:
      The settings with at least one finished job, sorted by median PSNR, then mean PSNR, highest first; settings
      without any PSNR come last.
    """
    fields = without_seed(varied)
    planned = Counter(_values(values, fields) for values in (jobs or {}).values())
    groups: dict[tuple, list[tuple[Mapping[str, Any], int]]] = {}
    num_seen: Counter[Any] = Counter()
    for row in rows:
        groups.setdefault(_values(row, fields), []).append((row, num_seen[row["job"]]))
        num_seen[row["job"]] += 1
    settings = []
    for values, images in groups.items():
        psnr_db = _measured(row.get("psnr_db") for row, _ in images)
        num_jobs = len({row["job"] for row, _ in images})
        figures = _figures(psnr_db, floats(row.get("ssim") for row, _ in images))
        settings.append(
            GridPoint(dict(zip(fields, values)), images, psnr_db, figures, num_jobs, max(num_jobs, planned[values]))
        )
    return sorted(settings, key=_from_the_best)


def num_settings(varied: Sequence[str], jobs: Mapping[str, Mapping[str, Any]]) -> int:
    """Number of settings among the jobs of a sweep, finished or not."""
    return len({_values(values, without_seed(varied)) for values in jobs.values()})


def sweep_table(rows: Iterable[Mapping[str, Any]], varied: Sequence[str], limit: int = 20) -> Table:
    """Terminal table of a sweep's settings, best first: median and quartiles of the PSNR, median SSIM.

    Args:
      rows: one per image, see the module docstring.
      varied: the fields in which jobs differ.
      limit: settings shown; a line states how many are omitted.
    """
    settings, names = settings_of(rows, varied), field_names(varied)
    table = Table(
        title_justify="left", caption_justify="left", box=box.SIMPLE_HEAD, collapse_padding=True, pad_edge=False
    )
    for field in without_seed(varied):
        longest = max([len(setting_text(setting.values[field])) for setting in settings] or [0])
        table.add_column(
            Text(visible(names[field])), overflow="fold", min_width=min(max(longest, len(names[field])), 20)
        )
    for heading in ("PSNR dB", "quartiles", "SSIM"):
        table.add_column(heading, justify="right", no_wrap=True)
    for rank, setting in enumerate(settings[:limit]):
        found = {name: number(setting.figures[name], "psnr_db") for name in ("median", "q25", "q75")}
        table.add_row(
            *(Text(visible(setting_text(value))) for value in setting.values.values()),
            found["median"],
            f"{found['q25']} to {found['q75']}",
            number(setting.figures["ssim"], "ssim"),
            style="bold" if rank == 0 and len(settings) > 1 else None,
        )
    if len(settings) > limit:
        table.caption = Text(f"{plural(len(settings) - limit, 'more setting')} in summary.parquet")
    return table


def without_seed(varied: Sequence[str]) -> list[str]:
    """The fields that distinguish settings: all but `seed`."""
    return [field for field in varied if field != "seed"]


def field_names(varied: Sequence[str]) -> dict[str, str]:
    """Short names of fields: `settings.tv` becomes `tv` if that is unique."""
    short = {field: field.removeprefix("settings.") for field in varied}
    counts = Counter(short.values())
    return {field: name if counts[name] == 1 else field for field, name in short.items()}


def setting_text(value: Any) -> str:
    """Formats the value of a field so that different values have different texts."""
    if not isinstance(value, float):
        return "—" if value is None else str(value)
    return text if float(text := f"{value:g}") == value else repr(value)


def _values(row: Mapping[str, Any], fields: Sequence[str]) -> tuple:
    return tuple(row.get(field) for field in fields)


def _measured(values: Iterable[Any]) -> np.ndarray:
    """PSNR in dB `[N]`, clipped to the measurable range; NaN if missing."""
    return np.clip(floats(values), -MAX_PSNR_DB, MAX_PSNR_DB)


def _figures(psnr_db: np.ndarray, ssim: np.ndarray) -> dict[str, float]:
    known, similar = psnr_db[~np.isnan(psnr_db)], ssim[np.isfinite(ssim)]
    names = ("min", "q25", "median", "q75", "max")
    levels = np.percentile(known, (0, 25, 50, 75, 100)) if len(known) else np.full(5, np.nan)
    return {
        **{name: float(level) for name, level in zip(names, levels)},
        "mean": float(known.mean()) if len(known) else np.nan,
        "ssim": float(np.median(similar)) if len(similar) else np.nan,
        "share": float(np.sum(known >= FAIR_DB)) / len(psnr_db) if len(psnr_db) else np.nan,
    }


def _from_the_best(setting: GridPoint) -> tuple[float, float]:
    median, mean = setting.figures["median"], setting.figures["mean"]
    return (np.inf, np.inf) if np.isnan(median) else (-median, -mean)
