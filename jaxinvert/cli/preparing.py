"""The command `jaxinvert data prepare`: stores a data set for `--data NAME`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from jaxinvert import data
from jaxinvert.cli.console import Terminal, bad_input, saying


@dataclass(frozen=True)
class Prepare:
    """Download a data set, or read its official files from a folder, and store it for `--data NAME`.

    Attributes:
      data_set: name of the data set, see `jaxinvert list data-sets`.
      source: folder with the data set's official files, to read instead of downloading.
    """

    data_set: tyro.conf.Positional[str]
    source: Annotated[Path | None, tyro.conf.arg(name="from")] = None


def prepare(command: Prepare, command_line: str) -> int:
    """Runs the command and returns its exit status."""
    del command_line
    console = Terminal()
    with bad_input(), saying(console) as say:
        say(
            f"reading {command.data_set}"
            if command.source
            else f"downloading {command.data_set}, which takes minutes"
        )
        where = data.prepare(command.data_set, source=command.source)
    console.print(f"{command.data_set} is ready in {where}", soft_wrap=True)
    return 0
