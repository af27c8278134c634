"""One command for a machine with an accelerator: the same losses as on its CPU, and the rates of large searches.

`parity` rows run a few steps of an attack on the CPU and on the accelerator, from the same start, at the highest
precision: `difference` is the relative one of the attack losses at the start and after the steps. Rows of `rate` time
Inverting Gradients as `benchmark_throughput` does: steps x restarts x targets per second, the share of the device's
own float32 matrix product's peak, and memory by XLA's analysis; `precision` says how products round. With `--python`,
an interpreter that has PyTorch, `peer` rows measure the loop of `benchmark_peers` on the same device in turn.

Everything ends within `--minutes`: rows that did not fit are named, and a second run with the same file goes on.
Without an accelerator it compares the CPU with itself, which proves nothing.

Command:  python -m experiments.benchmark_accelerator --json FILE.json
Smoke:    python -m experiments.benchmark_accelerator --smoke
Measured: nowhere yet
"""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from experiments import benchmark_peers, harness
from experiments.benchmark_throughput import Program
from jaxinvert import data, models
from jaxinvert.attacks import Problem, registry
from jaxinvert.clients import fedsgd
from jaxinvert.jobs import device_name
from jaxinvert.observation.observe import observe
from jaxinvert.search import best_of, run
from jaxinvert.types import Batch

TITLE = "On an accelerator"
PARITY = (
    ("inverting-gradients", "lenet"),
    ("inverting-gradients", "resnet20-4"),
    ("spectral", "small-convnet"),
    ("dlg", "lenet"),
    ("spectral", "vit-pre-norm"),
)


class Rate(NamedTuple):
    """A timed search: network, restarts, targets, side of the images in pixels, and precision of products."""

    model: str
    restarts: int
    targets: int
    size: int | None = None
    precision: str = "highest"


RATES = (
    Rate("lenet", 64, 16),
    Rate("lenet", 1, 1),
    Rate("convnet64", 8, 8),
    Rate("convnet64", 8, 8, precision="default"),
    Rate("resnet20-4", 8, 8),
    Rate("resnet18", 1, 1, 224),
    Rate("resnet18", 1, 8, 224, "default"),
    Rate("vit-pre-norm", 8, 8),
)
PEERS = ("LeNet", "ConvNet-64", "ResNet-18, 224 px")


