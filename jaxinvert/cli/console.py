"""Helpers shared by all commands: exit statuses, an error for bad input, and a progress bar."""

import contextlib
from collections.abc import Iterator

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130


class BadInputError(Exception):
    """Raised for a command that is not possible; the message gives the reason."""


@contextlib.contextmanager
def bad_input() -> Iterator[None]:
    """Turns a ValueError into a BadInputError."""
    try:
        yield
    except ValueError as error:
        raise BadInputError(str(error)) from error


def progress_bar(console: Console) -> Progress:
    """A progress bar with fields `loss` and `speed`, drawn only by `update(..., refresh=True)`.

    It has no thread that refreshes it, which could interfere with imports while data sets and compilers are loaded.
    """
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total}"),
        TextColumn("{task.fields[loss]}"),
        TextColumn("{task.fields[speed]}"),
        TimeRemainingColumn(),
        console=console,
        auto_refresh=False,
    )
