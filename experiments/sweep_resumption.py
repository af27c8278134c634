"""Does a sweep survive? One left alone, one killed three times at random moments and resumed, one computed by Ray.

Setting: 200 jobs over total-variation weights, learning rates and seeds, one image of 16x16 pixels each, LeNet.
Expected: one attack program compiled (two are allowed), and the same bytes in every record of all sweeps.

Command:  python -m experiments.sweep_resumption --json FILE.json
Smoke:    python -m experiments.sweep_resumption --smoke
Measured: see experiments/details/sweep-resumption.md
"""

import importlib.util
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import tyro
import yaml

from experiments import harness


@dataclass(frozen=True)
class Config:
    """Setting of the experiment.

    Attributes:
      model: network by name.
      size: of the images, in pixels.
      seeds: networks and starts; times ten weights and four learning rates.
      steps: of each job.
      kills: SIGKILLs, each after a random part of the time that the undisturbed sweep took.
      seed: of the moments.
      ray: whether to compute the sweep with Ray, too; by default if it is installed.
      smoke: a run of seconds that only shows that everything works.
      json: file for the rows.
    """

    model: str = "lenet"
    size: int = 16
    seeds: int = 5
    steps: int = 200
    kills: int = 3
    seed: int = 0
    ray: bool = importlib.util.find_spec("ray") is not None
    smoke: bool = False
    json: Path | None = None


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the sweep three times and compares what they left."""
    config = tyro.cli(Config, description=__doc__, args=arguments)
    if config.smoke:
        config = replace(config, model="mlp-8", size=12, seeds=1, steps=1, kills=0, ray=False)
    with tempfile.TemporaryDirectory() as temporary:
        rows = compare(config, Path(temporary))
    harness.publish("A sweep left alone, killed, and computed elsewhere", rows, json_file=config.json)


def compare(config: Config, folder: Path) -> list[dict[str, Any]]:
    """One row for each way to compute the sweep."""
    file = folder / "sweep.yaml"
    weights = [0.0, *(10.0**-k for k in range(6, 0, -1)), 0.3, 1.0, 3.0]
    content = {
        "model": config.model,
        "size": config.size,
        "targets": 1,
        "restarts": 1,
        "steps": config.steps,
        "grid": {"tv": weights, "lr": [0.01, 0.03, 0.1, 0.3], "seed": list(range(config.seeds))},
    }
    file.write_text(yaml.safe_dump(content))
    moments = random.Random(config.seed)
    alone = run(file, folder / "alone")
    rows = [{"sweep": "left alone", "kills": 0, **facts(folder / "alone", folder / "alone"), "seconds": alone}]
    begin = time.perf_counter()
    fractions = [moments.uniform(0.2, 0.8) for _ in range(config.kills)]
    landed = sum(run_and_kill(file, folder / "killed", after=fraction * alone) for fraction in fractions)
    run(file, folder / "killed")
    seconds = time.perf_counter() - begin
    rows.append(
        {"sweep": "killed", "kills": landed, **facts(folder / "killed", folder / "alone"), "seconds": seconds}
    )
    if config.ray:
        seconds = run(file, folder / "ray", "--engine", "ray")
        rows.append({"sweep": "Ray", "kills": 0, **facts(folder / "ray", folder / "alone"), "seconds": seconds})
    return rows


def run(file: Path, out: Path, *options: str) -> float:
    """Seconds that the sweep took in a process of its own."""
    begin = time.perf_counter()
    subprocess.run(command(file, out, *options), stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - begin


def run_and_kill(file: Path, out: Path, *, after: float) -> bool:
    """Starts the sweep and kills it after so many seconds; whether it was still running."""
    with subprocess.Popen(command(file, out), stdout=subprocess.DEVNULL) as process:
        try:
            process.wait(after)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            return True
    return False


def command(file: Path, out: Path, *options: str) -> list[str]:
    """The command line of the sweep."""
    return [sys.executable, "-m", "jaxinvert", "sweep", str(file), "--out", str(out), *options]


def facts(folder: Path, reference: Path) -> dict[str, Any]:
    """Jobs recorded, programs compiled per process, and how many records differ from the reference's."""
    records, expected = (
        {file.name: file.read_bytes() for file in (each / "records").iterdir()} for each in (folder, reference)
    )
    log = [json.loads(line) for line in (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    return {
        "jobs": sum(name.endswith(".json") for name in records),
        "batches_computed": len(log),
        "programs_compiled": max(entry["programs_traced"] for entry in log),
        "records_that_differ": sum(records.get(name) != content for name, content in expected.items()),
    }


if __name__ == "__main__":
    main()
