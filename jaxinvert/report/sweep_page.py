"""Writes one self-contained HTML page about a sweep: quality of every setting, pictures, and failures.

PSNR and SSIM come with the rows; computed here are their statistics over seeds and images, and the line-up of the
best setting, which says whether its images are recognizable (see `metrics.recognition`). Pictures are selected by
PSNR, by a fixed rule. Strings are untrusted (values of a sweep file, class names, tracebacks), so everything on the
page is escaped. The size of the page is bounded: at most a given number of settings, twelve pictures, and a few dozen
kinds of failure.
"""

import json
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from jaxinvert.files import save_bytes
from jaxinvert.metrics.recognition import LineUp
from jaxinvert.report.charts import MAX_KINDS, psnr_ranges, sweep_chart
from jaxinvert.report.line_up import line_up_of
from jaxinvert.report.pictures import as_byte_pairs, data_uri
from jaxinvert.report.sweep_figures import (
    FAIR_DB,
    GridPoint,
    field_names,
    num_settings,
    setting_text,
    settings_of,
    without_seed,
)
from jaxinvert.report.templates import render
from jaxinvert.report.wording import conclusion, flattened, image_name

_PICKS_ORIGINALS = {"data", "split", "size", "num_examples", "targets", "aggregate"}
_MAX_CHARTS, _MAX_POINTS, _MAX_COMPARED, _MAX_ASSUMPTIONS = 12, 24, 200, 6
_MAX_FAILURES, _MAX_FAILED_JOBS, _MAX_TRACEBACK = 30, 12, 20_000


class FinishedJob(Protocol):
    """A record of a job, as yielded by `sweeps.records_of`."""

    @property
    def name(self) -> str:
        """Name of the job, as in the rows."""
        ...

    @property
    def config(self) -> Mapping[str, Any]:
        """Fields of the job."""
        ...

    @property
    def summary(self) -> Mapping[str, Any]:
        """Summary of the job, with optional `device`, `versions` and `assumptions`."""
        ...

    @property
    def arrays(self) -> Mapping[str, np.ndarray]:
        """`truth` and `reconstruction` `[N, H, W, C]` in [0, 1], `C` 1 or 3; read only if a picture is shown."""
        ...


class Found(NamedTuple):
    """Data collected in one pass over the records of a sweep.

    Attributes:
      pictures: original and reconstruction of the wanted images as `data:` URIs, with height and width in pixels.
      devices: number of jobs per device.
      versions: for each package, number of jobs per version.
      assumptions: the distinct assumptions.
      common: fields and values that all jobs share, as text.
      best: the line-up of the best setting's images, at most `_MAX_COMPARED`; `None` without any.
    """

    pictures: dict[tuple[str, int], tuple[str, str, int, int]]
    devices: Counter[str]
    versions: dict[str, Counter[str]]
    assumptions: list[Mapping[str, Any]]
    common: list[tuple[str, str]]
    best: LineUp | None


