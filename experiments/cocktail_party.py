"""Cocktail party beside Inverting Gradients at equal time: batches of 64 behind a wide dense layer.

Setting: FedSGD clients with an untrained perceptron of one hidden layer, no defense; every batch has its own network
and its own images, drawn without replacement. The cocktail party knows nothing but the batch size. Inverting
Gradients knows the labels, too; after a trial of a few steps that tells its speed, its schedule is laid out for as
long as the cocktail party took on the same batch. Compilation counts for neither. Images are matched one-to-one;
`above_20_db` is the share of all images.

Command:  python -m experiments.cocktail_party --data FILE.npz --json experiments/results/cocktail_party.json
Smoke:    python -m experiments.cocktail_party --smoke
Measured: see experiments/details/exact-batches.md
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from experiments import harness
from jaxinvert import data, metrics, models
from jaxinvert.attacks import Problem, cocktail_party, inverting_gradients
from jaxinvert.clients import fedsgd
from jaxinvert.observation.observe import observe_targets
from jaxinvert.search import Stepwise
from jaxinvert.types import Batch, Key, Observation


@dataclass(frozen=True)
class Config:
    """Setting of the experiment.

    Attributes:
      data: data set by name, folder or npz.
      widths: of the hidden layer.
      batch_size: of every client.
      batches: of each width.
      tv: weights of Inverting Gradients' total variation, each tried on its own.
      seed: of networks, images and starts.
      smoke: a run of seconds on the embedded photos that only shows that everything works.
      json: file for the rows, written after each width.
    """

    data: str = "photos"
    widths: tuple[int, ...] = (512, 1024)
    batch_size: int = 64
    batches: int = 5
    tv: tuple[float, ...] = (1e-2, 1e-4)
    seed: int = 0
    smoke: bool = False
    json: Path | None = None


class Outcome(NamedTuple):
    """One attack on one batch: `[B]` PSNR in dB, wall time, and steps of a search."""

    psnr_db: np.ndarray
    seconds: float
    steps: int = 0


def main(arguments: Sequence[str] | None = None) -> None:
    """Attacks the batches of every width both ways and prints the table."""
    config = tyro.cli(Config, description=__doc__, args=arguments)
    if config.smoke:
        config = replace(config, data="photos", widths=(16,), batch_size=3, batches=1, tv=(1e-2,))
    dataset = data.load(config.data, split="test")
    rows = []
    for width in config.widths:
        rows += measure(config, dataset, width)
        title = f"Batches of {config.batch_size} at equal time, {Path(config.data).stem}"
        harness.publish(title, rows, json_file=config.json)


def measure(config: Config, dataset: data.Dataset, width: int) -> list[dict]:
    """The rows of one width."""
    model = models.create("mlp", features=(width,), like=dataset)
    client = jax.jit(fedsgd(model.loss))
    problem = Problem(client, model, config.batch_size)
    unmix = jax.jit(cocktail_party(problem))
    search = Stepwise(lambda settings: inverting_gradients(problem, **settings))
    outcomes: dict[tuple[str, float | None], list[Outcome]] = {}
    for number in range(config.batches):
        rng = np.random.default_rng((config.seed, width, number))
        chosen = rng.choice(len(dataset.images), config.batch_size, replace=False)
        truth = dataset.images[chosen]
        model_key, attack_key = jax.random.split(jax.random.key(rng.integers(2**31)))
        batches = Batch(jnp.asarray(truth)[None], jnp.asarray(dataset.labels[chosen])[None])
        observations = observe_targets(client, jax.jit(model.init)(model_key), batches)
        one = observations._replace(update=jax.tree.map(lambda leaf: leaf[0], observations.update), labels=None)
        if number == 0:
            jax.block_until_ready(unmix(attack_key, one))  # compiles
        begin = time.perf_counter()
        found = jax.block_until_ready(unmix(attack_key, one))
        seconds = time.perf_counter() - begin
        outcomes.setdefault(("cocktail-party", None), []).append(
            Outcome(psnr_db(np.asarray(found.inputs), truth), seconds)
        )
        for tv in config.tv:
            settings = {"tv": tv, "learning_rate": 0.1}
            outcome = search_for(seconds, search, attack_key, observations, truth, settings)
            outcomes.setdefault(("inverting-gradients", tv), []).append(outcome)
    return [
        {
            "attack": attack,
            "width": width,
            "batch_size": config.batch_size,
            "batches": config.batches,
            "tv": tv,
            **statistics(found),
        }
        for (attack, tv), found in outcomes.items()
    ]


def search_for(
    seconds: float,
    search: Stepwise,
    key: Key,
    observations: Observation,
    truth: np.ndarray,
    settings: dict[str, float],
) -> Outcome:
    """An iterative attack on one batch, with as many steps as fit into a time, for which its schedule is laid out."""

    def run(num_steps: int) -> tuple[float, np.ndarray]:
        laid_out = {**settings, "horizon": float(num_steps)}
        *_, progress = search(key, observations, laid_out, num_steps=num_steps, report_every=num_steps)
        return progress.seconds, np.asarray(progress.reconstruct().inputs[0])

    trial_steps = 20
    num_steps = max(1, int(seconds * trial_steps / run(trial_steps)[0]))
    taken, found = run(num_steps)
    return Outcome(psnr_db(found, truth), taken, num_steps)


def statistics(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Over all images of some batches."""
    psnr = np.concatenate([outcome.psnr_db for outcome in outcomes])
    return {
        "mean_psnr_db": float(np.mean(psnr)),
        "above_20_db": float(np.mean(psnr > 20)),
        "worst_db": float(np.min(psnr)),
        "median_seconds": float(np.median([outcome.seconds for outcome in outcomes])),
        "median_steps": int(np.median([outcome.steps for outcome in outcomes])) if outcomes[0].steps else None,
    }


def psnr_db(found: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """`[B]`, of images matched one-to-one."""
    return metrics.evaluate(found, truth).psnr_db


if __name__ == "__main__":
    main()
