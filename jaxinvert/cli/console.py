"""What the commands share: exit statuses, how bad input is reported, and a progress bar."""

import contextlib
from collections.abc import Iterator

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130


class BadInputError(Exception):
    """What the user asked for is not possible; the message says why."""


@contextlib.contextmanager
def bad_input() -> Iterator[None]:
    """Turns a ValueError into a BadInputError."""
    try:
        yield
    except ValueError as error:
        raise BadInputError(str(error)) from error


def progress_bar(console: Console) -> Progress:
    """A bar with fields `loss` and `speed`, drawn when it is told to: `update(..., refresh=True)`.

    No thread of its own draws it: one would meet the import machinery while data sets and compilers are loaded.
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
