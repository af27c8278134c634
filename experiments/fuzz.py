"""Does a hostile file do harm? Mutated files through every entry: refused by one clear error, or read rightly.

Bits are flipped, files cut, spliced and filled with extreme integers; edits that know the format replace values by
wrong types, huge numbers, deep lists and other members, with checksums put right (`mutations`). Every entry is one
that the commands use (`fuzz_entries`). Counted are tracebacks (anything but the errors that commands show as one
line, and the death of the process), hangs (more than 5 s of CPU time), wrong acceptances (another reader of the
format refuses the file or finds other values), and inputs that cost more memory than 4 times the file plus 64 MiB.

Command:  python -m experiments.fuzz --inputs 100000 --json FILE.json
Smoke:    python -m experiments.fuzz --smoke
Measured: see experiments/details/fuzz.md
"""

import contextlib
import math
import multiprocessing
import queue
import random
import re
import shutil
import signal
import sys
import tempfile
import threading
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import tyro

from experiments import harness, mutations
from experiments.fuzz_entries import Entry, Files, file_entries
from experiments.fuzz_folders import folder_entries
from jaxinvert.cli.console import BadInputError

HANG_SECONDS = 5.0
FREE_BYTES, BYTES_PER_BYTE = 64 << 20, 4
"""An input may cost so much memory, and so many times its size."""
_CLEAN = (ValueError, OSError, BadInputError)
_MAX_MESSAGE = 6000
_SHOWN = 3
_KINDS = ("refused", "accepted", "traceback", "hang", "wrong")
_IN_MEMORY = Path("/dev/shm")
"""Where Linux has it, inputs are written there: on a disk, that would take longer than to read them."""


@dataclass(frozen=True)
class Config:
    """What to try.

    Attributes:
      inputs: mutated files, over all entries.
      entry: only those entries whose names contain this.
      first: number of the first input of an entry, to repeat one that failed.
      seed: of the mutations.
      workers: processes that try inputs.
      minutes: limit on the time; entries that it cuts short say so by their count.
      smoke: a run of seconds in this process that only shows that everything works.
      json: file for the rows.
    """

    inputs: int = 10_000
    entry: str = ""
    first: int = 0
    seed: int = 0
    workers: int = 2
    minutes: float = 60.0
    smoke: bool = False
    json: Path | None = None


class Outcome(NamedTuple):
    """What became of an input.

    Attributes:
      number: of the input.
      kind: "refused", "accepted", "traceback", "hang" or "wrong".
      message: of the exception, or what is wrong.
      extra_bytes: memory that it cost beyond what it may.
      peak_bytes: memory that it cost.
      seconds: CPU time of the reader.
    """

    number: int
    kind: str
    message: str
    extra_bytes: int
    peak_bytes: int
    seconds: float = 0.0


class Hang(BaseException):
    """Raised by the alarm; no reader catches it."""


def entries() -> tuple[Entry, ...]:
    """All entries."""
    return (*file_entries(), *folder_entries())


def main(arguments: Sequence[str] | None = None) -> None:
    """Tries every entry and prints one row for each."""
    config = tyro.cli(Config, description=__doc__, args=arguments)
    chosen = [entry for entry in entries() if config.entry in entry.name]
    total = sum(entry.weight for entry in chosen)
    per_weight = (26 if config.smoke else config.inputs) / total
    numbers = [range(config.first, config.first + math.ceil(entry.weight * per_weight)) for entry in chosen]
    tallies = {entry.name: Tally(entry.name) for entry in chosen}
    if config.smoke:
        outcomes = (
            (entry.name, outcome)
            for entry, own in zip(chosen, numbers)
            for outcome in attempts(entry, own, config.seed)
        )
    else:
        tasks = [Task(entry.name, own) for entry, own in zip(chosen, numbers)]
        outcomes = shared(tasks, config.seed, 60 * config.minutes, config.workers)
    for name, outcome in outcomes:
        tallies[name].add(outcome)
    harness.publish(
        "Mutated files through every entry", [tally.row() for tally in tallies.values()], json_file=config.json
    )


@dataclass
class Tally:
    """Counts the outcomes of an entry and prints what is at fault."""

    entry: str
    kinds: Counter[str] = field(default_factory=Counter)
    over_memory: int = 0
    peak_bytes: int = 0
    seconds: float = 0.0
    slowest: float = 0.0
    shown: int = 0

    def add(self, outcome: Outcome) -> None:
        """Counts an outcome."""
        self.kinds[outcome.kind] += 1
        self.over_memory += outcome.extra_bytes > 0
        self.peak_bytes = max(self.peak_bytes, outcome.peak_bytes)
        self.seconds += outcome.seconds
        self.slowest = max(self.slowest, outcome.seconds)
        faulty = outcome.kind not in ("refused", "accepted") or outcome.extra_bytes > 0
        if faulty and (self.shown < _SHOWN or outcome.kind == "wrong"):
            self.shown += 1
            extra = f", {outcome.peak_bytes >> 20} MiB" if outcome.extra_bytes > 0 else ""
            what = f"{self.entry}, input {outcome.number}: {outcome.kind}{extra}"
            print(f"{what}: {outcome.message[:2000]}", flush=True)

    def row(self) -> dict[str, Any]:
        """The row of the table."""
        tried = sum(self.kinds.values())
        return {
            "entry": self.entry,
            "tried": tried,
            **{kind: self.kinds[kind] for kind in _KINDS},
            "over_memory": self.over_memory,
            "peak_mib": self.peak_bytes / 2**20,
            "mean_ms": 1000 * self.seconds / max(1, tried),
            "slowest_ms": 1000 * self.slowest,
        }