def save_sweep_html(
    path: str | PathLike[str],
    *,
    rows: Sequence[Mapping[str, Any]],
    varied: Sequence[str],
    records: Iterable[FinishedJob],
    failures: Sequence[Mapping[str, Any]] = (),
    jobs: Mapping[str, Mapping[str, Any]] | None = None,
    title: str = "",
    command: str = "",
    limit: int = 200,
) -> None:
    """Writes one self-contained HTML page: no scripts, no requests, embedded pictures and charts.

    Args:
      path: the file to write.
      rows: one per image, as returned by `sweeps.summarize`; PSNR and SSIM may be NaN or None.
      varied: the fields in which jobs differ; jobs that differ only in `seed` form one setting.
      records: records of the finished jobs, iterated once, with one record in memory at a time.
      failures: `name`, `config` and `traceback` of jobs that failed.
      jobs: values of the fields `varied` by job name, for all jobs of the sweep; by default no job is missing.
      title: name of the sweep, such as its file name.
      command: command that reproduces the sweep.
      limit: maximal number of settings in the table.

    Raises:
      ValueError: if the arrays of a record whose picture is to be shown are not two equal `[N, H, W, C]`.
    """
    settings = settings_of(rows, varied, jobs)
    groups = chosen_pictures(settings)
    found = gather(
        records,
        {(row["job"], at) for _, _, images in groups for _, row, at in images},
        of_best={row["job"] for row, _ in groups[0][1].images} if groups else set(),
    )
    done = {row["job"] for row in rows}
    failed = [one for one in failures if one["name"] not in done and (jobs is None or one["name"] in jobs)]
    num_jobs = len(jobs) if jobs is not None else len(done) + len(failed)
    chart_list, unfit, split = charts_of(settings, varied)
    scale, ranges = psnr_ranges([setting.figures for setting in settings[:limit]])
    page = render(
        "sweep.html.jinja", conclusion=conclusion(found.best, pooled="seed" in varied) if found.best else None,
        setting_text=setting_text, realism_of=_realism,
        title=title, command=command, fair_db=FAIR_DB, image_name=image_name,
        names=field_names(varied), fields=without_seed(varied), has_seeds="seed" in varied,
        words=[field for field in varied if any(isinstance(s.values.get(field), str) for s in settings)],
        unlike=[field for field in varied if field in _PICKS_ORIGINALS],
        settings=settings, limit=limit, scale=scale, ranges=ranges,
        num_settings=num_settings(varied, jobs) if jobs else len(settings), num_images=len(rows),
        num_jobs=num_jobs, num_done=len(done), num_failed=len(failed),
        num_missing=max(0, num_jobs - len(done) - len(failed)),
        charts=chart_list, unfit=unfit, split=split, groups=groups, found=found,
        failures=failures_by_kind(failed, varied), max_failures=_MAX_FAILURES,
        max_assumptions=_MAX_ASSUMPTIONS,
    )  # fmt: skip
    save_bytes(Path(path), page)


def chosen_pictures(
    settings: Sequence[GridPoint],
) -> list[tuple[str, GridPoint, list[tuple[str, Mapping[str, Any], int]]]]:
    """Selects the best, median and worst image by PSNR, of the best and of the median setting.

    Args:
      settings: best first.

    Returns:
      For each setting a heading, the setting, and its images, each with a heading, its row, and its index among the
      pictures of its job.
    """
    known = [setting for setting in settings if not np.isnan(setting.figures["median"])]
    if not known:
        return []
    middle = len(known) // 2
    groups = {"Best setting": known[0]} if len(known) > 1 else {"The setting": known[0]}
    if middle > 0:
        groups[f"Median setting, number {middle + 1:,} of {len(known):,}"] = known[middle]
    return [(heading, setting, _best_median_worst(setting)) for heading, setting in groups.items()]


def gather(records: Iterable[FinishedJob], wanted: set[tuple[str, int]], *, of_best: Collection[str] = ()) -> Found:
    """Iterates over the records once, and keeps only the pictures of the wanted images.

    Args:
      records: see `FinishedJob`.
      wanted: pairs of a job name and the index of a picture.
      of_best: names of the jobs whose images are compared in a line-up.

    Raises:
      ValueError: if the arrays of a job with wanted pictures are not two equal `[N, H, W, C]`.
    """
    places: dict[str, list[int]] = {}
    for name, at in wanted:
        places.setdefault(name, []).append(at)
    found = Found({}, Counter(), {}, [], [], None)
    compared: list[tuple[np.ndarray, np.ndarray]] = []
    kinds: dict[str, Mapping[str, Any]] = {}
    common: dict[str, str] | None = None
    for record in records:
        found.devices[str(record.summary.get("device") or "unknown")] += 1
        for package, version in (record.summary.get("versions") or {}).items():
            found.versions.setdefault(package, Counter())[str(version)] += 1
        if assumed := record.summary.get("assumptions"):
            kinds.setdefault(json.dumps(assumed, sort_keys=True, default=str), assumed)
        pairs = dict(flattened(record.config))
        common = pairs if common is None else {key: v for key, v in common.items() if pairs.get(key) == v}
        for at in places.get(record.name, ()):
            part = slice(at, at + 1)
            originals, rebuilt = as_byte_pairs(record.arrays["truth"][part], record.arrays["reconstruction"][part])
            address = data_uri(originals[0]), data_uri(rebuilt[0])
            found.pictures[record.name, at] = (*address, *originals.shape[1:3])
        if record.name in of_best and (rest := _MAX_COMPARED - sum(len(truth) for truth, _ in compared)) > 0:
            compared.append(as_byte_pairs(record.arrays["truth"][:rest], record.arrays["reconstruction"][:rest]))
    return found._replace(
        assumptions=list(kinds.values()),
        common=list((common or {}).items()),
        best=line_up_of(*map(np.concatenate, zip(*compared))) if compared else None,
    )


