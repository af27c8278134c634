"""Cocktail party on features beside gradient matching at equal time: batches behind convolutions and a wide layer.

Setting: FedSGD clients with an untrained `wide-convnet`, no defense; every batch has its own network and its own
images, drawn without replacement. The cocktail party knows nothing but the batch size. Inverting Gradients and
spectral matching know the labels, too; after a trial of a few steps that tells their speed, their schedules are laid
out for `times` as long as the cocktail party took on the same batch, its unmixing included. Compilation counts for
none. `random update` is the cocktail party on normal noise in place of the update. Images are matched one-to-one.

Command:  python -m experiments.cocktail_party_features --data FILE.npz --json FILE.json
Smoke:    python -m experiments.cocktail_party_features --smoke
Measured: see experiments/details/exact-batches.md
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from experiments import harness
from experiments.cocktail_party import Outcome, psnr_db, search_for, statistics
from jaxinvert import data, models
from jaxinvert.attacks import Problem, cocktail_party_features, inverting_gradients, objectives, spectral
from jaxinvert.attacks.initial_guess import gray_noise
from jaxinvert.audit import controls
from jaxinvert.clients import fedsgd
from jaxinvert.observation.observe import observe_targets
from jaxinvert.search import Stepwise
from jaxinvert.types import Batch, Key, Observation


@dataclass(frozen=True)
class Config:
    """Setting of the experiment.

    Attributes:
      data: data set by name, folder or npz.
      units: of the wide layer.
      batch_sizes: of the clients.
      batches: of each size.
      steps: of the cocktail party's search.
      times: how often its time the others get, each tried on its own.
      seed: of networks, images and starts.
      smoke: a run of seconds on the embedded photos that only shows that everything works.
      json: file for the rows, written after each batch size.
    """

    data: str = "photos"
    units: int = 512
    batch_sizes: tuple[int, ...] = (8, 16, 32)
    batches: int = 3
    steps: int = 300
    times: tuple[float, ...] = (1.0, 4.0)
    seed: int = 0
    smoke: bool = False
    json: Path | None = None


def main(arguments: Sequence[str] | None = None) -> None:
    """Attacks the batches of every size in all ways and prints the table."""
    config = tyro.cli(Config, description=__doc__, args=arguments)
    if config.smoke:
        config = replace(config, data="photos", units=16, batch_sizes=(2,), batches=1, steps=3, times=(1.0,))
    dataset = data.load(config.data, split="test", size=12 if config.smoke else None)
    rows = []
    for batch_size in config.batch_sizes:
        rows += measure(config, dataset, batch_size)
        title = f"Batches behind {config.units} units on features, {Path(config.data).stem}"
        harness.publish(title, rows, json_file=config.json)


def measure(config: Config, dataset: data.Dataset, batch_size: int) -> list[dict]:
    """The rows of one batch size."""
    model = models.create("wide-convnet", units=config.units, like=dataset)
    client = jax.jit(fedsgd(model.loss))
    problem = Problem(client, model, batch_size, objective=objectives.cosine)
    unmix = Stepwise(lambda settings: cocktail_party_features(problem, **settings))
    rivals = {
        "inverting-gradients": Stepwise(lambda settings: inverting_gradients(problem, **settings)),
        # Its descent over whole updates, from gray noise.
        "spectral": Stepwise(lambda settings: spectral(problem, guess=gray_noise, **settings)),
    }
    outcomes: dict[tuple[str, float], list[Outcome]] = {}
    for number in range(config.batches):
        rng = np.random.default_rng((config.seed, batch_size, number))
        chosen = rng.choice(len(dataset.images), batch_size, replace=False)
        truth = dataset.images[chosen]
        model_key, attack_key, noise_key = jax.random.split(jax.random.key(rng.integers(2**31)), 3)
        batches = Batch(jnp.asarray(truth)[None], jnp.asarray(dataset.labels[chosen])[None])
        observations = observe_targets(client, jax.jit(model.init)(model_key), batches)
        found = unmixed(config, unmix, attack_key, observations, truth, compiled=number > 0)
        noise = controls.random_update(noise_key, observations)
        outcomes.setdefault(("cocktail-party-features", 1.0), []).append(found)
        outcomes.setdefault(("random update", 1.0), []).append(unmixed(config, unmix, attack_key, noise, truth))
        for name, search in rivals.items():
            for times in config.times:
                outcome = search_for(times * found.seconds, search, attack_key, observations, truth, {})
                outcomes.setdefault((name, times), []).append(outcome)
    facts = {"units": config.units, "batch_size": batch_size, "batches": config.batches}
    return [
        {"attack": name, **facts, "times": times, **statistics(all_of)} for (name, times), all_of in outcomes.items()
    ]


def unmixed(
    config: Config,
    search: Stepwise,
    key: Key,
    observations: Observation,
    truth: np.ndarray,
    *,
    compiled: bool = True,
) -> Outcome:
    """The cocktail party on one batch, without the time of compilation."""

    def run() -> np.ndarray:
        settings = {"horizon": float(config.steps)}
        *_, progress = search(
            key, observations._replace(labels=None), settings, num_steps=config.steps, report_every=config.steps
        )
        return np.asarray(progress.reconstruct().inputs[0])

    if not compiled:
        run()
    begin = time.perf_counter()
    found = run()
    return Outcome(psnr_db(found, truth), time.perf_counter() - begin, config.steps)


if __name__ == "__main__":
    main()
