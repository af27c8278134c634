"""What experiments share: tables of attacks with published numbers, on the screen and as JSON with their device."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import numpy as np
import tyro
from rich.console import Console
from rich.table import Table
from rich.text import Text

from jaxinvert import files, jobs
from jaxinvert.jobs import device_name


class Row(NamedTuple):
    """One line of a published table.

    Attributes:
      name: what the paper calls it.
      paper: its setting there, as fields of `jobs.JobConfig`, by flat names.
      scaled: the fields that a run of minutes on two cores changes; `None` if there is no such run.
      published_db: the paper's mean PSNR, if there is one.
      smoke: the fields that a run of seconds changes; by default to a perceptron for two steps.
    """

    name: str
    paper: Mapping[str, Any]
    scaled: Mapping[str, Any] | None
    published_db: float | None = None
    smoke: Mapping[str, Any] = MappingProxyType(
        {"model": "mlp", "checkpoint": None, "targets": 1, "restarts": 1, "steps": 2}
    )


@dataclass(frozen=True)
class TableConfig:
    """Which part of a published table to run, and how large.

    Attributes:
      data: data set by name, folder or npz.
      full: the paper's own setting, for an accelerator, instead of one for minutes on two cores.
      rows: only those rows whose names contain one of these.
      seed: of the networks and the starts.
      smoke: a run of seconds on the embedded photos that only shows that everything works.
      json: file for the rows; rows that it holds with the same setting are not run again.
    """

    data: str = "cifar10"
    full: bool = False
    rows: tuple[str, ...] = ()
    seed: int = 0
    smoke: bool = False
    json: Path | None = None


def run_table(title: str, rows: Sequence[Row], *, description: str | None, arguments: Sequence[str] | None) -> None:
    """Runs the rows of a published table one after the other, saving each, and prints them beside the paper's.

    Args:
      title: above the table.
      rows: all of the table.
      description: for `--help`.
      arguments: those of the command line, see `TableConfig`.
    """
    config = tyro.cli(TableConfig, description=description, args=arguments)
    runnable = [row for row in rows if config.full or row.scaled is not None]
    chosen = [row for row in runnable if not config.rows or any(part in row.name for part in config.rows)]
    if config.smoke:
        config = replace(config, data="photos")
        chosen = chosen[:1]
    if not chosen:
        raise SystemExit(f"no row is named like {config.rows}; there are {[row.name for row in runnable]}")
    finished = _finished(config.json)
    for number, row in enumerate(chosen):
        chosen_fields = {**row.paper, **({} if config.full else row.scaled or {})}
        if config.smoke:
            chosen_fields |= row.smoke
        setting = " ".join(f"{name}={value}" for name, value in chosen_fields.items())
        key = (row.name, setting, Path(config.data).stem, config.seed)
        if key not in finished:
            print(f"row {number + 1} of {len(chosen)}: {row.name}", flush=True)
            measured = measure_job(jobs.JobConfig.of(**{"data": config.data, "seed": config.seed, **chosen_fields}))
            finished[key] = {
                "row": row.name,
                "published_db": row.published_db,
                "gap_db": None if row.published_db is None else measured["mean_psnr_db"] - row.published_db,
                **measured,
                "data": Path(config.data).stem,
                "seed": config.seed,
                "full": config.full or not row.scaled,
                "setting": setting,
                "device": device_name(),
                "jax": jax.__version__,
            }
        if config.json is not None:
            save(config.json, title, list(finished.values()))
    hidden = ("setting", "device", "jax")
    publish(title, [{name: row[name] for name in row if name not in hidden} for row in finished.values()])


def measure_job(settings: jobs.JobConfig) -> dict[str, Any]:
    """Prepares, runs and measures one job: its size, quality and speed as one row."""
    task = jobs.prepare(settings)
    execution = jobs.execute(settings, task.program, task.observations)
    if execution.interrupted:  # half a row is none
        raise KeyboardInterrupt
    summary = jobs.measure(settings, task, execution).summary
    psnr = np.array([image["psnr_db"] for image in summary["images"]])
    ssim = np.array([image["ssim"] for image in summary["images"]])
    return {
        "images": len(psnr),
        "restarts": settings.search.restarts,
        "steps": summary["num_steps"],
        "mean_psnr_db": float(psnr.mean()),
        "std_psnr_db": float(psnr.std()),
        "median_psnr_db": float(np.median(psnr)),
        "min_psnr_db": float(psnr.min()),
        "max_psnr_db": float(psnr.max()),
        "mean_ssim": float(ssim.mean()),
        "steps_per_second": summary["steps_per_second"],
        "seconds_run": summary["seconds_run"],
        "labels_exact": None if summary["labels"] is None else float(np.mean(summary["labels"]["exact"])),
    }


def _finished(json_file: Path | None) -> dict[tuple, dict[str, Any]]:
    """The rows of an earlier run by what determines them."""
    return {(row["row"], row["setting"], row["data"], row["seed"]): row for row in kept_rows(json_file)}


def run_rows(
    title: str,
    plan: Sequence[Any],
    measure: Callable[[Any], dict[str, Any]],
    *,
    setting: str,
    json_file: Path | None,
) -> None:
    """Measures the rows that the file does not hold, saving each, and prints all in the order of the plan.

    Args:
      title: above the table.
      plan: one NamedTuple for each row, all of one type; it determines the row, together with the setting.
      measure: `one of the plan -> columns`, of which the first are its fields.
      setting: in words, what else determines a row; rows of other settings are kept, too.
      json_file: where the rows are, and where they go. Fields that its rows lack have their defaults.
    """
    fields, defaults = type(plan[0])._fields, type(plan[0])._field_defaults
    found: dict[tuple, dict[str, Any]] = {}
    for kept in kept_rows(json_file):
        row = {
            **{name: kept.get(name, defaults.get(name)) for name in fields},
            **kept,
            "setting": kept.get("setting"),
        }
        found[tuple(row[name] for name in (*fields, "setting"))] = row
    order = {(*one, setting): number for number, one in enumerate(plan)}

    def rows() -> list[dict[str, Any]]:
        return [found[key] for key in sorted(found, key=lambda key: order.get(key, len(order)))]

    for key, one in zip(order, plan):
        if key not in found:
            found[key] = {**measure(one), "setting": setting}
            print(f"done: {one}", flush=True)
            if json_file is not None:
                save(json_file, title, rows())
    shown = [name for name in rows()[0] if name != "setting"]
    publish(title, [{name: row.get(name) for name in shown} for row in rows()])


def kept_rows(json_file: Path | None) -> list[dict[str, Any]]:
    """The rows that `save` wrote in an earlier run; none without a file."""
    if json_file is None or not json_file.exists():
        return []
    return json.loads(json_file.read_text(encoding="utf-8"))["rows"]


def publish(title: str, rows: Sequence[Mapping[str, Any]], *, json_file: Path | None = None) -> None:
    """Prints `rows` as a table, and writes `{"title", "device", "jax", "rows"}` to `json_file` if given.

    Args:
      title: above the table.
      rows: one mapping each, all with the same keys in the same order.
      json_file: where the same goes as JSON.
    """
    console = Console(width=None if Console().is_terminal else 160)
    table = Table(title=f"{title}\n{device_name()}, jax {jax.__version__}", title_justify="left")
    for name in rows[0]:
        table.add_column(name.replace("_", " "), justify="left" if isinstance(rows[0][name], str) else "right")
    for row in rows:
        table.add_row(*(Text(format_value(value)) for value in row.values()))
    console.print(table)
    if json_file is not None:
        save(json_file, title, rows)


def save(json_file: Path, title: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Writes `{"title", "device", "jax", "rows"}`."""
    content = {"title": title, "device": device_name(), "jax": jax.__version__, "rows": list(rows)}
    files.save_json(json_file, content)


def format_value(value: Any) -> str:
    """A figure with three digits, `-` where there is none."""
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}" if abs(value) < 10 else f"{value:.1f}"
    return str(value)
