"""The first guess alone: what a regression on what the head read finds, by the number of known pictures, no descent.

Setting: untrained networks, labels known, one or four images of a client, `test[0:...]` as in `experiments.spectral`.
`null` is the same regression at normal noise in place of the update, tensor by tensor of its norm. `seconds` are of
all clients together, which share the known pictures, compilation apart.

Command:  python -m experiments.first_guess --data FILE.npz --json FILE.json
Smoke:    python -m experiments.first_guess --smoke
Expected: more with more pictures; behind the ConvNet about what the published attack finds in a thousand steps.
Measured: see docs/spectral.md
"""

import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from experiments import harness
from jaxinvert import jobs, metrics, search
from jaxinvert.attacks.initial_guess import regressed
from jaxinvert.audit import controls
from jaxinvert.audit.evidence import excess
from jaxinvert.types import Array, Key, Observation, Reconstruction

TITLE = "The first guess alone"


@dataclass(frozen=True)
class Config:
    """What is guessed.

    Attributes:
      data: data set by name, folder or npz.
      models: networks, untrained.
      pictures: that the attacker draws.
      targets: clients.
      num_examples: of a client.
      seed: of networks and noise.
      smoke: a run of seconds on the embedded photos that only shows that everything works.
      json: file for the rows; those that it holds are not run again.
    """

    data: str = "cifar10"
    models: tuple[str, ...] = ("lenet", "small-convnet", "convnet16", "resnet20-4")
    pictures: tuple[int, ...] = (64, 256, 1024)
    targets: int = 4
    num_examples: tuple[int, ...] = (1, 4)
    seed: int = 0
    smoke: bool = False
    json: Path | None = None


def main(arguments: Sequence[str] | None = None) -> None:
    """Guesses, saving each row, and prints all."""
    config = tyro.cli(Config, description=__doc__, args=arguments)
    if config.smoke:
        config = replace(config, data="photos", models=("mlp-32",), pictures=(8,), targets=2)
    rows = harness.kept_rows(config.json)
    for model, size, count in itertools.product(config.models, config.num_examples, config.pictures):
        if (model, size, count) not in {(row["model"], row["images"], row["pictures"]) for row in rows}:
            rows.append(measured(config, model, size, count))
            if config.json is not None:
                harness.save(config.json, TITLE, rows)
    harness.publish(TITLE, rows)


def measured(config: Config, model: str, num_examples: int, num_pictures: int) -> dict[str, Any]:
    """One network's guesses, and those at noise."""
    settings = jobs.JobConfig.of(
        data=config.data, model=model, targets=config.targets, num_examples=num_examples, seed=config.seed
    )
    task = jobs.prepare(settings)
    truth = np.asarray(task.truth.inputs)
    guess = regressed(task.program.problem, num_pictures=num_pictures)

    def solve(key: Key, observation: Observation) -> Reconstruction:
        return Reconstruction(guess(observation), observation.labels, jnp.zeros(()), {})

    guess_all = jax.jit(search.over_targets(solve))
    key = jax.random.key(config.seed + 1)
    noise = controls.random_update(jax.random.key(config.seed + 2), task.observations)
    null = psnr(guess_all(key, noise).inputs, truth)
    started = time.perf_counter()
    found = psnr(guess_all(key, task.observations).inputs, truth)
    gain = excess(found, null)
    return {
        "model": model,
        "images": num_examples,
        "pictures": num_pictures,
        "clients": config.targets,
        "mean_psnr_db": float(found.mean()),
        "null_db": float(null.mean()),
        "gain_db": gain.mean,
        "gain_low_db": gain.low,
        "gain_high_db": gain.high,
        "seconds": time.perf_counter() - started,
    }


def psnr(found: Array, truth: np.ndarray) -> np.ndarray:
    """`[T]` in dB, the mean over a client's images, each with its own: the labels are known."""
    return np.asarray(jax.vmap(jax.vmap(metrics.psnr))(found, truth)).mean(axis=1)


if __name__ == "__main__":
    main()
