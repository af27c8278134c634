"""The command `jaxinvert records`: attacks clients with tabular data by TabLeak."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.text import Text

from jaxinvert import files, jobs
from jaxinvert.cli.console import BadInputError, Terminal, bad_input
from jaxinvert.cli.scores import client_bar, finish
from jaxinvert.jobs import records


@dataclass(frozen=True)
class Records(records.RecordsConfig):
    """Simulate clients with tabular data, and try to reconstruct their records by many searches (TabLeak).

    Attributes:
      json: JSON file for all results, with reconstructed and true records; by default none is written.
    """

    json: Path | None = None

    def __post_init__(self) -> None:
        """Checks the fields; raises BadInputError."""
        with bad_input():
            super().__post_init__()


def invert_records(command: Records, command_line: str) -> int:
    """Runs the command and returns its exit status."""
    console = Terminal()
    if command.json is not None:
        files.check_writable_file(command.json)
    try:
        with bad_input():
            task = records.prepare_records(command)
    except ImportError as error:
        raise BadInputError(str(error)) from error
    told = (
        f" on {command.table}: {command.targets} clients x {command.num_examples} records, "
        f"{command.members} members x {command.steps} steps"
    )
    console.print(Text.assemble(("tableak", "bold"), told))
    _, key = records.random_keys(command)
    with client_bar(console, command.targets) as show:
        found = records.attack_records(key, task.solve, task.observations, on_progress=show)
    with jobs.uninterruptible():
        summary, remarks = records.measure_records(command, task, found), []
        if failed := np.flatnonzero([target["failed"] for target in summary["targets"]]).tolist():
            remarks.append(
                Text(f"clients {failed}: no finite attack loss; their records are only the start", style="bold red")
            )
        return finish(console, summary, remarks, json_file=command.json, command_line=command_line)
