"""Scale: speed, memory and compilation against restarts, targets, batch size and devices; cost of a sweep's job.

Setting: Inverting Gradients. Restarts and targets on LeNet with 16x16 pixels, one image each. Batches on
small-convnet, gradients 16 examples at a time (`gradient_chunk`). Devices are forced on the CPU, which shows that
they work and what they cost, not that they gain: they share the same cores. Speed is that of a search that was
compiled before; `overhead` is what a job of a sweep costs beside its steps: clients, measures, records.
Expected: steps per second grow with lanes until the device is full and then stay; memory does not grow with the
batch; one program for each point.

Command:  python -m experiments.benchmark_scale --json FILE.json
Smoke:    python -m experiments.benchmark_scale --smoke
Measured: see experiments/details/scale.md
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from experiments import harness
from jaxinvert import sweeps

LANES = {"attack": "inverting-gradients", "targets": 1, "restarts": 1, "steps": 100_000}
BATCHES = {**LANES, "model": "small-convnet", "gradient_chunk": 16}


@dataclass(frozen=True)
class Config:
    """Setting of the experiment.

    Attributes:
      restarts: counts.
      targets: counts.
      batches: examples per client.
      devices: counts; each is forced in a process of its own, where the platform is the CPU.
      jobs: of the sweep.
      model: network of all but the batches.
      size: of their images, in pixels.
      point: measures this setting only, JSON fields of a job, and prints what it found as JSON.
      smoke: a run of seconds that only shows that everything works.
      json: file for the rows.
    """

    restarts: tuple[int, ...] = (1, 4, 16, 64, 256)
    targets: tuple[int, ...] = (4, 16, 64, 256)
    batches: tuple[int, ...] = (1, 16, 64, 256, 512)
    devices: tuple[int, ...] = (1, 2, 4)
    jobs: int = 64
    model: str = "lenet"
    size: int = 16
    point: str | None = None
    smoke: bool = False
    json: Path | None = None


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures point by point."""
    config = tyro.cli(Config, description=__doc__, args=arguments)
    if config.point is not None:
        print(json.dumps(measure(json.loads(config.point))))
        return
    if config.smoke:
        config = replace(config, restarts=(2,), targets=(), batches=(), devices=(2,), jobs=2, model="mlp-8", size=12)
    with tempfile.TemporaryDirectory() as temporary:
        rows = measure_all(config, Path(temporary))
    harness.publish("Scale", rows, json_file=config.json)


def measure_all(config: Config, folder: Path) -> list[dict[str, Any]]:
    """One row for each point, and one for the sweep."""
    data = noise(folder / "noise.npz", count=max([10, *config.targets, *config.batches]), size=config.size)
    lanes = {**LANES, "model": config.model, "data": str(data)}
    points = [
        *(("restarts", number, {**lanes, "restarts": number}) for number in config.restarts),
        *(("targets", number, {**lanes, "targets": number}) for number in config.targets),
        *(("examples", number, {**BATCHES, "data": str(data), "num_examples": number}) for number in config.batches),
        *(("devices", number, {**lanes, "restarts": 16, "devices": number}) for number in config.devices),
    ]
    rows = []
    for axis, number, fields in points:
        print(f"{axis} {number}", flush=True)
        found = measure_elsewhere(fields) if axis == "devices" else measure(fields)
        rows.append({"axis": axis, "number": number, **found, "overhead_s_per_job": None})
    return [*rows, sweep_overhead(config, lanes, folder)]


def noise(file: Path, *, count: int, size: int) -> Path:
    """A data set of uniform noise: how fast an attack runs does not depend on the images."""
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (count, size, size, 3), dtype=np.uint8)
    np.savez(file, images=images, labels=np.arange(count) % 10)
    return file


def measure(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Speed, memory and compile time of one job."""
    plan = sweeps.make_plan([fields])
    (cost,) = sweeps.estimate(plan)
    config = plan.jobs[0].config
    lanes = config.data.targets * config.search.restarts
    return {
        "lane_steps_per_s": lanes / cost.seconds_per_step,
        "examples_per_s": lanes * config.data.num_examples / cost.seconds_per_step,
        "ms_per_step": 1000 * cost.seconds_per_step,
        "peak_mib": cost.peak_bytes / 2**20,
        "compile_s": cost.seconds_compile,
        "programs": cost.num_traces,
    }


def measure_elsewhere(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The same in a process with as many devices, forced where the platform is the CPU."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={fields['devices']}"
    command = [sys.executable, "-m", "experiments.benchmark_scale", "--point", json.dumps(fields)]
    environment = {**os.environ, "XLA_FLAGS": flags.strip()}
    result = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(result.stdout.splitlines()[-1])


def sweep_overhead(config: Config, fields: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """What a job costs that takes no step, in the second of two batches: nothing is compiled any more."""
    varied = [{**fields, "steps": 0, "tv": 1e-4 * number} for number in range(config.jobs)]
    plan = sweeps.make_plan(varied, batch=-(-config.jobs // 2))
    moments = [time.perf_counter() for _ in sweeps.run(plan, folder / "sweep")]
    log = [json.loads(line) for line in (folder / "sweep" / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    return {
        "axis": "jobs of a sweep",
        "number": config.jobs,
        **dict.fromkeys(("lane_steps_per_s", "examples_per_s", "ms_per_step", "peak_mib", "compile_s")),
        "programs": max(entry["programs_traced"] for entry in log),
        "overhead_s_per_job": (moments[-1] - moments[-2]) / len(plan.batches[-1].jobs),
    }


if __name__ == "__main__":
    main()
