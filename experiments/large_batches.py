"""Batches of 16 to 128 images by optimization: our attacks beside Inverting Gradients at equal processor time.

Setting: one FedSGD client for each row with an untrained network, images of 16 pixels (two cores demand it), drawn
without replacement, so that labels repeat. Every attack has `seconds_per_image` of processor time for each image of
the batch, its start included; a trial of a few steps tells how many steps these are, and its schedule is laid out for
them. Compilation counts for none. `spectral` starts from its guess, which tells classes apart but not images of one
class; `spectral, gray noise` and `whitened, gray noise` do without; `spectral, restored labels` is told no labels and
counts the classes by the rule `moments`. Images are matched one-to-one; `identified` is the share that picks out its
image among all of the data set (`audit.identified`). `image_steps_per_second` of processor time is flat if large
batches cost no more for each image than small ones.

Command:  python -m experiments.large_batches --data FILE.npz --json FILE.json
Smoke:    python -m experiments.large_batches --smoke
Measured: see experiments/details/large-batches.md
"""

import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from experiments import harness
from jaxinvert import data, labels, metrics, models
from jaxinvert.attacks import Problem, inverting_gradients, spectral, whitened
from jaxinvert.attacks.initial_guess import gray_noise
from jaxinvert.audit import identified
from jaxinvert.clients import fedsgd
from jaxinvert.models import Model
from jaxinvert.observation.observe import observe_targets
from jaxinvert.search import Stepwise
from jaxinvert.types import Attack, Batch, Observation

TITLE = "Large batches by optimization"
RESTORED, WHITENED = "spectral, restored labels", "whitened, gray noise"
KEYS = ("network", "attack", "batch_size", "seconds_per_image", "size", "data", "seed")
"""What tells rows apart."""
TV = {"small-convnet": 1e-3}
"""Inverting Gradients' weight of the total variation; 1e-4 for other networks."""
_TRIAL_STEPS = 3


