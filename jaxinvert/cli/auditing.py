"""What `audit`, `audit table` and `audit text` share: the plan, progress, interrupts, files, and printed verdicts."""

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from rich.table import Column, Table
from rich.text import Text

import jaxinvert
from jaxinvert import audit as audits
from jaxinvert import files, jobs
from jaxinvert.cli.console import BadInputError, Terminal, bad_input, cell, progress_bar
from jaxinvert.readers.json_files import read_json
from jaxinvert.report.wording import duration, plural
from jaxinvert.search import Progress

Found = TypeVar("Found")


def print_plan(console: Terminal, settings: Sequence[audits.Scenario], clients: str) -> None:
    """Prints how much an audit does, and on which clients, such as "3 simulated clients of 4 records"."""
    num_attacks = sum(len(setting.attackers) for setting in settings)
    controls = "its controls" if num_attacks == 1 else "their controls"
    told = f", {plural(num_attacks, 'attack')} with {controls}, on {clients}"
    console.print(Text.assemble((plural(len(settings), "setting"), "bold"), told))


def show_forecast(console: Terminal, parts: Iterable[audits.Part]) -> int:
    """Prints how long every part of an audit would take, as each is measured, and their sum; returns the status.

    Raises:
      BadInputError: for invalid values, or for a package that is missing.
    """
    begin, total = time.perf_counter(), 0.0
    try:
        with bad_input():
            for part in parts:
                total += part.seconds
                console.print(f"{part.what}: {duration(part.seconds)}", soft_wrap=True)
    except ImportError as error:
        raise BadInputError(str(error)) from error
    took = time.perf_counter() - begin
    console.print(f"about {duration(total)} on this machine; nothing was written")
    if total < took:  # both compile the same programs
        told = f"running it is cheaper than this forecast, which took {duration(took)}: leave out --dry-run"
        console.print(told, soft_wrap=True)
    return 0


def with_progress(
    console: Terminal, folder: Path, num_steps: int, run: Callable[[audits.Show], Found]
) -> Found | None:
    """Runs an audit with a progress bar; `None` after an interrupt, which is said.

    Args:
      console: where to print.
      folder: of the audit, from which it resumes.
      num_steps: optimizer steps of each attack; 1 where an attack reports none.
      run: the audit; takes the function to call with the current step and its progress.

    Raises:
      BadInputError: for invalid values, or for a package that is missing.
    """
    with progress_bar(console) as bar:
        row = bar.add_task("preparing", total=num_steps, loss="", speed="")
        bar.refresh()

        def show(what: str, progress: Progress | None) -> None:
            done = 0 if progress is None else progress.step
            speed = "" if progress is None else _speed(progress)
            bar.update(row, description=what, completed=done, speed=speed, refresh=True)

        try:
            with bad_input():
                found = run(show)
        except ImportError as error:
            raise BadInputError(str(error)) from error
        except KeyboardInterrupt:
            bar.update(row, description="interrupted", refresh=True)
            bar.stop()
            console.print(f"interrupted; what is finished is kept, and the same command resumes: {folder}")
            return None
        bar.update(row, description="audited", completed=num_steps, refresh=True)
    return found


def identity(parts: Sequence[Any]) -> str:
    """A hash of what determines an audit's record and page: these parts, the versions, and this package's files."""
    root = Path(jaxinvert.__file__).parent
    sources = [path for kind in ("*.py", "*.jinja") for path in sorted(root.rglob(kind))]
    own = hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()
    content = {"versions": jobs.versions(), "package": own, "device": jobs.device_name(), "parts": files.plain(parts)}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def show_finished(console: Terminal, folder: Path, name: str) -> bool:
    """Prints the verdicts of an audit that finished in this folder; `False` if none did, or it was another one.

    Args:
      console: where to print.
      folder: of the audit.
      name: its `identity`.
    """
    try:
        record = read_json(folder / "audit.json")
        if record.pop("identity") != _seal(name, record, folder / "report.html"):
            return False
        shown = _verdicts(record)
    except (OSError, ValueError, LookupError, TypeError, AttributeError):  # also of a record that only has a seal
        return False
    for one in shown:
        console.print(one)
    console.print(
        f"this audit was finished before: nothing was computed; page: {folder / 'report.html'}", soft_wrap=True
    )
    return True


