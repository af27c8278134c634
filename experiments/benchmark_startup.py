"""Where the seconds before the first step go, and what the kept programs save.

Processes of the command line, in turn: the overview of commands; a small job without kept programs, as every start
was before; with an empty folder of them; and again with what that run left. Measured from outside: seconds until the
first report of the attack's loss, seconds to the end, and the process's own CPU seconds, which other processes on the
machine hardly change. `load` is the machine's load average (runnable processes) when a process started.

Expected: the overview in less than one second; the second start of the job reports within 5 s and ends within 12 s.

Command:  python -m experiments.benchmark_startup --json FILE.json
Smoke:    python -m experiments.benchmark_startup --smoke
Measured: see experiments/details/startup.md
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from experiments import harness

TITLE = "Start of the command line"
WITHOUT, EMPTY, KEPT = "no kept programs", "first start", "second start"


@dataclass(frozen=True)
class Config:
    """Setting of the experiment.

    Attributes:
      model: network by name.
      steps: of the attack.
      repeats: rounds of all processes; the figures are medians.
      smoke: a run of seconds that only shows that everything works.
      json: file for the rows.
    """

    model: str = "lenet"
    steps: int = 100
    repeats: int = 3
    smoke: bool = False
    json: Path | None = None


def main(arguments: Sequence[str] | None = None) -> None:
    """Starts all processes in turn and prints their times."""
    config = tyro.cli(Config, description=__doc__, args=arguments)
    job = ["invert", "--model", config.model, "--steps", str(config.steps)]
    samples: dict[str, list[dict[str, float]]] = {}
    for _ in range(1 if config.smoke else config.repeats):
        with tempfile.TemporaryDirectory() as folder:
            samples.setdefault("overview", []).append(timed(["--help"], folder))
            if config.smoke:
                break
            for start, options in ((WITHOUT, {"JAX_ENABLE_COMPILATION_CACHE": "false"}), (EMPTY, {}), (KEPT, {})):
                samples.setdefault(start, []).append(timed(job, folder, options))
    rows = [
        {"start": start, **{name: _median(runs, name) for name in runs[0]}, "runs": len(runs)}
        for start, runs in samples.items()
    ]
    harness.publish(f"{TITLE}: {' '.join(job)}", rows, json_file=config.json)


def timed(arguments: Sequence[str], folder: str, options: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Seconds until the first report (`None` if there is none) and the end, CPU seconds, and the load before.

    Args:
      arguments: of `jaxinvert`.
      folder: for the user's cache and for results.
      options: of the environment.
    """
    environment = {name: value for name, value in os.environ.items() if not name.startswith("JAX_")}
    environment |= {"XDG_CACHE_HOME": folder, "PYTHONUNBUFFERED": "1", **(options or {})}
    out = ["--out", f"{folder}/out"] if arguments[0] == "invert" else []
    load, begin, first_report = os.getloadavg()[0], time.perf_counter(), None
    process = subprocess.Popen(
        [sys.executable, "-m", "jaxinvert", *arguments, *out], stdout=subprocess.PIPE, text=True, env=environment
    )
    assert process.stdout is not None
    with process.stdout:
        for line in process.stdout:
            if first_report is None and line.startswith("inverting ") and "attack loss" in line:
                first_report = time.perf_counter() - begin
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - begin
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(arguments)} ended with status {process.returncode}")
    return {
        "seconds_to_first_report": first_report,
        "seconds": seconds,
        "cpu_seconds": usage.ru_utime + usage.ru_stime,
        "load": load,
    }


def _median(runs: Sequence[Mapping[str, float | None]], name: str) -> float | None:
    values = [run[name] for run in runs]
    return None if None in values else float(np.median(np.array(values, float)))


if __name__ == "__main__":
    main()