def charts_of(settings: Sequence[GridPoint], varied: Sequence[str]) -> tuple[list[dict[str, Any]], list[str], str]:
    """Charts PSNR against every numeric field, all on the same scale.

    One non-numeric field distinguishes lines: the first one with few values if possible, a boolean field only if
    there is no other. Images are pooled over all remaining fields.

    Args:
      settings: best first; at most six lines are drawn, those of the best settings.
      varied: the fields in which jobs differ.

    Returns:
      The charts; the numeric fields that vary only together with the line field; and the short name of the line
      field, or "".
    """
    names = field_names(varied)
    known = [setting for setting in settings if not np.isnan(setting.figures["median"])]
    values = {field: list(dict.fromkeys(s.values[field] for s in known)) for field in without_seed(varied)}
    numeric = [field for field, of_field in values.items() if _is_numeric(of_field)]
    wordy = [field for field, of_field in values.items() if field not in numeric and len(of_field) > 1]
    split = min(wordy, key=lambda field: (_is_switch(values[field]), len(values[field]) > MAX_KINDS), default=None)
    drawn, unfit = [], []
    for field in numeric:
        lines = _lines(known, field, split)
        several = any(len(x) > 1 for x, _, _ in lines.values())
        drawn += [(field, lines)] if several else []
        unfit += [] if several else [names[field]]
    ends = [level for _, lines in drawn for _, quartiles, _ in lines.values() for level in quartiles.flat]
    charts = []
    for field, lines in drawn[:_MAX_CHARTS]:
        chart = sweep_chart(names[field], {k: (x, q) for k, (x, q, _) in lines.items()}, reach=[min(ends), max(ends)])
        table = [(k, at, *q, n) for k, (x, qs, ns) in lines.items() for at, q, n in zip(x, qs, ns)]
        pooled = [names[other] for other in values if other not in (field, split)]
        hidden = len(values[split]) - MAX_KINDS if split else 0
        charts.append(
            {
                "field": names[field], "chart": chart, "table": table, "pooled": pooled, "hidden": max(0, hidden),
                "binned": len(values[field]) > _MAX_POINTS, "absent": None in values[field],
            }
        )  # fmt: skip
    return charts, unfit, names[split] if split else ""


def failures_by_kind(failures: Sequence[Mapping[str, Any]], varied: Sequence[str]) -> list[dict[str, Any]]:
    """Groups failures by their exception line, most frequent first.

    Returns:
      `line`, `count`, the first `traceback`, shortened if very long, and `jobs`, at most a dozen with their values.
    """
    kinds: dict[str, list[Mapping[str, Any]]] = {}
    for failure in failures:
        kinds.setdefault(exception_line(str(failure.get("traceback") or "")), []).append(failure)
    names = field_names(varied)
    described = []
    for line, alike in kinds.items():
        trace = str(alike[0].get("traceback") or "")
        cut = "… (the start is omitted)\n" + trace[-_MAX_TRACEBACK:] if len(trace) > _MAX_TRACEBACK else trace
        jobs = [
            (str(one["name"]), [(names[field], setting_text(_field(one, field))) for field in varied])
            for one in alike[:_MAX_FAILED_JOBS]
        ]
        described.append({"line": line[:500], "count": len(alike), "traceback": cut, "jobs": jobs})
    return sorted(described, key=lambda kind: -kind["count"])


