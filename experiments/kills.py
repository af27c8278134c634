"""Do sweep, invert and audit survive SIGKILL at any moment? Kills by the hundred, against runs left alone.

In rounds: a command is killed several times in one folder and then left to its end. Compared with a run that was
left alone are all records, kept attacks and results, after every kill and at the end, except measured times. The jobs
are as small as can be, and the state of a search is saved at every report instead of every minute.

Kills are of two kinds. `whole` ones end a run at a uniformly random moment, from its first line on. The others come
where files are written: a run is stopped before a random one of its writes and continued in forked copies, of which
each is killed within a fraction of a second, and then itself. A process that has imported everything forks a child
for every run, and compiled programs are cached; the commands are called by `jaxinvert.cli.main` with their arguments.

Expected: nothing lost or changed, no file half written under its name, and no temporary file after the next run.

Command:  nice python -m experiments.kills --kills 1000 --minutes 20 --json experiments/results/kills.json
Smoke:    python -m experiments.kills --smoke
Measured: see experiments/README.md
"""

import contextlib
import importlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from experiments import harness
from jaxinvert import cli, files

TITLE = "SIGKILLs at random moments"
SMALL = ["--model", "mlp", "--size", "12", "--restarts", "1"]
SWEEP = (
    "{model: mlp, size: 12, targets: 1, restarts: 1, steps: 3, batch: 2, grid: {tv: [1e-3, 1e-2], seed: [0, 1, 2]}}"
)
COMMANDS = {
    "sweep": ["sweep", "sweep.yaml"],
    "invert": ["invert", *SMALL, "--targets", "2", "--steps", "200"],
    "audit": ["audit", *SMALL, "--attack", "dlg", "--targets", "3", "--steps", "40", "--no-attack-free"],
}
RESULTS = {
    "sweep": ("records/*.json", "records/*.npz", "plan.json"),
    "invert": ("summary.json", "reconstructions.npz"),
    "audit": ("attacks/*.npz", "audit.json"),
}
"""What is compared. Times, and steps at which losses were reported, differ from run to run, see `comparable`."""
KEPT = {"sweep": RESULTS["sweep"][:2], "invert": (), "audit": ("attacks/*.npz",)}
"""What a killed run leaves to the next, which must not change or remove it."""


@dataclass(frozen=True)
class Config:
    """Setting of the experiment.

    Attributes:
      kills: SIGKILLs in total, over three commands.
      minutes: after which no further round is begun.
      copies: killed in each round, with the run that they are copies of.
      seed: of the moments.
      smoke: a run of seconds that only shows that everything works.
      json: file for the rows.
    """

    kills: int = 1000
    minutes: float = 20.0
    copies: int = 100
    seed: int = 0
    smoke: bool = False
    json: Path | None = None


@dataclass
class Tally:
    """Counts of one command; `kills` are of running processes, `seconds` those of the last run to its end."""

    command: str
    kills: int = 0
    whole: int = 0
    temporary_files_found: int = 0
    runs_to_the_end: int = 0
    files_compared: int = 0
    lost: int = 0
    changed: int = 0
    temporary_files_left: int = 0
    warnings: int = 0
    failures: int = 0
    seconds: float = 1.0


def main(arguments: Sequence[str] | None = None) -> None:
    """Kills the three commands in turn and compares what they left."""
    config = tyro.cli(Config, description=__doc__, args=arguments)
    if config.smoke:
        config = replace(config, kills=1, minutes=10.0, copies=2)
    with tempfile.TemporaryDirectory() as temporary, Launcher(Path(temporary)) as launcher:
        rows = kill_all(config, launcher)
    harness.publish(TITLE, rows, json_file=config.json)


def kill_all(config: Config, launcher: "Launcher") -> list[dict[str, Any]]:
    """Rounds of all commands in turn, until there were enough kills or the time is over."""
    moments, end = random.Random(config.seed), time.monotonic() + 60 * config.minutes
    tallies = {name: Tally(name) for name in (["invert"] if config.smoke else COMMANDS)}
    references: dict[str, dict[str, Any]] = {}
    (launcher.folder / "sweep.yaml").write_text(SWEEP)
    for name in tallies:
        launcher.run(name, f"{name}-alone")
        references[name] = contents(launcher.folder / f"{name}-alone", RESULTS[name])
    while sum(tally.kills + tally.whole for tally in tallies.values()) < config.kills and time.monotonic() < end:
        tally = min(tallies.values(), key=lambda one: one.kills)
        play_round(tally, launcher, references[tally.command], moments, copies=config.copies)
        if config.json is not None:
            harness.save(config.json, TITLE, [vars(one) for one in tallies.values()])
    return [vars(tally) for tally in tallies.values()]


def play_round(
    tally: Tally, launcher: "Launcher", reference: Mapping[str, Any], moments: random.Random, *, copies: int
) -> None:
    """Kills runs of a command in one new folder, then lets one come to its end, and compares after each kill."""
    name, out = tally.command, f"{tally.command}-{tally.runs_to_the_end}"
    folder = launcher.folder / out
    before: dict[str, Any] = {}
    if tally.runs_to_the_end and moments.random() < 0.5:
        tally.whole += launcher.run_and_kill(name, out, moments.uniform(0, 1.1 * tally.seconds))
        before = compared(tally, folder, reference, before)
    for _ in launcher.kill_copies(name, out, moments, copies):
        tally.kills += 1
        before = compared(tally, folder, reference, before)
    begin = time.perf_counter()
    status, messages = launcher.run(name, out)
    tally.seconds = time.perf_counter() - begin
    tally.runs_to_the_end += 1
    tally.failures += status != 0
    tally.warnings += messages.count("warning:")
    compared(tally, folder, reference, before)
    tally.files_compared += len(reference)
    tally.lost += len(reference.keys() - contents(folder, RESULTS[name]).keys())
    tally.temporary_files_left += partial_files(folder) + (folder / ".lock").exists()