def finish(
    console: Terminal,
    folder: Path,
    record: Mapping[str, Any],
    save_page: Callable[[Path], None],
    *,
    name: str,
    command_line: str,
    begin: float,
) -> None:
    """Writes the page and `audit.json`, whose `identity` says that both are complete; then prints the verdicts.

    Where one file cannot be written, the other one is, and the verdicts are printed.
    """
    page, content = folder / "report.html", files.plain({**record, "command": command_line})
    with jobs.uninterruptible():
        try:
            save_page(page)
            content["identity"] = _seal(name, content, page)
        finally:
            try:
                files.save_json(folder / "audit.json", content)
            finally:
                print_verdicts(console, record)
    console.print(f"{time.perf_counter() - begin:,.0f} s; page: {page}", soft_wrap=True)


def _seal(name: str, content: Mapping[str, Any], page: Path) -> str:
    """A hash of the identity of an audit, of what its `audit.json` holds beside this hash, and of its page."""
    parts = [name, content, hashlib.sha256(page.read_bytes()).hexdigest()]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def print_verdicts(console: Terminal, record: Mapping[str, Any]) -> None:
    """Prints the table of an audit's record and the verdict on every setting, or what explains captured updates."""
    for one in _verdicts(record):
        console.print(one)


def _verdicts(record: Mapping[str, Any]) -> list[Table | Text]:
    """What `print_verdicts` prints; whatever Python raises for a record of another form."""
    if "explained" in record:
        return _explained(record["explained"])
    lines = [
        Text.assemble((f"{one['name']}: ", "bold"), f"{one['verdict']['headline']} {one['verdict']['certainty']}")
        for one in record["settings"]
    ]
    return [_table(record), *lines]


_WHOLE = {"attacker": len("adaptive"), "verdict": len("inconclusive"), "identified": len("identified")}
"""Columns that are never cut, with their widths; where space is short, others wrap."""


def _table(record: Mapping[str, Any]) -> Table:
    """A table with one row for every setting and attacker."""
    item = record.get("kind")
    figures = (
        ("points above control", "% right", f"exact {item}s") if item else ("above control dB", "median dB", "max dB")
    )
    whole = [Column(name, no_wrap=True, min_width=width) for name, width in _WHOLE.items()]
    setting, *others = (Column(name, overflow="fold") for name in ("setting", *figures))
    table = Table(setting, *whole, *others)
    for one in record["settings"]:
        for name, attacker in one["attackers"].items():
            found, reached = attacker["identified"], attacker["attack"]
            if item:
                gain = attacker["excess"]
                scores = (_fixed(reached["right"]["mean"]), f"{reached['exact']} of {len(attacker['items'])}")
            else:
                gain, of_images = attacker["excess_psnr_db"], reached["psnr_db"]
                scores = (_fixed(of_images["median"]), _fixed(of_images["max"]))
            table.add_row(
                cell(one["name"]),
                cell(name),
                cell(one["verdict"]["level"] if name == one["worst"] else ""),
                f"{found['count']} of {found['total']}",
                f"{_fixed(gain['mean'], '+')} ({_fixed(gain['low'], '+')} to {_fixed(gain['high'], '+')})",
                *scores,
            )
    return table


def _explained(explained: Mapping[str, Any]) -> list[Table | Text]:
    """The share of every captured update that the reconstruction explains."""
    tables: list[Table | Text] = []
    for name, one in explained.items():
        table = Table("client", "update explained", "random update explained", title=cell(f"{name} attacker"))
        for client, (share, noise) in enumerate(zip(one["share"], one["share_of_random_updates"])):
            table.add_row(str(client), f"{share:.1%}", f"{noise:.1%}")
        tables.append(table)
    return [*tables, Text("no true images were given, so there is no verdict: inspect the page, or give --truth")]


def _fixed(value: float | None, sign: str = "") -> str:
    return "—" if value is None else f"{value:{sign}.1f}"


def _speed(progress: Progress) -> str:
    return f"{progress.step * progress.best_loss.size / max(progress.seconds, 1e-9):,.0f} steps/s"
