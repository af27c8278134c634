"""The entry point of the command line: parses arguments and runs a command; includes `data prepare`."""

import os
import re
import shlex
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, NoReturn

import jax
import tyro
from rich.text import Text

import jaxinvert
from jaxinvert import data, jobs
from jaxinvert.cli.audit import Audit, audit
from jaxinvert.cli.audit_discrete import AuditTable, AuditText, audit_discrete
from jaxinvert.cli.console import (
    EXIT_BAD_INPUT,
    EXIT_INTERRUPTED,
    BadInputError,
    Terminal,
    bad_input,
    warnings_in_one_line,
)
from jaxinvert.cli.invert import Invert, invert
from jaxinvert.cli.listing import List, show_list
from jaxinvert.cli.rank import Rank, rank
from jaxinvert.cli.records import Records, invert_records
from jaxinvert.cli.sweep import Report, Sweep, report_sweep, sweep
from jaxinvert.cli.tokens import Tokens, invert_tokens


@dataclass(frozen=True)
class Prepare:
    """Download a data set, or read its official files from a folder, and store it for `--data NAME`.

    Attributes:
      name: name of the data set, see `jaxinvert list`.
      source: folder with the data set's official files, to read instead of downloading.
    """

    name: tyro.conf.Positional[str]
    source: Annotated[Path | None, tyro.conf.arg(name="from")] = None


Command = (
    Annotated[Invert, tyro.conf.subcommand("invert")]
    | Annotated[Audit, tyro.conf.subcommand("audit")]
    | Annotated[AuditTable, tyro.conf.subcommand("audit table")]
    | Annotated[AuditText, tyro.conf.subcommand("audit text")]
    | Annotated[Rank, tyro.conf.subcommand("rank")]
    | Annotated[Records, tyro.conf.subcommand("records")]
    | Annotated[Tokens, tyro.conf.subcommand("tokens")]
    | Annotated[Sweep, tyro.conf.subcommand("sweep")]
    | Annotated[Report, tyro.conf.subcommand("report")]
    | Annotated[List, tyro.conf.subcommand("list")]
    | Annotated[Prepare, tyro.conf.subcommand("data prepare")]
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit status.

    The status is 0 for success, 1 if jobs of a sweep failed, 2 for bad input or a file that cannot be written, and
    130 for an interrupt.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    command_line = shlex.join(["jaxinvert", *arguments])
    if tuple(arguments[:2]) in _TWO_WORDS:
        arguments[:2] = [" ".join(arguments[:2])]
    try:
        with warnings_in_one_line():
            return _run(arguments, command_line)
    except (BadInputError, OSError) as error:
        return _refused(str(error))
    except (MemoryError, jax.errors.JaxRuntimeError) as error:
        if not isinstance(error, MemoryError) and not _OUT_OF_MEMORY.search(str(error)):
            raise
        return _refused(
            f"not enough memory: {str(error).splitlines()[0] if str(error) else 'for a NumPy array'}; give fewer "
            "targets, restarts or examples, a smaller network, chunk or gradient_chunk"
        )
    except KeyboardInterrupt:
        with jobs.uninterruptible():
            Terminal(stderr=True).print("interrupted before anything was reconstructed; nothing was written")
        return EXIT_INTERRUPTED


def _refused(message: str) -> int:
    Terminal(stderr=True).print(Text.assemble(("error: ", "bold red"), message), soft_wrap=True)
    return EXIT_BAD_INPUT


_OUT_OF_MEMORY = re.compile("RESOURCE_EXHAUSTED|[Oo]ut of memory")


def _run(arguments: list[str], command_line: str) -> int:
    """Parses the arguments and runs the command."""
    if arguments == ["--version"]:
        print(f"jaxinvert {jaxinvert.__version__}")
        return 0
    _refuse_renamed_flags(arguments)
    command = tyro.cli(
        Command,
        prog="jaxinvert",
        description="Measure what a federated-learning update leaks.",
        args=arguments,
        config=(tyro.conf.OmitArgPrefixes,),
    )
    return _COMMANDS[type(command)](command, command_line)


_TWO_WORDS = {("data", "prepare"), ("audit", "table"), ("audit", "text")}
"""Commands of two words, which the parser takes for one."""

_RENAMED_FLAGS = {"--law": "--distribution"}
"""Old names of flags and their new names."""


def _refuse_renamed_flags(arguments: Sequence[str]) -> None:
    """Raises BadInputError for a renamed flag, naming the new one."""
    for argument in arguments:
        if (new := _RENAMED_FLAGS.get(argument.partition("=")[0])) is not None:
            raise BadInputError(f"{argument.partition('=')[0]} is now {new}")


def _interrupt_again(unraisable: "sys.UnraisableHookArgs") -> None:
    """Repeats an interrupt that was raised inside a callback, where Python prints and ignores it."""
    if isinstance(unraisable.exc_value, KeyboardInterrupt):
        # From another thread and slightly later: raised here, it would be ignored again.
        threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGINT)).start()
    else:
        sys.__unraisablehook__(unraisable)


def run() -> NoReturn:
    """Runs the command line as a process.

    An interrupt can leave a compiler thread running, with which the interpreter cannot shut down cleanly. The process
    then exits without a shutdown.
    """
    sys.unraisablehook = _interrupt_again
    try:
        status = main()
    except KeyboardInterrupt:
        status = EXIT_INTERRUPTED
    sys.stdout.flush()
    sys.stderr.flush()
    if status == EXIT_INTERRUPTED:
        os._exit(status)
    sys.exit(status)


def _prepare(command: Prepare, command_line: str) -> int:
    del command_line
    with bad_input():
        where = data.prepare(command.name, source=command.source)
    Terminal().print(f"{command.name} is ready in {where}", soft_wrap=True)
    return 0


_COMMANDS: dict[type, Callable[..., int]] = {
    Audit: audit,
    AuditTable: audit_discrete,
    AuditText: audit_discrete,
    Invert: invert,
    Rank: rank,
    Records: invert_records,
    Tokens: invert_tokens,
    Sweep: sweep,
    Report: report_sweep,
    List: show_list,
    Prepare: _prepare,
}
