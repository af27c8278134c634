"""Fields of a command from a YAML file, and checks shared by the audits of images, tables and text."""

import shlex
from collections.abc import Mapping
from typing import Any, TypeVar

from jaxinvert import audit as audits
from jaxinvert import jobs, models
from jaxinvert.cli.console import BadInputError
from jaxinvert.jobs.limits import MAX_EXAMPLES, at_most, between

Command = TypeVar("Command", bound=Any)


def with_file(command: Command, command_line: str) -> Command:
    """The command with the fields of the YAML file `command.file`, if one is given, overridden by flags.

    Args:
      command: as parsed from the flags.
      command_line: the command line itself, which tells the flags that were given.

    Raises:
      ValueError: if the file is no YAML file of fields, or if they are not possible together with the flags.
    """
    return command if command.file is None else build(command, said(command, command_line))


def build(command: Command, fields: Mapping[str, Any]) -> Command:
    """A complete command of these fields, by flat names; errors name the YAML file that the command was given.

    Raises:
      ValueError: if they are not possible together.
    """
    try:
        return jobs.build(type(command), {**fields, "file": None})
    except (ValueError, BadInputError) as error:
        raise ValueError(f"{command.file}: {error}" if command.file else str(error)) from error


def said(command: Any, command_line: str) -> dict[str, Any]:
    """The fields that the YAML file of a command or its flags give, by flat names; flags take precedence.

    Raises:
      ValueError: if the file is no YAML file of fields, or names a network `module:function`, whose module would be
        imported: only the command line may.
    """
    flags = flagged(command, command_line)
    if command.file is None:
        return flags
    fields = jobs.read_yaml(command.file)
    if "model" not in flags and models.is_external(str(fields.get("model", ""))):
        raise ValueError(
            f"{command.file}: it names the network {fields['model']!r}, whose module would be imported and run: if "
            f"you trust it, give --model {fields['model']} on the command line"
        )
    try:
        return {**jobs.typed(type(command), fields), **flags}
    except ValueError as error:
        raise ValueError(f"{command.file}: {error}") from error


def flagged(command: Any, command_line: str) -> dict[str, Any]:
    """The fields that the flags of a command give, by flat names.

    Flags count as given when they are given their defaults, too. They may be spelled `--num-examples 2`,
    `--num_examples 2` or `--num-examples=2`; `--no-lpips` is a flag of `lpips`.
    """
    words = (word.partition("=")[0] for word in shlex.split(command_line) if word.startswith("--"))
    names = {word.removeprefix("--").replace("-", "_") for word in words}
    values = jobs.flatten(command)
    return {name: value for name, value in values.items() if name in names or f"no_{name}" in names}


DELTA = 1e-5
"""The default probability that a guarantee of differential privacy may fail."""
_MAX_TRAINING_STEPS = 1_000_000_000
_MAX_ACCURACY_ROUNDS = 1_000_000


def check_numbers(command: Any) -> None:
    """Raises ValueError for numbers of candidates or of rounds of training that are out of range."""
    between(1, MAX_EXAMPLES, candidates=command.candidates)
    at_most(_MAX_ACCURACY_ROUNDS, accuracy_rounds=getattr(command, "accuracy_rounds", 0))


def training_of(sampling_rate: float | None, training_steps: int | None, delta: float) -> audits.Training | None:
    """The whole training that an epsilon covers, or `None` if it is not given.

    Raises:
      ValueError: for a number out of range, also where no epsilon is computed, or if only one of sampling_rate and
        training_steps is given, or none of them, but another delta than the default.
    """
    between(1, _MAX_TRAINING_STEPS, training_steps=training_steps)
    if not 0 < delta < 1:
        raise ValueError(f"delta is {delta}, expected a number between 0 and 1, such as 1e-5")
    if sampling_rate is not None and not 0 < sampling_rate <= 1:
        raise ValueError(f"sampling_rate is {sampling_rate}, expected a number above 0 and at most 1")
    if sampling_rate is None and training_steps is None:
        if delta != DELTA:
            raise ValueError(f"delta is {delta}, but an epsilon needs sampling_rate and training_steps, too")
        return None
    if sampling_rate is None or training_steps is None:
        raise ValueError("an epsilon needs both sampling_rate and training_steps")
    return audits.Training(sampling_rate, training_steps, delta)
