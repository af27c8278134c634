"""Do sweep, invert and audit survive SIGKILL at any moment? Kills by the hundred, against runs left alone.

In rounds: a command is killed several times in one folder and then left to its end. Compared with a run that was
left alone are all records, kept attacks and results, after every kill and at the end, except measured times. The jobs
are as small as can be, and the state of a search is saved at every report instead of every minute.

Kills are of two kinds. `whole` ones end a run at a uniformly random moment of the time that a run takes, from its
first line on. The others come where files are written: a run is stopped before a random one of its writes and
continued in forked copies, of which each is killed within a fraction of a second, and then itself. A process that has
imported everything forks a child for every run, and compiled programs are cached: a run then takes two to seven
seconds of a processor, most of them to trace its programs. Each command has a process and rounds of its own.

Expected: nothing lost or changed, no file half written under its name, and no temporary file after the next run.

Command:  python -m experiments.kills --kills 1000 --json FILE.json
Smoke:    python -m experiments.kills --smoke
Measured: see experiments/details/kills.md
"""

import json
import random
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from experiments import harness
from experiments.forked_runs import Launcher
from jaxinvert import files

_MOST_WHOLE = 12
"""Kills of whole runs in one folder."""
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
SMOKE = {"sweep": "{model: mlp, size: 12, targets: 1, restarts: 1, attack: dense-layer}"}
"""The command of a smoke run, with its sweep: a closed form, which compiles fast."""
KEPT = {"sweep": RESULTS["sweep"][:2], "invert": (), "audit": ("attacks/*.npz",)}
"""What a killed run leaves to the next, which must not change or remove it."""


@dataclass(frozen=True)
class Config:
    """Setting of the experiment.

    Attributes:
      kills: SIGKILLs, over three commands, an eighth of them of whole runs, after which no further round is begun.
      minutes: the same.
      copies: killed in a round of copies, with the run that they are copies of.
      seed: of the moments.
      smoke: a run of seconds that only shows that everything works.
      json: file for the rows; those that it holds are counted on.
    """

    kills: int = 1000
    minutes: float = 60.0
    copies: int = 100
    seed: int = 0
    smoke: bool = False
    json: Path | None = None


@dataclass
class Tally:
    """Counts of one command; `kills` are all, `whole` those of whole runs."""

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


def main(arguments: Sequence[str] | None = None) -> None:
    """Kills the three commands in turn and compares what they left."""
    config = tyro.cli(Config, description=__doc__, args=arguments)
    if config.smoke:
        config = replace(config, kills=1, copies=2)
    sweeps = SMOKE if config.smoke else dict.fromkeys(COMMANDS, SWEEP)
    tallies = {name: Tally(name) for name in sweeps}
    for row in harness.kept_rows(config.json):
        tallies[row["command"]] = Tally(**row)
    saving = threading.Lock()

    def enough() -> bool:
        """Saves what was counted so far, and says whether it is enough, over all commands."""
        with saving:
            if config.json is not None:
                harness.save(config.json, TITLE, [vars(one) for one in tallies.values()])
            kills, whole = (sum(getattr(one, name) for one in tallies.values()) for name in ("kills", "whole"))
            return kills >= config.kills and whole >= config.kills // 8

    def work(name: str) -> None:
        with tempfile.TemporaryDirectory() as temporary, Launcher(Path(temporary), COMMANDS[name]) as launcher:
            (launcher.folder / "sweep.yaml").write_text(sweeps[name])
            kill_often(tallies[name], launcher, config, enough)

    with ThreadPoolExecutor() as threads:
        for done in [threads.submit(work, name) for name in sweeps]:
            done.result()
    harness.publish(TITLE, [vars(one) for one in tallies.values()], json_file=config.json)


def kill_often(tally: Tally, launcher: Launcher, config: Config, enough: Callable[[], bool]) -> None:
    """Rounds of a command until there were enough kills or the time is over."""
    moments = random.Random(f"{config.seed}/{tally.command}/{tally.runs_to_the_end}")
    end = time.monotonic() + 60 * config.minutes
    launcher.run("alone", caches=True)
    reference = contents(launcher.folder / "alone", RESULTS[tally.command])
    seconds = 0.0
    if not config.smoke:  # takes the time, without compilation
        seconds = launcher.run("timed").seconds
    while not enough() and time.monotonic() < end:
        whole = seconds if tally.whole * 8 <= tally.kills else 0.0
        play_round(tally, launcher, reference, moments, seconds=whole, copies=config.copies)


def play_round(
    tally: Tally,
    launcher: Launcher,
    reference: Mapping[str, Any],
    moments: random.Random,
    *,
    seconds: float,
    copies: int,
) -> None:
    """Kills runs of a command in one new folder, then lets one come to its end, and compares after each kill.

    Args:
      tally: counts what is found.
      launcher: starts the runs.
      reference: contents of a run that was left alone.
      moments: draws the moments.
      seconds: CPU time of a whole run, in a round of kills of whole runs; 0 for one of copies.
      copies: to kill where files are written, with the run itself.
    """
    name, out = tally.command, f"round-{tally.runs_to_the_end}"
    folder = launcher.folder / out
    before: dict[str, Any] = {}
    whole = (moments.uniform(0, seconds) for _ in range(_MOST_WHOLE))
    parts = launcher.kill_whole(out, whole) if seconds else launcher.kill_copies(out, moments, copies)
    for kind in parts:
        tally.kills += 1
        tally.whole += kind == "whole"
        before = compared(tally, folder, reference, before)
    found = launcher.run(out)
    tally.runs_to_the_end += 1
    tally.failures += found.status != 0
    tally.warnings += found.messages.count("warning:")
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


if __name__ == "__main__":
    main()
