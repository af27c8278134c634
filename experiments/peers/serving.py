"""Processes that answer commands: one JSON object per line in, one per line out. Needs the standard library alone."""

import contextlib
import ctypes
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

Commands = Mapping[str, Callable[..., dict[str, Any]]]
_ROOT = Path(__file__).parents[2]


def serve(make: Callable[[Path], Commands]) -> None:
    """Answers the commands on standard input until it ends.

    Args:
      make: makes the commands of the folder that is the process's argument. Everything heavy is imported by then:
        the memory that a process has now is the baseline of its peak.
    """
    answers, sys.stdout = sys.stdout, sys.stderr  # what libraries print is no answer
    baseline = memory_mib()["resident"]
    commands = {**make(Path(sys.argv[1])), "memory": lambda: {"baseline": baseline, **memory_mib()}, "forget": forget}
    print(json.dumps({"baseline": baseline}), file=answers, flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        print(json.dumps(commands[request.pop("command")](**request)), file=answers, flush=True)


def memory_mib() -> dict[str, float]:
    """Resident memory of this process now and at its peak, in MiB; NaN where the system does not say."""
    fields = {"resident": "VmRSS:", "peak": "VmHWM:"}
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return dict.fromkeys(fields, float("nan"))
    found = {line.split()[0]: int(line.split()[1]) / 1024 for line in lines if line.startswith("Vm")}
    return {name: found[field] for name, field in fields.items()}


def forget() -> dict[str, Any]:
    """Returns unused memory to the system and sets the peak to what is left; not possible on every system."""
    with contextlib.suppress(AttributeError, OSError, TypeError):  # another C library: what is unused counts as used
        ctypes.CDLL(None).malloc_trim(0)
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    except OSError:
        return {"forgotten": False}
    return {"forgotten": True}


class Process:
    """A process that serves commands.

    Args:
      command: the interpreter and a module that calls `serve`.
      folder: its argument.
      environment: variables besides those of this process.
      patience: seconds that an answer may take.
    """

    def __init__(
        self,
        command: Sequence[str],
        folder: Path,
        *,
        environment: Mapping[str, str] | None = None,
        patience: float = 600,
    ) -> None:
        path = os.pathsep.join([str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        self.patience = patience
        self._log = folder / "log"
        with self._log.open("a", encoding="utf-8") as log:
            self._process = subprocess.Popen(
                [*command, str(folder)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env={**os.environ, **(environment or {}), "PYTHONPATH": path},
                cwd=_ROOT,
            )
        self.pid = self._process.pid
        self.baseline = self._answer()["baseline"]

    def ask(self, command: str, **arguments: Any) -> dict[str, Any]:
        """The answer to one command.

        Raises:
          RuntimeError: if the process ended or took too long; with the end of what it wrote.
        """
        assert self._process.stdin is not None
        print(json.dumps({"command": command, **arguments}), file=self._process.stdin, flush=True)
        return self._answer()

    def close(self) -> None:
        """Ends the process."""
        for stream in (self._process.stdin, self._process.stdout):
            assert stream is not None
            stream.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        timer = threading.Timer(self.patience, self._process.kill)
        timer.start()
        line = self._process.stdout.readline()
        timer.cancel()
        if not line:
            self._process.kill()
            self._process.wait()
            written = self._log.read_text(encoding="utf-8", errors="replace")[-2000:]
            raise RuntimeError(f"{self._process.args} ended within {self.patience:g} s or was ended then:\n{written}")
        return json.loads(line)


class InThisProcess:
    """The same commands without a process of their own."""

    def __init__(self, commands: Commands) -> None:
        self.commands, self.pid, self.baseline = commands, os.getpid(), memory_mib()["resident"]

    def ask(self, command: str, **arguments: Any) -> dict[str, Any]:
        """The answer to one command."""
        own = {"memory": lambda: {"baseline": self.baseline, **memory_mib()}, "forget": forget}
        return {**self.commands, **own}[command](**arguments)

    def close(self) -> None:
        """Nothing."""
