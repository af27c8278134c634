"""Throughput of the attack loop: steps x restarts x targets per second, against plain convolutions and the GEMM peak.

Each row runs `inverting_gradients` twice: with jaxinvert's convolutions and pooling, and with the same network on
`jax.lax.conv_general_dilated`. Both are timed in turn, several times, on the same client; the ratio is that of the
medians. `gemm_share` is the achieved share of this machine's float32 matrix-multiplication peak (the best of NumPy's
and JAX's), timed in turn with the program because a shared machine's speed changes from second to second; it counts
the floating-point operations that XLA reports for the *plain* program, so that a fast algorithm may exceed what its
own multiplications would allow. `ratio_outside_loop` compares one step of one lane as a program of its own.

Command:  python -m experiments.benchmark_throughput --json experiments/results/benchmark_throughput.json
Smoke:    python -m experiments.benchmark_throughput --smoke
Measured: see experiments/details/throughput.md
"""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from experiments import harness
from jaxinvert import data, models
from jaxinvert.attacks import Problem, inverting_gradients
from jaxinvert.clients import fedsgd
from jaxinvert.observation.observe import observe_targets
from jaxinvert.search import Stepwise, split_shared
from jaxinvert.types import Batch, ClientUpdateFn, Observation


@dataclass(frozen=True)
class Config:
    """What to measure.

    Attributes:
      models: networks by name.
      lanes: pairs of restarts and targets.
      seconds: measured time per program and repeat.
      repeats: of the pair of programs; medians are reported.
      plain: whether to measure the plain program too.
      smoke: a run of seconds with tiny settings that only shows that everything works.
      json: file for the rows.
    """

    models: tuple[str, ...] = ("lenet", "convnet64", "resnet20-4")
    lanes: tuple[tuple[int, int], ...] = ((1, 1), (8, 1), (1, 8))
    seconds: float = 3.0
    repeats: int = 5
    plain: bool = True
    smoke: bool = False
    json: Path | None = None


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures every network and setting and prints a row each."""
    config = tyro.cli(Config, description=__doc__, args=arguments)
    if config.smoke:
        config = replace(config, models=("lenet",), lanes=((2, 1),), seconds=0.05, repeats=1)
    rows = []
    for name in config.models:
        for num_restarts, num_targets in config.lanes:
            rows.append(measure(config, name, num_restarts, num_targets))
            print(f"done: {name}, {num_restarts} restarts, {num_targets} targets", flush=True)
    harness.publish("Attack throughput", rows, json_file=config.json)


def measure(config: Config, name: str, num_restarts: int, num_targets: int) -> dict:
    """Times one network with one number of restarts and targets."""
    lanes = num_restarts * num_targets
    fast = Program(name, num_restarts, num_targets, conv_general_dilated=None)
    programs = [fast]
    if config.plain:
        programs.append(Program(name, num_restarts, num_targets, conv_general_dilated=jax.lax.conv_general_dilated))
    steps = [program.steps_in(config.seconds) for program in programs]
    seconds: list[list[float]] = [[] for _ in programs]
    peaks = []
    for repeat in range(config.repeats):
        peaks.append(gemm_peak(size=512 if config.smoke else 2048))
        for program, num_steps, found in zip(programs, steps, seconds):
            if num_steps > 0 or repeat == 0:  # one step alone exceeds the budget: once is enough
                found.append(program.seconds_per_step(num_steps))
    rates = [lanes / statistics.median(found) for found in seconds]
    lone = [program.lone_step(config.seconds) for program in programs]
    flops = lone[-1][1]
    return {
        "model": name,
        "restarts": num_restarts,
        "targets": num_targets,
        "steps_per_second": rates[0],
        "slowest": lanes / max(seconds[0]),
        "fastest": lanes / min(seconds[0]),
        "plain_steps_per_second": rates[1] if config.plain else None,
        "ratio": rates[0] / rates[1] if config.plain else None,
        "ratio_outside_loop": lone[1][0] / lone[0][0] if config.plain else None,
        "gflop_per_step": flops / 1e9 if config.plain else None,
        "gemm_gflop_per_second": statistics.median(peaks) / 1e9,
        "gemm_share": statistics.median(lanes * flops / (s * peak) for s, peak in zip(seconds[0], peaks))
        if config.plain
        else None,
        "seconds_compile": fast.seconds_compile,
        "plain_seconds_compile": programs[-1].seconds_compile if config.plain else None,
        "peak_mib": fast.peak_bytes() / 2**20,
    }


class Program:
    """The attack on one network, compiled and ready to be timed.

    Args:
      name: of the network.
      num_restarts: of the attack.
      num_targets: clients with one photograph each.
      conv_general_dilated: instead of jaxinvert's convolutions.
      size: side of the photographs in pixels; by default their own.
    """

    def __init__(
        self,
        name: str,
        num_restarts: int,
        num_targets: int,
        *,
        conv_general_dilated: Callable | None = None,
        size: int | None = None,
    ) -> None:
        split = "test" if num_targets <= 10 else "train"  # the test set has ten
        victims = data.load("photos", split=f"{split}[:{num_targets}]", size=size)
        model = models.create(name, mean=victims.mean, std=victims.std, conv_general_dilated=conv_general_dilated)
        self.client_update: ClientUpdateFn = fedsgd(model.loss)
        params = jax.jit(model.init)(jax.random.key(0))
        batches = Batch(jnp.asarray(victims.images)[:, None], jnp.asarray(victims.labels)[:, None])
        self.observations: Observation = jax.jit(partial(observe_targets, self.client_update))(params, batches)
        problem = Problem(self.client_update, model, num_examples=1)
        self.make_attack = lambda settings: inverting_gradients(problem, **settings)
        self.search = Stepwise(self.make_attack, num_restarts=num_restarts)
        self.seconds_per_step(0)
        self.seconds_compile = self.search.seconds_compile

    def seconds_per_step(self, num_steps: int) -> float:
        """Wall time per attack step of all lanes together; a run evaluates `num_steps + 1` iterates."""
        *_, last = self.search(jax.random.key(1), self.observations, {}, num_steps=num_steps, report_every=10**9)
        return last.seconds / (num_steps + 1)

    def steps_in(self, seconds: float) -> int:
        """About how many steps take that long; 0 if a single one takes longer."""
        first = self.seconds_per_step(0)
        return 0 if first > seconds else int(seconds / self.seconds_per_step(1 + int(seconds / first / 10)))

    def lone_step(self, seconds: float) -> tuple[float, float]:
        """One step of one lane as a program of its own: its median wall time, and its floating-point operations.

        The operations are XLA's own count.
        """
        shared, per_target = split_shared(self.observations)
        observation = jax.tree.map(lambda leaf: leaf[0], per_target)._replace(**shared)
        attack, key = self.make_attack({}), jax.random.key(0)
        state = jax.jit(attack.init)(key, observation)
        step = jax.jit(attack.step).lower(key, state, observation).compile()
        found: list[float] = []
        while len(found) < 3 or sum(found) < seconds:
            begin = time.perf_counter()
            jax.block_until_ready(step(key, state, observation))
            found.append(time.perf_counter() - begin)
        return statistics.median(found), float((step.cost_analysis() or {})["flops"])

    def peak_bytes(self) -> int:
        """Memory of the compiled program at its peak, arguments and results included, by XLA's own analysis."""
        return self.search.peak_bytes(jax.random.key(1), self.observations, {})


def gemm_peak(*, size: int, repeats: int = 5) -> float:
    """Best rate of a square float32 matrix multiplication, by NumPy or JAX: floating-point operations per second."""
    host = np.random.default_rng(0).random((size, size), np.float32)
    device = jnp.asarray(host)
    multiply = jax.jit(lambda a: jnp.matmul(a, a))
    candidates = [lambda: host @ host, lambda: multiply(device).block_until_ready()]
    best = float("inf")
    for candidate in candidates:
        candidate()
        for _ in range(repeats):
            begin = time.perf_counter()
            candidate()
            best = min(best, time.perf_counter() - begin)
    return 2 * size**3 / best


if __name__ == "__main__":
    main()
