"""Runs of one command for `kills`: forked from a process that has imported everything, killed at given moments."""

import contextlib
import importlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jaxinvert import cli, files
from jaxinvert.data import tfds
from jaxinvert.report import templates

_WRITES = "writes"
"""File with the number of files that the last run to its end has written."""


class Ended(NamedTuple):
    """A run that was left alone: exit status, messages, and seconds of CPU time."""

    status: int
    messages: str
    seconds: float


class Launcher:
    """A process that has imported everything, and forks one child for every run of a command.

    Args:
      folder: where it runs.
      arguments: the command's, but for the folder of its results.
    """

    def __init__(self, folder: Path, arguments: Sequence[str]) -> None:
        self.folder = folder
        self._arguments = arguments
        self._most_writes = 1
        environment = {
            "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
            **os.environ,
        }
        self._process = subprocess.Popen(
            [sys.executable, "-c", "from experiments import forked_runs; forked_runs.serve()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            text=True,
            cwd=Path(__file__).parents[1],
        )

    def __enter__(self) -> "Launcher":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate(timeout=60)  # closes its input, at which it ends

    def run(self, out: str, *, caches: bool = False) -> Ended:
        """Leaves a command alone until it ends; `caches` keeps its compiled programs."""
        self._start(out, caches=caches)
        status, seconds = self._end()
        if status == 0:
            self._most_writes = max(self._most_writes, int((self.folder / _WRITES).read_text(encoding="ascii")))
        messages = (self.folder / "messages").read_text(encoding="utf-8", errors="replace")
        return Ended(status, messages, seconds)

    def kill_whole(self, out: str, moments: Iterable[float]) -> Iterator[str]:
        """Kills a run when it has used so much CPU time, one after the other, until one ends before.

        Yields:
          "whole", after every process that was killed while it was running.
        """
        for seconds in moments:
            pid = self._start(out)
            while (used := _cpu_seconds(pid)) is not None and used < seconds:
                time.sleep(0.002)
            _kill_after(pid, 0.0)
            if self._end()[0] != -signal.SIGKILL:
                return
            yield "whole"

    def kill_copies(self, out: str, moments: random.Random, copies: int) -> Iterator[str]:
        """Stops a run before a random write; kills copies of it that go on from there, and then the run itself.

        Yields:
          "copy", after every process that was killed while it was running.
        """
        pid = self._start(out, stop_before=moments.randint(1, self._most_writes))
        if self._answer() != "stopped\n":  # it has fewer writes and came to its end
            return
        for _ in range(copies):
            self._ask("fork")
            _kill_after(int(self._answer()), moments.choice((0.003, 0.02, 0.2)) * moments.random())
            if self._end()[0] == -signal.SIGKILL:
                yield "copy"
        _kill_after(pid, 0.0)
        assert self._end()[0] == -signal.SIGKILL
        yield "copy"

    def _start(self, out: str, *, caches: bool = False, stop_before: int = 0) -> int:
        arguments = [*self._arguments, "--out", out]
        content = {"arguments": arguments, "folder": str(self.folder), "caches": caches, "stop_before": stop_before}
        self._ask(json.dumps(content))
        return int(self._answer())

    def _ask(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{line}\n")
        self._process.stdin.flush()

    def _end(self) -> tuple[int, float]:
        """Exit status and CPU time of the process that was asked for last."""
        status, seconds = self._answer().split()
        return int(status), float(seconds)

    def _answer(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline()


def _kill_after(pid: int, seconds: float) -> None:
    """Kills a process after so many seconds; its parent has not waited for it yet, so the number is still its own."""
    time.sleep(seconds)
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def serve() -> None:
    """Forks a child for every request on the standard input; answers its process number, then its exit status."""
    for module in ("matplotlib", "PIL.Image", "pyarrow.parquet", "scipy.stats"):
        importlib.import_module(module)
    tfds.import_tfds()
    for page in ("base", "parts", "page", "audit", "sweep"):
        templates.compiled(f"{page}.html.jinja")
    for line in sys.stdin:
        request = json.loads(line)
        if not (pid := os.fork()):
            _child(**request)
        print(pid, flush=True)
        print(_waited_for(pid), flush=True)


def _waited_for(pid: int) -> str:
    """Exit status and CPU time of a child, once it has ended."""
    _, status, used = os.wait4(pid, 0)
    return f"{os.waitstatus_to_exitcode(status)} {used.ru_utime + used.ru_stime}"


def _cpu_seconds(pid: int) -> float | None:
    """CPU time that a process has used so far; `None` after its end, and where there is no such file."""
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    except OSError:
        return None
    return None if state == "Z" else sum(map(int, fields[10:12])) / os.sysconf("SC_CLK_TCK")


def _child(arguments: list[str], folder: str, caches: bool, stop_before: int) -> None:
    """Runs the command in this process and ends it."""
    import jax

    status = 70
    try:
        os.chdir(folder)
        requests, answers = os.dup(0), os.dup(1)
        messages = os.open("messages", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(messages, 1)
        os.dup2(messages, 2)
        if not caches:  # a killed process would leave damaged programs in the cache, which is not ours
            jax.config.update("jax_persistent_cache_min_compile_time_secs", 1e9)
        vars(importlib.import_module("jaxinvert.jobs.execute"))["_SECONDS_BETWEEN_STATES"] = 0.0
        calls = _stop_before(stop_before, requests, answers)
        status = cli.main(arguments)
        Path(_WRITES).write_text(f"{len(calls)}\n", encoding="ascii")
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(status)


def _stop_before(number: int, requests: int, answers: int) -> list[Path]:
    """Stops this process before its write of this number; it forks a copy that goes on whenever it is asked to.

    Returns:
      A list to which the path of every write is added.
    """
    write, calls = files.write_atomically, []

    def stopping(path: Path, content: Any) -> None:
        calls.append(path)
        if len(calls) == number:
            os.write(answers, b"stopped\n")
            while os.read(requests, 100) and (pid := os.fork()):
                os.write(answers, f"{pid}\n".encode())
                os.write(answers, f"{_waited_for(pid)}\n".encode())
        write(path, content)

    files.write_atomically = stopping
    return calls
