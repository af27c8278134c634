"""Helpers shared by all commands: exit statuses, an error for bad input, the terminal, and a progress bar."""

import contextlib
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Self

from rich.console import Console, ConsoleOptions, RenderableType
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.segment import Segment
from rich.text import Text

from jaxinvert import files
from jaxinvert.escaping import visible, visible_lines
from jaxinvert.files import KeptFileWarning

EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130
_SECONDS_BETWEEN_LINES = 30.0


class BadInputError(Exception):
    """Raised for a command that is not possible; the message gives the reason."""


@contextlib.contextmanager
def interrupts_held_back() -> Iterator[None]:
    """Lets an interrupt wait until the end: one within the import of native code can crash the process."""
    previous = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(previous):  # or it is ignored
        yield
        return
    held: list[int] = []
    signal.signal(signal.SIGINT, lambda number, frame: held.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)
    if held:
        raise KeyboardInterrupt


@contextlib.contextmanager
def bad_input() -> Iterator[None]:
    """Turns a ValueError into a BadInputError."""
    try:
        yield
    except ValueError as error:
        raise BadInputError(str(error)) from error


class Terminal(Console):
    """A console that shows text as it is: no markup, and control characters escaped, whoever chose them.

    Text is escaped where it is rendered, so nothing that is printed can reach the terminal otherwise. Names from
    outside go into tables by `cell`, which also makes them as wide as they are shown.

    Args:
      stderr: whether to write to the standard error.
    """

    def __init__(self, *, stderr: bool = False) -> None:
        super().__init__(stderr=stderr, markup=False, highlight=False, emoji=False)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Renders like a console, with the text of every segment escaped."""
        for segment in super().render(renderable, options):
            text, style, control = segment
            yield segment if control else Segment(visible_lines(text, encoding=self.encoding), style)

    def on_broken_pipe(self) -> None:
        """Goes on without output: results are still to be written when the reader of a pipe has left."""
        self.quiet = True
        with contextlib.suppress(OSError, ValueError):  # a stream without a file
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.file.fileno())


def cell(text: object) -> Text:
    """Text from outside as a cell of a table."""
    return Text(visible(text))


@contextlib.contextmanager
def warnings_in_one_line() -> Iterator[None]:
    """Shows warnings on the standard error, escaped; those about kept files always, and each as one line."""

    def show(message: Warning | str, category: type[Warning], filename: str, lineno: int, *_: Any) -> None:
        if issubclass(category, KeptFileWarning):
            text = f"warning: {visible(message)}\n"
        else:
            text = visible_lines(warnings.formatwarning(message, category, filename, lineno))
        with contextlib.suppress(OSError):
            sys.stderr.write(text)

    with warnings.catch_warnings():
        warnings.simplefilter("always", KeptFileWarning)
        warnings.showwarning = show
        yield


@contextlib.contextmanager
def alone_in(folder: Path, *inside: str) -> Iterator[None]:
    """`files.alone_in`, but a folder that another process writes to is bad input."""
    with contextlib.ExitStack() as stack:
        with bad_input():
            stack.enter_context(files.alone_in(folder, *inside))
        yield


class Lines:
    """Progress in plain lines, for output that is no terminal: what `progress_bar` returns, as far as it is used.

    A new description is a line, and what goes on is another one every half a minute.
    """

    def __init__(self, console: Terminal) -> None:
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
        shown = self._fields["completed"] or self._fields.get("from_zero")
        done = f"{self._fields['completed']:.4g}/{self._fields['total']}" if shown else ""
        parts = (described, done, self._fields["loss"], self._fields["speed"])
        self._console.print(" ".join(filter(None, parts)), soft_wrap=True)

    def stop(self) -> None:
        """Does nothing; a bar is removed."""


def _is_piped(console: Terminal) -> bool:
    return not console.is_terminal or console.is_dumb_terminal


@contextlib.contextmanager
def saying(console: Terminal) -> Iterator[Callable[[str], None]]:
    """Yields a function that says what is being done where nothing can be counted: in one line; in lines if piped."""
    if _is_piped(console):
        yield lambda text: console.print(text, soft_wrap=True)
        return
    with Progress(
        TextColumn("{task.description}", markup=False), console=console, auto_refresh=False, transient=True
    ) as line:
        row = line.add_task("")
        yield lambda text: line.update(row, description=text, refresh=True)


def progress_bar(console: Terminal) -> Progress | Lines:
    """A progress bar with fields `loss` and `speed`, drawn only by `update(..., refresh=True)`; lines if piped.

    It has no thread that refreshes it, which could interfere with imports while data sets and compilers are loaded.
    """
    if _is_piped(console):
        return Lines(console)
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.completed}/{task.total}"),
        TextColumn("{task.fields[loss]}"),
        TextColumn("{task.fields[speed]}"),
        TimeRemainingColumn(),
        console=console,
        auto_refresh=False,
    )
