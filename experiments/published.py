"""One table that sets published numbers beside ours, made from the rows that `harness.run_table` committed.

A line of the table is a row of a published table, in the order of the seed papers. "ours" was measured at the
published setting, or the setting column says what was scaled down; a scaled run reproduces nothing, however near its
number is. "spectral" is this library's attack on the same network and data (`experiments.spectral`), with no more
seconds than the published loop's full run there.
"""

import importlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

PAPERS = {
    "inverting_gradients_single": "Inverting Gradients, table 1",
    "inverting_gradients_width": "Inverting Gradients, width",
    "inverting_gradients_batches": "Inverting Gradients, batches",
    "inverting_gradients_fedavg": "Inverting Gradients, FedAvg",
    "see_through_gradients_ladder": "GradInversion, ladder",
}
"""Experiments with published numbers, and what a line calls them, in the order of the table."""
CASES = {
    "LeNet untrained, cosine": "LeNet untrained",
    "LeNet trained, cosine": "LeNet trained",
    "ResNet20-4 untrained, cosine": "ResNet20-4",
    "ConvNet-64 untrained, cosine": "ConvNet-64",
    "width 64": "ConvNet-64",
}
"""Rows, and the cases of `experiments.spectral` with the same network and data."""
HEADER = ("published table", "row", "published dB", "ours dB", "measured at", "spectral at equal time, dB")


def published(folder: Path) -> str:
    """All rows with a published number, as one Markdown table; `folder` holds the result files."""
    rivals = json.loads((folder / "spectral.json").read_text(encoding="utf-8"))["rows"]
    lines = [f"| {' | '.join(HEADER)} |", "| --- | --- | ---: | ---: | --- | ---: |"]
    for name, paper in PAPERS.items():
        measured = _measured(folder / f"{name}.json")
        for row in importlib.import_module(f"experiments.{name}").ROWS:
            if row.published_db is None:
                continue
            ours, setting, rival = "-", "not measured", "-"
            if (found := measured.get(row.name)) is not None:
                ours = f"{found['mean_psnr_db']:.1f} ± {found['std_psnr_db']:.1f}"
                setting = setting_of(found, row.paper)
                if found["full"] and found["mean_psnr_db"] < row.published_db:
                    ours += " **missed**"
                rival = at_equal_time(rivals, CASES.get(row.name, ""), found["data"])
            lines.append(f"| {paper} | {row.name} | {row.published_db:.2f} | {ours} | {setting} | {rival} |")
    return "\n".join(lines) + "\n"


def _measured(file: Path) -> dict[str, dict[str, Any]]:
    if not file.exists():
        return {}
    return {row["row"]: row for row in json.loads(file.read_text(encoding="utf-8"))["rows"]}


def setting_of(found: Mapping[str, Any], paper: Mapping[str, Any]) -> str:
    """What of the paper's setting was scaled down, or "as published"; with the number of images."""
    images = f"{found['images']} image{'s' if found['images'] > 1 else ''}"
    if found["full"]:
        return f"as published, {images}"
    used = dict(pair.split("=", 1) for pair in found["setting"].split(" ") if "=" in pair)
    scaled = []
    if used["model"] != paper["model"]:
        scaled.append(f"**{used['model']} for {paper['model']}**")
    if found["steps"] != paper["steps"]:
        scaled.append(f"{found['steps']:,} of {paper['steps']:,} steps")
    examples = paper.get("num_examples", 1)
    if int(used.get("num_examples", 1)) != examples:
        scaled.append(f"batch of {used.get('num_examples', 1)} for {examples}")
    return f"scaled: {', '.join([*scaled, images])}"


def at_equal_time(rows: list[dict[str, Any]], case: str, data: str) -> str:
    """Spectral matching on the case's first network: most steps in no more time than the published loop."""
    same = [row for row in rows if (row["case"], row["data"], row["seed"]) == (case, data, 0)]
    loop = [row for row in same if row["attack"] == "inverting-gradients"]
    if not loop:
        return "-"
    limit = max(loop, key=lambda row: row["steps"])["seconds"]
    runs = [row for row in same if row["attack"] == "spectral" and row["seconds"] <= limit]
    if not runs:
        return "-"
    best = max(runs, key=lambda row: row["steps"])
    interval = f"{best['gain_db']:+.1f} [{best['gain_low_db']:.1f}, {best['gain_high_db']:.1f}]"
    size = f"{best['clients']} clients, {best['seconds'] / limit:.0%} of the time"
    return f"{best['mean_psnr_db']:.1f} ({interval}, {size})"