@dataclass(frozen=True)
class Config:
    """Setting of the experiment.

    Attributes:
      data: data set by name, folder or npz.
      size: side of the images in pixels.
      networks: each with the processor time for each image of a batch, in seconds.
      batch_sizes: of the clients.
      attacks: by name, see `attack_of`.
      chunk: examples whose gradient is computed at once; 0 for all of them.
      seed: of networks, images and starts.
      smoke: a run of seconds on the embedded photos that only shows that everything works.
      json: file for the rows; those that it holds are not run again.
    """

    data: str = "photos"
    size: int = 16
    networks: tuple[tuple[str, float], ...] = (("small-convnet", 0.8), ("convnet16", 1.0))
    batch_sizes: tuple[int, ...] = (16, 32, 64, 128)
    attacks: tuple[str, ...] = ("inverting-gradients", "spectral, gray noise", WHITENED, "spectral", RESTORED)
    chunk: int = 0
    seed: int = 0
    smoke: bool = False
    json: Path | None = None


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the rows that are missing, saving each, and prints all."""
    config = tyro.cli(Config, description=__doc__, args=arguments)
    if config.smoke:
        config = replace(config, data="photos", size=8, networks=(("mlp-16", 0.02),), batch_sizes=(2,))
    dataset = data.load(config.data, split="test", size=config.size)
    rows = harness.kept_rows(config.json)
    done = {tuple(row[key] for key in KEYS) for row in rows}
    for (network, seconds_per_image), batch_size, attack in itertools.product(
        config.networks, config.batch_sizes, config.attacks
    ):
        setting = (network, attack, batch_size, seconds_per_image, config.size, Path(config.data).stem, config.seed)
        if setting in done:
            continue
        found = measured(config, dataset, network, attack, batch_size, seconds_per_image)
        rows.append({**dict(zip(KEYS, setting)), **found})
        print(f"{network}, B = {batch_size}, {attack}: {rows[-1]['mean_psnr_db']:.1f} dB", flush=True)
        if config.json is not None:
            harness.save(config.json, TITLE, rows)
    harness.publish(TITLE, rows, json_file=config.json)


def measured(
    config: Config, dataset: data.Dataset, network: str, attack: str, batch_size: int, seconds_per_image: float
) -> dict[str, Any]:
    """One attack on one batch."""
    model = models.create(network, like=dataset)
    rng = np.random.default_rng((config.seed, batch_size))
    chosen = np.sort(rng.choice(len(dataset.images), batch_size, replace=False))
    chosen = chosen[np.argsort(dataset.labels[chosen], kind="stable")]  # restored labels are ascending
    params = jax.jit(model.init)(jax.random.key(rng.integers(2**31)))
    batch = Batch(jnp.asarray(dataset.images[chosen]), jnp.asarray(dataset.labels[chosen]))
    client = jax.jit(fedsgd(model.loss, chunk_size=config.chunk or None))
    observations = observe_targets(client, params, jax.tree.map(lambda leaf: leaf[None], batch))
    if attack == RESTORED:
        observations = with_restored_labels(model, observations, batch_size)
    problem = Problem(client, model, batch_size)
    search = Stepwise(attack_of(attack, problem, network))
    found, steps, seconds, step_seconds = searched(search, observations, seconds_per_image * batch_size)
    assert observations.labels is not None
    psnr = metrics.evaluate(found, dataset.images[chosen]).psnr_db
    return {
        "labels_right": float(np.mean(np.asarray(observations.labels[0]) == dataset.labels[chosen])),
        "mean_psnr_db": float(np.mean(psnr)),
        "above_20_db": float(np.mean(psnr > 20)),
        "identified": float(np.mean(identified(found, dataset.images, chosen))),
        "chance": batch_size / len(dataset.images),
        "steps": steps,
        "processor_seconds": seconds,
        "image_steps_per_second": batch_size / step_seconds,
        "device": harness.device_name(),
        "jax": jax.__version__,
    }


def attack_of(name: str, problem: Problem, network: str) -> Callable[[dict], Attack]:
    """An attack of the comparison as a function of its settings.

    Raises:
      ValueError: for an unknown name.
    """
    if name == "inverting-gradients":
        return lambda settings: inverting_gradients(problem, tv=TV.get(network, 1e-4), **settings)
    if name == WHITENED:
        return lambda settings: whitened(problem, guess=gray_noise, **settings)
    if name == "spectral, gray noise":
        return lambda settings: spectral(problem, guess=gray_noise, **settings)
    if name in ("spectral", RESTORED):
        return lambda settings: spectral(problem, **settings)
    raise ValueError(f"no attack {name!r} in this comparison; there are {Config.attacks}")


def with_restored_labels(model: Model, observations: Observation, batch_size: int) -> Observation:
    """The observation of one client with labels counted off its update, ascending, in place of the true ones."""
    problem = labels.LabelProblem(model.apply, model.head, model.input_shape, jax.random.key(0), model.calibration)
    rule = labels.rule_for("moments", problem)
    one = observations._replace(update=jax.tree.map(lambda leaf: leaf[0], observations.update), labels=None)
    restored = labels.labels_from_counts(jax.jit(rule)(one), num_examples=batch_size)
    return observations._replace(labels=restored[None])


def searched(search: Stepwise, observations: Observation, seconds: float) -> tuple[np.ndarray, int, float, float]:
    """Runs an attack for about so many seconds of processor time.

    Returns:
      The images `[B, H, W, C]`, the number of steps, and processor seconds of the whole run and of one step.
    """
    key = jax.random.key(1)

    def run(num_steps: int) -> tuple[np.ndarray, float, float]:
        """The images, and processor seconds of the whole run and of a step."""
        times, clock, images = [], [], np.zeros(0)
        for progress in search(key, observations, {"horizon": float(num_steps)}, num_steps=num_steps, report_every=1):
            times.append(time.process_time())
            clock.append(time.perf_counter())
            if progress.step == num_steps:
                images = np.asarray(progress.reconstruct().inputs[0])
        per_step = (times[-1] - times[0]) / num_steps  # the last report evaluates once more
        # The start is timed by the clock: as much of it is processor time as of the steps.
        start = search.seconds_start * (times[-1] - times[0]) / (clock[-1] - clock[0])
        return images, start + per_step * (num_steps + 1), per_step

    _, spent, per_step = run(_TRIAL_STEPS)
    num_steps = max(_TRIAL_STEPS, int((seconds - spent) / per_step) + _TRIAL_STEPS)
    images, spent, per_step = run(num_steps)
    return images, num_steps, spent, per_step


if __name__ == "__main__":
    main()
