"""The commands `jaxinvert audit table` and `jaxinvert audit text`: whether updates leak records or text."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import tyro

from jaxinvert import audit as audits
from jaxinvert import report
from jaxinvert.cli.auditing import finish, identity, print_plan, show_finished, show_forecast, with_progress
from jaxinvert.cli.console import EXIT_INTERRUPTED, Terminal, alone_in, bad_input
from jaxinvert.cli.fields import DELTA, check_numbers, training_of, with_file
from jaxinvert.cli.unused import refuse_without_epsilon
from jaxinvert.jobs.records import RecordsConfig
from jaxinvert.jobs.text import TextConfig
from jaxinvert.jobs.yaml_fields import build, flatten
from jaxinvert.report.wording import plural


@dataclass(frozen=True)
class AuditTable(RecordsConfig):
    """Judge whether the updates of clients with tabular data leak records: TabLeak, null controls, and a verdict.

    Attributes:
      file: YAML file with any of these fields (`_` for `-`); flags take precedence over it.
      targets: number of clients; no two share a record. With fewer than nine (eight for defenses without an adaptive
        attacker), the verdict is "leaks" or "inconclusive", and never that there is no evidence.
      defenses: defenses to compare, such as `none`, `top-k:keep=0.1`, `clip+gaussian:norm=1,scale=0.01`; each is
        judged by the worst of a naive and an adaptive attacker; see `jaxinvert list`.
      candidates: number of records, including the private ones, among which reconstructions have to pick out the
        private ones.
      sampling_rate: probability that a record takes part in one step of the whole training; together with
        training_steps it determines the epsilon of dp-sgd.
      training_steps: number of steps of the whole training; together with sampling_rate it determines the epsilon of
        dp-sgd.
      delta: probability that the differential-privacy guarantee of dp-sgd may fail.
      dry_run: only measure some steps of every setting on one client, and print how long the audit would take.
      out: folder for `audit.json`, `report.html`, and finished attacks, with which the same audit resumes.
    """

    file: tyro.conf.Positional[Path | None] = None
    targets: int = 9
    defenses: tuple[str, ...] = ("none",)
    candidates: int = 100
    sampling_rate: float | None = None
    training_steps: int | None = None
    delta: float = DELTA
    dry_run: bool = False
    out: Path = Path("runs/audit-table")

    def __post_init__(self) -> None:
        """Checks the fields, unless a file will give some of them; raises BadInputError."""
        if self.file is None:
            with bad_input():
                super().__post_init__()
                check_numbers(self)


@dataclass(frozen=True)
class AuditText(TextConfig):
    """Judge whether the updates of clients with text leak sequences: an attack, null controls, and a verdict.

    Attributes:
      file: YAML file with any of these fields (`_` for `-`); flags take precedence over it.
      targets: number of clients. With fewer than eight, the verdict is "leaks" or "inconclusive", and never that
        there is no evidence.
      defenses: defenses to compare, such as `none`, `dp-sgd:multiplier=0.01`; attacks on text do not adapt to them.
      candidates: number of sequences, including the private ones, among which reconstructions have to pick out the
        private ones.
      dry_run: only measure the attack on one client, and print how long the audit would take.
      out: folder for `audit.json`, `report.html`, and finished attacks, with which the same audit resumes.
    """

    file: tyro.conf.Positional[Path | None] = None
    targets: int = 9
    defenses: tuple[str, ...] = ("none",)
    candidates: int = 100
    dry_run: bool = False
    out: Path = Path("runs/audit-text")

    def __post_init__(self) -> None:
        """Checks the fields, unless a file will give some of them; raises BadInputError."""
        if self.file is None:
            with bad_input():
                super().__post_init__()
                check_numbers(self)


_NOT_OF_RESULT = ("out", "file", "dry_run")


def audit_discrete(command: AuditTable | AuditText, command_line: str) -> int:
    """Runs the command; its exit status does not depend on the verdict."""
    console = Terminal()
    with bad_input():
        command = with_file(command, command_line)
        settings, run, training = _planned(command)
    name = identity([{key: value for key, value in flatten(command).items() if key not in _NOT_OF_RESULT}])
    of_table = isinstance(command, AuditTable)
    items = plural(command.num_examples, "record") if of_table else plural(command.num_sequences, "sequence")
    options = {"num_candidates": command.candidates, "folder": command.out}
    with alone_in(command.out, *audits.INSIDE):
        if show_finished(console, command.out, name):
            return 0
        print_plan(console, settings, f"{plural(command.targets, 'simulated client')} of {items}")
        if command.dry_run:
            forecast = audits.forecast_table if of_table else audits.forecast_text
            return show_forecast(console, forecast(settings, folder=command.out))
        begin = time.perf_counter()
        found = with_progress(console, command.out, 1, lambda show: run(settings, **options, on_progress=show))
        if found is None:
            return EXIT_INTERRUPTED
        record = audits.record_discrete(found, training)
        of_page = {"title": command.table if of_table else f"text, {command.model}", "command": command_line}
        save = partial(report.save_discrete_audit_html, audited=found, record=record, **of_page)
        finish(console, command.out, record, save, name=name, command_line=command_line, begin=begin)
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
    privacies = [audits.privacy(next(iter(setting.attackers.values())), training) for setting in settings]
    refuse_without_epsilon(training, privacies, command.defenses)
    return settings, audits.audit_table, training