def attempts(entry: Entry, numbers: Sequence[int], seed: int) -> Iterator[Outcome]:
    """Tries inputs in this process."""
    where = _IN_MEMORY if _IN_MEMORY.is_dir() else None
    with tempfile.TemporaryDirectory(dir=where) as temporary, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        folder = Path(temporary, "input")
        _attempt(entry, entry.seeds[0], folder, -1)  # imports and caches cost memory once
        for number in numbers:
            rng = random.Random(f"{seed}/{entry.name}/{number}")
            yield _attempt(entry, mutated_files(entry, rng), folder, number)


def mutated_files(entry: Entry, rng: random.Random) -> Files:
    """A valid input with one of its files mutated."""
    content = dict(rng.choice(entry.seeds))
    name = rng.choice([*content])
    content[name] = mutations.mutated(content[name], rng, mutations.EDITS.get(Path(name).suffix))
    return entry.repaired(content, rng)


def _attempt(entry: Entry, content: Files, folder: Path, number: int) -> Outcome:
    shutil.rmtree(folder, ignore_errors=True)
    for name, data in content.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    begin = time.process_time()
    with measured_memory() as cost:
        try:
            with alarm():
                found = entry.load(folder)
            kind, message = "accepted", ""
        except _CLEAN as error:
            kind, message = "refused", str(error)
        except Hang:
            kind, message = "hang", traceback.format_exc(limit=-3)
        except Exception:
            kind, message = "traceback", traceback.format_exc(limit=-4)
    seconds = time.process_time() - begin
    if kind == "refused" and not 0 < len(message) < _MAX_MESSAGE:
        kind = "traceback"
    if kind == "accepted":
        try:
            message = entry.check(found, folder)  # pyright: ignore[reportPossiblyUnboundVariable]
        except Exception as error:
            message = f"the other reader refuses it: {error!r}"
        kind = "wrong" if message else kind
    size = sum(map(len, content.values()))
    return Outcome(number, kind, message, cost[0] - FREE_BYTES - BYTES_PER_BYTE * size, cost[0], seconds)


@contextlib.contextmanager
def alarm() -> Iterator[None]:
    """Interrupts what takes more CPU time than a hang."""

    def ring(*_: object) -> None:
        raise Hang

    before = signal.signal(signal.SIGPROF, ring)
    signal.setitimer(signal.ITIMER_PROF, HANG_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


@contextlib.contextmanager
def measured_memory() -> Iterator[list[int]]:
    """A list that holds, after the body, how far the process grew beyond its size before: 0 where Linux is not."""
    cost = [0]
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = _status("VmRSS")
    yield cost
    cost[0] = max(0, _status("VmHWM") - before)


def _status(field: str) -> int:
    try:
        found = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="ascii"))
    except OSError:
        return 0
    return 1024 * int(found[1]) if found else 0


class Task(NamedTuple):
    """The inputs of an entry that are still to be tried."""

    entry: str
    numbers: range


def shared(tasks: Sequence[Task], seed: int, seconds: float, workers: int) -> Iterator[tuple[str, Outcome]]:
    """Tries inputs in several processes at once, see `isolated`; each has every so manyth input of every task."""
    found: queue.SimpleQueue[tuple[str, Outcome] | BaseException | None] = queue.SimpleQueue()

    def work(own: Sequence[Task]) -> None:
        try:
            for each in isolated(own, seed, seconds):
                found.put(each)
            found.put(None)
        except BaseException as error:
            found.put(error)

    for worker in range(workers):
        parts = (task._replace(numbers=task.numbers[worker::workers]) for task in tasks)
        threading.Thread(target=work, args=([part for part in parts if part.numbers],), daemon=True).start()
    running = workers
    while running:
        one = found.get()
        if isinstance(one, BaseException):
            raise one
        if one is None:
            running -= 1
        else:
            yield one


def isolated(tasks: Sequence[Task], seed: int, seconds: float) -> Iterator[tuple[str, Outcome]]:
    """Tries inputs in a process of its own; after its death, which is a traceback, another one goes on.

    Args:
      tasks: what to try.
      seed: of the mutations.
      seconds: for all tasks; each gets an equal share of what those before it left.
    """
    context = multiprocessing.get_context("spawn")
    deadline = time.monotonic() + seconds
    left = list(tasks)
    while left:
        receiver, sender = context.Pipe(duplex=False)
        child = context.Process(target=_work, args=(left, seed, deadline - time.monotonic(), sender), daemon=True)
        child.start()
        sender.close()
        died = False
        while left and not died:
            try:
                if died := not receiver.poll(300):
                    child.kill()
                found = None if died else receiver.recv()
            except EOFError:
                died, found = True, None
            name, numbers = left[0]
            if died:
                child.join()
                message = f"the process ended with status {child.exitcode}"
                found = Outcome(numbers.start, "traceback", message, 0, 0)
            if found is None:  # the entry's time is over
                left.pop(0)
                continue
            yield name, found
            left[0] = left[0]._replace(numbers=numbers[numbers.index(found.number) + 1 :])
            if not left[0].numbers:
                left.pop(0)
        receiver.close()
        child.join()


def _work(tasks: Sequence[Task], seed: int, seconds: float, sender: Connection) -> None:
    deadline = time.monotonic() + seconds
    known = {entry.name: entry for entry in entries()}
    for number, (name, numbers) in enumerate(tasks):
        begin = time.monotonic()
        share = (deadline - begin) / (len(tasks) - number)
        for outcome in attempts(known[name], numbers, seed):
            sender.send(outcome)
            if time.monotonic() - begin > share and outcome.number != numbers[-1]:
                sender.send(None)
                break


if __name__ == "__main__":
    main(sys.argv[1:])
