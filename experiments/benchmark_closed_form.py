"""The dense layer's closed form on many clients at once: clients per second, against a Python loop over them.

Setting: one example per client, a perceptron with one hidden layer. `vectorized` reads the inputs of all clients in
one compiled call, `looped` calls the same compiled function for one client after the other, and `attack` is the whole
registered attack, which also reads every update to say how much of it its answer explains; its largest loss says that
it is all but rounding. The largest error is that of the vectorized images. `gib` is the memory of all updates.

Command:  python -m experiments.benchmark_closed_form --json experiments/results/benchmark_closed_form.json
Smoke:    python -m experiments.benchmark_closed_form --smoke
"""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import jax
import numpy as np
import tyro

from experiments import harness
from jaxinvert import models, search
from jaxinvert.attacks import Problem, registry
from jaxinvert.attacks.closed_form.dense import single_input
from jaxinvert.clients import fedsgd
from jaxinvert.observation.observe import observe_targets
from jaxinvert.types import Batch, SolveFn


@dataclass(frozen=True)
class Config:
    """What to measure.

    Attributes:
      clients: whose updates are held at once.
      widths: of the hidden layer.
      repeats: of every timing; medians are reported.
      smoke: a run of seconds with tiny settings that only shows that everything works.
      json: file for the rows.
    """

    clients: int = 256
    widths: tuple[int, ...] = (64, 256, 1024)
    repeats: int = 9
    smoke: bool = False
    json: Path | None = None


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures every width and prints a row each."""
    config = tyro.cli(Config, description=__doc__, args=arguments)
    if config.smoke:
        config = replace(config, clients=4, widths=(16,), repeats=1)
    rows = [measure(config, width) for width in config.widths]
    harness.publish("Closed form of the dense layer, one example per client", rows, json_file=config.json)


def measure(config: Config, width: int) -> dict:
    """Times one width."""
    model = models.create("mlp", features=(width,))
    keys = jax.random.split(jax.random.key(0), 3)
    images = jax.random.uniform(keys[0], (config.clients, 1, 32, 32, 3))
    batches = Batch(images, jax.random.randint(keys[1], (config.clients, 1), 0, 10))
    client = jax.jit(fedsgd(model.loss))
    observations = observe_targets(client, jax.jit(model.init)(keys[2]), batches)
    layer = jax.tree.map(jax.block_until_ready, observations.update["params"]["dense_0"])
    kernels, biases = layer["kernel"], layer["bias"]
    vectorized, one = jax.jit(jax.vmap(single_input)), jax.jit(single_input)
    apart = list(zip(kernels, biases))
    solve = cast(SolveFn, registry.REGISTRY["dense-layer"].build(Problem(client, model, num_examples=1)))
    attack = jax.jit(search.over_targets(solve))  # as a job runs it
    found, _ = vectorized(kernels, biases)
    at_once = _seconds(config, lambda: vectorized(kernels, biases))
    in_turn = _seconds(config, lambda: [one(*client) for client in apart])
    whole = _seconds(config, lambda: attack(keys[0], observations))
    explained = attack(keys[0], observations)
    return {
        "width": width,
        "clients": config.clients,
        "gib": kernels.nbytes / 2**30,
        "vectorized_per_second": config.clients / at_once,
        "looped_per_second": config.clients / in_turn,
        "ratio": in_turn / at_once,
        "attack_per_second": config.clients / whole,
        "largest_loss": float(np.max(explained.attack_loss)),
        "largest_error": float(np.max(np.abs(found - images.reshape(found.shape)))),
    }


def _seconds(config: Config, call: Callable[[], Any]) -> float:
    """Median wall time of a call, compiled before."""
    jax.block_until_ready(call())
    taken = []
    for _ in range(config.repeats):
        begin = time.perf_counter()
        jax.block_until_ready(call())
        taken.append(time.perf_counter() - begin)
    return statistics.median(taken)


if __name__ == "__main__":
    main()
