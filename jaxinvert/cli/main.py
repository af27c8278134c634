"""The entry point of the command line: finds the command, parses its arguments and runs it.

A command is imported when it is called, so that `jaxinvert --help` need not wait for JAX.
"""

import difflib
import os
import re
import shlex
import signal
import sys
import threading
from collections.abc import Sequence
from typing import NoReturn

from rich.text import Text

import jaxinvert
from jaxinvert import files
from jaxinvert.cli import help_pages
from jaxinvert.cli.commands import COMMANDS
from jaxinvert.cli.console import (
    EXIT_BAD_INPUT,
    EXIT_INTERRUPTED,
    BadInputError,
    Terminal,
    interrupts_held_back,
    warnings_in_one_line,
)
from jaxinvert.escaping import visible

_HELP = {"-h": False, "--help": False, "--help-all": True}
"""Words that ask for help, and whether they ask for all of it."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit status.

    The status is 0 for success, 1 if jobs of a sweep failed, 2 for bad input or a file that cannot be written, 3
    if inspected parameters look crafted, and 130 for an interrupt.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    command_line = shlex.join(["jaxinvert", *arguments])
    try:
        with warnings_in_one_line():
            return _run(arguments, command_line)
    except (BadInputError, OSError) as error:
        return _refused(str(error))
    except KeyboardInterrupt:
        with files.uninterruptible():
            Terminal(stderr=True).print("interrupted before anything was reconstructed; nothing was written")
        return EXIT_INTERRUPTED
    except Exception as error:
        if not _is_out_of_memory(error):
            raise
        return _refused(
            f"not enough memory: {str(error).splitlines()[0] if str(error) else 'for a NumPy array'}; give fewer "
            "targets, restarts or examples, a smaller network, chunk or gradient_chunk"
        )


def _refused(message: str) -> int:
    """Prints a message on one line; names in it may hold line ends."""
    text = Text.assemble(("error: ", "bold red"), visible(message))
    Terminal(stderr=True).print(text, soft_wrap=True)
    return EXIT_BAD_INPUT


def _is_out_of_memory(error: Exception) -> bool:
    """Whether an allocator failed; the device's error is of a class that exists once JAX is imported."""
    of_device = getattr(getattr(sys.modules.get("jax"), "errors", None), "JaxRuntimeError", MemoryError)
    return isinstance(error, MemoryError) or (
        isinstance(error, of_device) and _OUT_OF_MEMORY.search(str(error)) is not None
    )


_OUT_OF_MEMORY = re.compile("RESOURCE_EXHAUSTED|[Oo]ut of memory")


def _run(arguments: list[str], command_line: str) -> int:
    """Parses the arguments and runs the command, or shows help."""
    console = Terminal()
    if arguments[:1] == ["--version"]:
        console.print(f"jaxinvert {jaxinvert.__version__}")
        return 0
    if arguments[:1] == ["help"]:
        arguments = [*arguments[1:], "--help"]
    asked = [word for word in arguments if word in _HELP]
    if not arguments or arguments[0] in _HELP:
        help_pages.show_overview(console)
        return 0 if arguments else EXIT_BAD_INPUT
    name, words = _command(arguments)
    if asked:
        with interrupts_held_back():
            help_pages.show_page(console, name, COMMANDS[name], everything=any(_HELP[word] for word in asked))
        return 0
    with interrupts_held_back():
        from jaxinvert.cli.arguments import parse  # imports JAX
        from jaxinvert.cli.compiled import programs_kept

        _, function = COMMANDS[name].load()
    parsed = parse(name, words)
    with programs_kept() as notice:
        if notice:
            Terminal(stderr=True).print(f"note: {notice}", soft_wrap=True)
        return function(parsed, command_line)


def _command(arguments: Sequence[str]) -> tuple[str, list[str]]:
    """The name of the command, of one word or two, and the words after it.

    Raises:
      BadInputError: if there is no such command.
    """
    first = arguments[0]
    inside = [name for name in COMMANDS if name.startswith(f"{first} ")]
    for size in (2, 1):
        if (name := " ".join(arguments[:size])) in COMMANDS:
            if size == 1 and (close := _like_another(arguments[:2], inside)):
                raise BadInputError(f"there is no file {visible(arguments[1])}; did you mean jaxinvert {close}?")
            return name, list(arguments[size:])
    if inside:
        raise BadInputError(
            f"{first} is followed by another word: {' or '.join(f'jaxinvert {one}' for one in inside)}"
        )
    if first.startswith("-"):
        later = next((word for word in arguments if word in COMMANDS), None)
        also = f": jaxinvert {later} ..." if later else "; `jaxinvert --help` shows all"
        raise BadInputError(f"the command comes before options such as {first[:60]}{also}")
    swapped = next((name for name in COMMANDS if name.split() == [*reversed(arguments[:2])]), None)
    close = [swapped] if swapped else difflib.get_close_matches(" ".join(arguments[:2]), COMMANDS, n=1, cutoff=0.8)
    close = close or difflib.get_close_matches(first.lower(), COMMANDS, n=2)
    also = f"did you mean {' or '.join(close)}?" if close else f"there are {', '.join(COMMANDS)}"
    raise BadInputError(f"unknown command {first[:60]!r}; {also}")


def _like_another(words: Sequence[str], names: Sequence[str]) -> str | None:
    """A command of two words that these words resemble, unless the second is a file or an option."""
    if len(words) < 2 or words[1].startswith("-") or os.path.exists(words[1]):
        return None
    second = {name.split()[1]: name for name in names}
    return next((second[one] for one in difflib.get_close_matches(words[1].lower(), second, n=1)), None)


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