def partial_files(folder: Path) -> int:
    """The number of temporary files anywhere in a folder."""
    return sum(1 for _ in folder.rglob(".jaxinvert-*.partial"))


def compared(tally: Tally, folder: Path, reference: Mapping[str, Any], before: Mapping[str, Any]) -> dict[str, Any]:
    """Counts results that are not those of the reference, and kept ones that were there before and are not now."""
    found = contents(folder, RESULTS[tally.command])
    tally.changed += sum(content != reference.get(path) for path, content in found.items())
    tally.lost += len(before.keys() - found.keys())
    tally.temporary_files_found = max(tally.temporary_files_found, partial_files(folder))
    return contents(folder, KEPT[tally.command])


def contents(folder: Path, patterns: Sequence[str]) -> dict[str, Any]:
    """The files of these patterns, by path, as far as they can be compared."""
    return {
        str(path.relative_to(folder)): comparable(path)
        for pattern in patterns
        for path in sorted(folder.glob(pattern))
    }


def comparable(path: Path) -> Any:
    """The content of a file without measured times; `None` if it is not whole."""
    if path.parent.name == "records":
        return path.read_bytes()
    try:
        if path.suffix == ".json":
            return without_times(json.loads(path.read_text(encoding="utf-8")))
        arrays = files.load_arrays(path)
    except ValueError:
        return None
    fixed = {name: value for name, value in arrays.items() if not name.startswith(("seconds", "history/", "sha256"))}
    return {name: (value.dtype.str, value.shape, np.asarray(value).tobytes()) for name, value in fixed.items()}


def without_times(content: Any) -> Any:
    """Nested JSON without entries that are measured times, name the folder, or are checksums over such entries."""
    if isinstance(content, list):
        return [without_times(item) for item in content]
    if not isinstance(content, dict):
        return content
    left_out = ("command", "identity")
    return {
        name: without_times(value) for name, value in content.items() if "second" not in name and name not in left_out
    }


class Launcher:
    """A process that has imported everything, and forks one child for every run of a command."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        environment = {
            "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
            **os.environ,
        }
        self._process = subprocess.Popen(
            [sys.executable, "-c", "from experiments import kills; kills.serve()"],
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

    def run(self, name: str, out: str) -> tuple[int, str]:
        """Exit status and messages of a command that is left alone."""
        self._start(name, out, caches=out.endswith("alone"))
        status = int(self._answer())
        return status, (self.folder / "messages").read_text(encoding="utf-8", errors="replace")

    def run_and_kill(self, name: str, out: str, seconds: float) -> bool:
        """Kills a command after so many seconds; whether it was still running."""
        _kill_after(self._start(name, out), seconds)
        return int(self._answer()) == -signal.SIGKILL

    def kill_copies(self, name: str, out: str, moments: random.Random, copies: int) -> Iterator[None]:
        """Stops a run before a random write; kills copies of it that go on from there, and then the run itself.

        Yields:
          After every process that was killed while it was running.
        """
        pid = self._start(name, out, stop_before=moments.randint(1, 15))
        if (answer := self._answer()) != "stopped\n":  # it has fewer writes and came to its end
            return
        for _ in range(copies):
            self._ask("fork")
            _kill_after(int(self._answer()), moments.choice((0.003, 0.02, 0.2)) * moments.random())
            if int(self._answer()) == -signal.SIGKILL:
                yield
        _kill_after(pid, 0.0)
        answer = self._answer()
        assert int(answer) == -signal.SIGKILL
        yield

    def _start(self, name: str, out: str, *, caches: bool = False, stop_before: int = 0) -> int:
        arguments = [*COMMANDS[name], "--out", out]
        content = {"arguments": arguments, "folder": str(self.folder), "caches": caches, "stop_before": stop_before}
        self._ask(json.dumps(content))
        return int(self._answer())

    def _ask(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{line}\n")
        self._process.stdin.flush()

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
    for module in ("matplotlib", "PIL.Image", "pyarrow.parquet", "scipy.stats", "jinja2"):
        importlib.import_module(module)
    for line in sys.stdin:
        request = json.loads(line)
        if not (pid := os.fork()):
            _child(**request)
        print(pid, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


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
        if stop_before:
            _stop_before(stop_before, requests, answers)
        status = cli.main(arguments)
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(status)


def _stop_before(number: int, requests: int, answers: int) -> None:
    """Stops this process before its write of this number; it forks a copy that goes on whenever it is asked to."""
    write, calls = files.write_atomically, []

    def stopping(path: Path, content: Any) -> None:
        calls.append(path)
        if len(calls) == number:
            os.write(answers, b"stopped\n")
            while os.read(requests, 100) and (pid := os.fork()):
                os.write(answers, f"{pid}\n".encode())
                os.write(answers, f"{os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])}\n".encode())
        write(path, content)

    files.write_atomically = stopping


if __name__ == "__main__":
    main()