def exception_line(traceback: str) -> str:
    """The exception line of a traceback: the first line after the last frame, because notes may follow it."""
    lines = traceback.rstrip().splitlines()
    frames = [i for i, line in enumerate(lines) if re.match(r"  File \"", line)]
    after = (line for line in lines[frames[-1] :] if line.strip() and not line.startswith(" ")) if frames else ()
    return next(iter(after), lines[-1] if lines else "no traceback was recorded")


def _realism(setting: GridPoint) -> str:
    """How realistic the assumptions of a setting are, see `jobs.realism`; a dash for records without it."""
    return "; ".join(dict.fromkeys(str(row.get("realism") or "—") for row, _ in setting.images))


def _best_median_worst(setting: GridPoint) -> list[tuple[str, Mapping[str, Any], int]]:
    order = np.argsort(-setting.psnr_db, kind="stable")[: len(setting.images) - setting.num_unmeasured]
    ranks = {0: "Best image", len(order) // 2: "Median image", len(order) - 1: "Worst image"}
    if len(order) < 3:
        ranks = {0: "Best image", 1: "Worst image"} if len(order) == 2 else {0: "The only image"}
    return [(what, *setting.images[order[rank]]) for rank, what in ranks.items()]


def _is_numeric(values: Sequence[Any]) -> bool:
    """Whether a field has several values, all of them numbers or absent."""
    present = [value for value in values if value is not None]
    return len(present) > 1 and all(isinstance(v, int | float) and not isinstance(v, bool) for v in present)


def _is_switch(values: Sequence[Any]) -> bool:
    return all(value is None or isinstance(value, bool) for value in values)


def _lines(
    settings: Sequence[GridPoint], field: str, split: str | None
) -> dict[str, tuple[np.ndarray, np.ndarray, list[int]]]:
    """For each line: values `[P]` of a field, PSNR quartiles at each value `[P, 3]`, and numbers of images.

    The lines are those of the best settings, the same for every field; a line without the field has no points.
    """
    kinds: dict[str, dict[float, list[np.ndarray]]] = {}
    values = sorted({s.values[field] for s in settings if s.values[field] is not None})
    bins = np.array_split(np.array(values, dtype=float), min(len(values), _MAX_POINTS))
    place = dict(zip(values, np.concatenate([np.full(len(part), np.median(part)) for part in bins])))
    for setting in settings:
        points = kinds.setdefault(_kind(setting, split), {})
        if (value := setting.values[field]) is not None:
            points.setdefault(float(place[value]), []).append(setting.psnr_db[~np.isnan(setting.psnr_db)])
    lines = {}
    for kind, points in list(kinds.items())[:MAX_KINDS]:
        images = {at: np.concatenate(points[at]) for at in sorted(points)}
        quartiles = [np.percentile(psnr, (25, 50, 75)) for psnr in images.values()]
        lines[kind] = (
            np.array(list(images)),
            np.reshape(quartiles, (-1, 3)),
            [len(psnr) for psnr in images.values()],
        )
    return lines


def _kind(setting: GridPoint, split: str | None) -> str:
    if split is None:
        return ""
    value = setting_text(setting.values[split])
    return f"{split} {value}" if isinstance(setting.values[split], bool) else value


def _field(failure: Mapping[str, Any], field: str) -> Any:
    config = failure.get("config") or {}
    inner = field.removeprefix("settings.")
    return config.get(field) if inner == field else (config.get("settings") or {}).get(inner)
