"""Output shared by `records` and `tokens`: a progress bar over clients, a table of correct shares, assumptions."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from jaxinvert import files, jobs
from jaxinvert.cli.console import EXIT_INTERRUPTED, Terminal, cell, progress_bar


@contextmanager
def client_bar(console: Terminal, num_clients: int) -> Iterator[Callable[[int], None]]:
    """Shows a progress bar; yields a function that takes the number of finished clients."""
    with progress_bar(console) as bar:
        row = bar.add_task("compiling", total=num_clients, loss="", speed="")
        bar.refresh()
        yield lambda done: bar.update(row, description="inverting", completed=done, speed="clients", refresh=True)


def finish(
    console: Terminal, summary: dict[str, Any], remarks: Sequence[Text], *, json_file: Path | None, command_line: str
) -> int:
    """Writes the file, prints remarks, table and assumptions, and returns the exit status."""
    try:
        if json_file is not None:
            files.save_json(json_file, {**summary, "command": command_line})
    finally:  # figures are shown even if the disk is full
        _show(console, summary, remarks)
    if json_file is not None:
        console.print(f"results: {json_file}", soft_wrap=True)
    return EXIT_INTERRUPTED if summary["interrupted"] else 0


def _show(console: Terminal, summary: dict[str, Any], remarks: Sequence[Text]) -> None:
    for remark in remarks:
        console.print(remark)
    rates = summary["rates"]
    names = list(next(iter(rates.values())))
    table = Table("share correct", *names)
    for label, row in rates.items():
        shares = ("-" if row[name] is None else f"{row[name]:.1%}" for name in names)
        table.add_row(cell(label), *shares, style="dim" if label.startswith("guess") else None)
    console.print(table)
    said = {**summary["assumptions"], "realism": jobs.realism_in_words(summary["assumptions"])}
    for title, facts in said.items():
        text = facts if isinstance(facts, str) else "; ".join(facts)
        console.print(f"{title}: {text}", soft_wrap=True)
    if summary["interrupted"]:
        console.print(f"interrupted after {len(summary['targets'])} clients", style="bold red")
