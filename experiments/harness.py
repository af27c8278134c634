"""What all experiments share: a table on the screen, and the same rows as JSON with the device they ran on."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from rich.console import Console
from rich.table import Table
from rich.text import Text

from jaxinvert import store
from jaxinvert.job import device_name


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
        content = {"title": title, "device": device_name(), "jax": jax.__version__, "rows": list(rows)}
        store.save_json(json_file, content)


def format_value(value: Any) -> str:
    """A figure with three digits, `-` where there is none."""
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}" if abs(value) < 10 else f"{value:.1f}"
    return str(value)
