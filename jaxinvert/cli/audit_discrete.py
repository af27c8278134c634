"""The commands `jaxinvert audit table` and `jaxinvert audit text`: whether updates leak records or text."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro
from rich.console import Console
from rich.table import Table
from rich.text import Text

from jaxinvert import audit as audits
from jaxinvert import files, jobs, report
from jaxinvert.cli.console import EXIT_INTERRUPTED, BadInputError, bad_input, progress_bar
from jaxinvert.cli.fields import check_numbers, training_of, with_file
from jaxinvert.jobs.records import RecordsConfig
from jaxinvert.jobs.text import TextConfig
from jaxinvert.jobs.yaml_fields import build, flatten
from jaxinvert.search import Progress


@dataclass(frozen=True)
class AuditTable(RecordsConfig):
    """Judge whether the updates of clients with tabular data leak records: TabLeak, null controls, and a verdict.

    Attributes:
      file: YAML file with any of these fields (`_` for `-`); flags take precedence over it.
      targets: number of clients; no two share a record. With two attackers, at least nine are needed for every
        verdict to be possible.
      defenses: defenses to compare, such as `none`, `top-k:keep=0.1`, `clip+gaussian:norm=1,scale=0.01`; each is
        judged by the worst of a naive and an adaptive attacker; see `jaxinvert list`.
      candidates: number of records, including the private ones, among which reconstructions have to pick out the
        private ones.
      sampling_rate: probability that a record takes part in one step of the whole training; together with
        training_steps it determines the epsilon of dp-sgd.
      training_steps: number of steps of the whole training; together with sampling_rate it determines the epsilon of
        dp-sgd.
      delta: probability that the differential-privacy guarantee of dp-sgd may fail.
      out: folder for `audit.json`, `report.html`, and finished attacks, with which the same audit resumes.
    """

    file: tyro.conf.Positional[Path | None] = None
    targets: int = 9
    defenses: tuple[str, ...] = ("none",)
    candidates: int = 100
    sampling_rate: float | None = None
    training_steps: int | None = None
    delta: float = 1e-5
    out: Path = Path("runs/audit-table")

    def __post_init__(self) -> None:
        """Checks the fields, unless a file will give some of them; raises BadInputError."""
        if self.file is None:
            with bad_input():
                super().__post_init__()
                check_numbers(self)


@dataclass(frozen=True)
class AuditText(TextConfig):
    """Judge whether the updates of clients with text leak sequences: DAGER, null controls, and a verdict.

    Attributes:
      file: YAML file with any of these fields (`_` for `-`); flags take precedence over it.
      targets: number of clients; at least eight are needed for every verdict to be possible.
      defenses: only `none` is implemented for text.
      candidates: number of sequences, including the private ones, among which reconstructions have to pick out the
        private ones.
      out: folder for `audit.json`, `report.html`, and finished attacks, with which the same audit resumes.
    """

    file: tyro.conf.Positional[Path | None] = None
    targets: int = 9
    defenses: tuple[str, ...] = ("none",)
    candidates: int = 100
    out: Path = Path("runs/audit-text")

    def __post_init__(self) -> None:
        """Checks the fields, unless a file will give some of them; raises BadInputError."""
        if self.file is None:
            with bad_input():
                super().__post_init__()
                check_numbers(self)


def audit_discrete(command: AuditTable | AuditText, command_line: str) -> int:
    """Runs the command; its exit status does not depend on the verdict."""
    console = Console()
    with bad_input():
        command = with_file(command, command_line)
        settings, run, training = _planned(command)
    files.check_writable(command.out)
    num_examples = command.num_examples if isinstance(command, AuditTable) else command.num_sequences
    console.print(
        f"[bold]{len(settings)} settings[/], {sum(len(setting.attackers) for setting in settings)} attacks with "
        f"their controls, on {command.targets} simulated clients of {num_examples} "
        f"{'records' if isinstance(command, AuditTable) else 'sequences'}",
        highlight=False,
    )
    begin = time.perf_counter()
    with progress_bar(console) as bar:
        row = bar.add_task("preparing", total=1, loss="", speed="")
        bar.refresh()

        def show(what: str, _: Progress | None) -> None:
            bar.update(row, description=what, refresh=True)

        try:
            with bad_input():
                found = run(settings, num_candidates=command.candidates, folder=command.out, on_progress=show)
        except ImportError as error:
            raise BadInputError(str(error)) from error
        except KeyboardInterrupt:
            bar.update(row, description="interrupted", refresh=True)
            bar.stop()
            console.print(f"interrupted; finished attacks are kept, and the same command resumes: {command.out}")
            return EXIT_INTERRUPTED
        bar.update(row, description="audited", completed=1, refresh=True)
    page = command.out / "report.html"
    title = command.table if isinstance(command, AuditTable) else f"text, {command.model}"
    with jobs.uninterruptible():
        record = audits.record_discrete(found, training)
        files.save_json(command.out / "audit.json", {**record, "command": command_line})
        report.save_discrete_audit_html(page, audited=found, record=record, title=title, command=command_line)
        console.print(_table(found))
        for one in found:
            console.print(Text.assemble((f"{one.name}: ", "bold"), f"{one.verdict.headline} {one.verdict.certainty}"))
    console.print(f"{time.perf_counter() - begin:,.0f} s; page: {page}", highlight=False, soft_wrap=True)
    return 0


def _planned(
    command: AuditTable | AuditText,
) -> tuple[list[audits.Scenario], Callable[..., list[audits.Audited]], audits.Training | None]:
    """Scenarios, the function that audits them, and the training of an epsilon.

    Raises:
      ValueError: for invalid values, which are reported before the attacks.
    """
    if isinstance(command, AuditText):
        config = build(TextConfig, flatten(command, of=TextConfig))
        return audits.text_settings(config, command.defenses), audits.audit_text, None
    config = build(RecordsConfig, flatten(command, of=RecordsConfig))
    settings = audits.table_settings(config, command.defenses)
    training = training_of(command.sampling_rate, command.training_steps, command.delta)
    for setting in settings:
        audits.privacy(next(iter(setting.attackers.values())), training)
    return settings, audits.audit_table, training


def _table(audited: list[Any]) -> Table:
    """A table with one row for every scenario and attacker."""
    item = audited[0].ground.measure.item
    table = Table("setting", "attacker", "verdict", "identified", "points above control", "% right", f"exact {item}s")
    for one in audited:
        for name, attacked in one.attackers.items():
            found, gain, exact = attacked.identified, attacked.excess, attacked.scores.exact
            table.add_row(
                Text(one.name),
                name,
                one.verdict.level if name == one.worst else "",
                f"{found.count} of {found.total}",
                f"{gain.mean:+.1f} ({gain.low:+.1f} to {gain.high:+.1f})",
                f"{attacked.scores.by_client.mean():.1f}",
                f"{exact.sum()} of {exact.size}",
            )
    return table
