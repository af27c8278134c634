"""Fields of a command from a YAML file, and checks shared by the audits of images, tables and text."""

from pathlib import Path
from typing import Any, TypeVar

from jaxinvert import audit as audits
from jaxinvert import jobs
from jaxinvert.cli.console import BadInputError

Command = TypeVar("Command", bound=Any)


def with_file(command: Command) -> Command:
    """The command with the fields of the YAML file `command.file`, if one is given, overridden by flags.

    Raises:
      ValueError: if the file is no YAML file of fields.
    """
    file: Path | None = command.file
    if file is None:
        return command
    defaults = jobs.flatten(type(command)())
    flags = {name: value for name, value in jobs.flatten(command).items() if value != defaults[name]}
    try:
        return jobs.build(type(command), {**jobs.typed(type(command), jobs.read_yaml(file)), **flags})
    except (ValueError, BadInputError) as error:
        raise ValueError(f"{file}: {error}") from error


def training_of(sampling_rate: float | None, training_steps: int | None, delta: float) -> audits.Training | None:
    """The whole training that an epsilon covers, or `None` if it is not given.

    Raises:
      ValueError: if only one of sampling_rate and training_steps is given.
    """
    if sampling_rate is None and training_steps is None:
        return None
    if sampling_rate is None or training_steps is None:
        raise ValueError("an epsilon needs both sampling_rate and training_steps")
    return audits.Training(sampling_rate, training_steps, delta)
