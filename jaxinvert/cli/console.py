"""Helpers shared by all commands: exit statuses, an error for bad input, and a progress bar."""

import contextlib
import time
from collections.abc import Iterator
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130
_SECONDS_BETWEEN_LINES = 30.0


class BadInputError(Exception):
    """Raised for a command that is not possible; the message gives the reason."""


@contextlib.contextmanager
def bad_input() -> Iterator[None]:
    """Turns a ValueError into a BadInputError."""
    try:
        yield
    except ValueError as error:
        raise BadInputError(str(error)) from error


class Lines:
    """Progress in plain lines, for output that is no terminal: what `progress_bar` returns, as far as it is used.

    A new description is a line, and what goes on is another one every half a minute.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._fields: dict[str, Any] = {}
        self._said, self._when = "", time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        return None

    def add_task(self, description: str, **fields: Any) -> TaskID:
        """Begins what the following updates are about."""
        self._fields = {"description": description, "completed": 0, **fields}
        return TaskID(0)

    def update(self, task: TaskID, *, refresh: bool = False, **fields: Any) -> None:
        """Changes fields of the line."""
        del task
        self._fields |= fields
        if refresh:
            self.refresh()

    def refresh(self) -> None:
        """Prints the line if it tells something new, or if the last one was long ago."""
        described, now = str(self._fields["description"]), time.monotonic()
        if described == self._said and now - self._when < _SECONDS_BETWEEN_LINES:
            return
        self._said, self._when = described, now
        done = f"{self._fields['completed']:.4g}/{self._fields['total']}" if self._fields["completed"] else ""
        parts = (described, done, self._fields["loss"], self._fields["speed"])
        self._console.print(" ".join(filter(None, parts)), highlight=False, markup=False, soft_wrap=True)

    def stop(self) -> None:
        """Does nothing; a bar is removed."""


def progress_bar(console: Console) -> Progress | Lines:
    """A progress bar with fields `loss` and `speed`, drawn only by `update(..., refresh=True)`; lines if piped.

    It has no thread that refreshes it, which could interfere with imports while data sets and compilers are loaded.
    """
    if not console.is_terminal or console.is_dumb_terminal:
        return Lines(console)
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