@dataclass(frozen=True)
class Config:
    """What to measure.

    Attributes:
      minutes: no row is begun when nine tenths of this have passed.
      seconds: measured time per sample.
      repeats: samples of each rate; medians are reported.
      python: an interpreter that has PyTorch for this device; without it there are no peer rows.
      smoke: a run of seconds that only shows that everything works.
      json: file for the rows; rows that it holds of the same device are not measured again.
    """

    minutes: float = 8.0
    seconds: float = 2.0
    repeats: int = 3
    python: Path | None = None
    smoke: bool = False
    json: Path | None = None


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures row by row until all are there or the time is over."""
    config = tyro.cli(Config, description=__doc__, args=arguments)
    if config.smoke:
        config = replace(config, seconds=0.01, repeats=1)
    end = time.monotonic() + 0.9 * 60 * config.minutes
    rows = kept(config.json)
    late = []
    for name, measured in plan(config).items():
        if name in rows:
            continue
        if time.monotonic() > end:
            late.append(name)
            continue
        print(f"measuring {name}", flush=True)
        rows[name] = {"row": name, **measured(), "device": device_name()}
        if config.json is not None:
            harness.save(config.json, TITLE, list(rows.values()))
    columns = dict.fromkeys(key for row in rows.values() for key in row)
    harness.publish(TITLE, [{key: row.get(key) for key in columns} for row in rows.values()])
    if late:
        print(f"no time was left for: {'; '.join(late)}. Run the command again, with the same file.")


def plan(config: Config) -> Mapping[str, Callable[[], dict[str, Any]]]:
    """The rows by name."""
    pairs = [("inverting-gradients", "mlp")] if config.smoke else PARITY
    rates = [Rate("mlp", 2, 2)] if config.smoke else RATES
    rows = {f"parity: {attack}, {model}": partial(parity, attack, model) for attack, model in pairs}
    for one in rates:
        size = f", {one.size} px" if one.size else ""
        name = f"rate: {one.model}{size}, {one.restarts} restarts x {one.targets}, {one.precision}"
        rows[name] = partial(rate, config, one)
    if config.python is not None:
        rows |= {f"peer: {name}": partial(beside_peer, config, name) for name in PEERS}
    return rows


def kept(file: Path | None) -> dict[str, dict[str, Any]]:
    """The rows of an earlier run on the same kind of device."""
    return {row["row"]: row for row in harness.kept_rows(file) if row["device"] == device_name()}


def parity(attack: str, model_name: str, *, num_steps: int = 5) -> dict[str, Any]:
    """The largest relative difference of attack losses between the CPU and this device."""
    losses = {}
    for device in (jax.devices("cpu")[0], jax.devices()[0]):
        with jax.default_device(device), jax.default_matmul_precision("highest"):
            photos = data.load("photos", split="test[:1]")
            model = models.create(model_name, like=photos)
            client = fedsgd(model.loss)
            params = jax.jit(model.init)(jax.random.key(0))
            batch = Batch(jnp.asarray(photos.images), jnp.asarray(photos.labels))
            seen = jax.jit(partial(observe, client))(params, batch)
            built: Any = registry.REGISTRY[attack].build(Problem(client, model, 1))
            found = [
                jax.jit(best_of(run(built, num_steps=steps), num_restarts=2))(jax.random.key(1), seen).attack_loss
                for steps in (0, num_steps)
            ]
            losses[device] = np.array([float(loss) for loss in found])
    on_cpu, here = losses[jax.devices("cpu")[0]], losses[jax.devices()[0]]
    return {"difference": float(np.max(np.abs(on_cpu - here) / np.abs(on_cpu))), "steps": num_steps}


def rate(config: Config, one: Rate) -> dict[str, Any]:
    """The rate of one search."""
    with jax.default_matmul_precision(one.precision):
        program = Program(one.model, one.restarts, one.targets, size=one.size)
        num_steps = program.steps_in(config.seconds)
        seconds = [program.seconds_per_step(num_steps) for _ in range(config.repeats)]
        _, flops = program.lone_step(config.seconds / 4)
        peak = matrix_peak(512 if config.smoke else 8192)
    lanes = one.restarts * one.targets
    per_second = lanes / statistics.median(seconds)
    return {
        "steps_per_second": per_second,
        "slowest": lanes / max(seconds),
        "fastest": lanes / min(seconds),
        "peak_share": per_second * flops / peak,
        "peak_mib": program.peak_bytes() / 2**20,
        "seconds_compile": program.seconds_compile,
    }


def matrix_peak(size: int) -> float:
    """Best rate of a square float32 matrix product at the precision in force: operations per second."""
    a = jnp.ones((size, size))
    multiply = jax.jit(lambda a: a @ a)
    multiply(a).block_until_ready()
    times = []
    for _ in range(5):
        begin = time.perf_counter()
        multiply(a).block_until_ready()
        times.append(time.perf_counter() - begin)
    return 2 * size**3 / min(times)


def beside_peer(config: Config, name: str) -> dict[str, Any]:
    """The row of `benchmark_peers`, with PyTorch on its accelerator."""
    case = next(case for case in benchmark_peers.CASES if case.name == name)
    case = replace(case, quality=False, device="cuda")
    beside = benchmark_peers.Config(seconds=config.seconds, repeats=config.repeats, max_foreign=float("inf"))
    row = benchmark_peers.measure(beside, case, config.python)
    wanted = ("steps_per_second", "torch_steps_per_second", "ratio", "parity", "seconds_compile")
    return {key: row[key] for key in wanted}


if __name__ == "__main__":
    main()
