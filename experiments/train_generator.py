"""Trains a generator for GIAS on images the attacker may have: a pyramid by maximum likelihood, others as GANs.

Setting: Adam with cosine decay, an exponential moving average of the weights. A pyramid sees mirrored and shifted
images with rounding noise; a StyleGAN2 or DCGAN (`--network style`, `--network convolutional`) plays against the
discriminator of `experiments.adversarial`. `OUT/generator.safetensors` is what `jaxinvert invert --attack gias
--generator` takes, `OUT/samples.png` shows samples after every epoch. Started again with the same setting, an
interrupted run goes on where it was.

`test_nats` is minus the log likelihood of the test images per number, without its constant. `frechet` is like FID,
but of statistics that need no trained network (see `frechet_distance`), between as many samples as test images and
these; it compares generators trained here, and says nothing beside published FIDs. `train_frechet` is that of
training images, the best that a generator could reach.

Command:  python -m experiments.train_generator --data FILE.npz --out runs/generators/cifar10 --json FILE.json
          python -m experiments.train_generator --data FILE.npz --network style --batch-size 32 \
              --out runs/generators/cifar10-style --json FILE.json
Shipped:  python -m experiments.train_generator --split public --epochs 300 --batch-size 48 \
              --out runs/generators/photos
Smoke:    python -m experiments.train_generator --smoke
Measured: see experiments/details/generative-priors.md
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import optax
import scipy.linalg
import tyro
from jax.typing import ArrayLike
from rich.progress import track

from experiments import adversarial, harness
from experiments.train import mirrored_and_shifted
from jaxinvert import data, models
from jaxinvert.priors import generators
from jaxinvert.types import Array, ArrayTree, Key, Params

matplotlib.use("Agg")
AVERAGING = 0.995
LARGEST_GRADIENT = 1.0
FEWEST_FOR_COVARIANCE = 400
DISCRIMINATOR_WIDTH = 16


@dataclass(frozen=True)
class Config:
    """Setting of the training.

    Attributes:
      data: data set by name, folder or npz.
      split: what to train on.
      test_split: what to measure on.
      size: side of the images in pixels; by default the data set's own.
      network: the generator, by name.
      width: channels of its hidden layers, as its factory takes it; by default the factory's own.
      epochs: passes over the split.
      batch_size: images per step; a last incomplete batch is left out.
      learning_rate: at the start, of both players where there are two.
      seed: of the parameters, the order and the augmentation.
      out: folder for the generator.
      smoke: a run of seconds on the embedded photos that only shows that everything works.
      json: file for the rows, one for each epoch that is a power of two, and the last.
    """

    data: str = "photos"
    split: str = "train"
    test_split: str = "test"
    size: int | None = None
    network: Literal["pyramid", "style", "convolutional"] = "pyramid"
    width: int | None = None
    epochs: int = 20
    batch_size: int = 64
    learning_rate: float = 2e-3
    seed: int = 0
    out: Path = Path("runs/generators/photos")
    smoke: bool = False
    json: Path | None = None


class Progress(NamedTuple):
    """A training by likelihood between two steps."""

    params: Params
    average: Params
    opt_state: ArrayTree


class Learner(NamedTuple):
    """How a network is trained.

    Attributes:
      start: what is kept between steps, and in files between epochs.
      step: `(key, progress, images) -> (progress, losses by name)`.
      prior: `progress -> prior`, the generator that it has come to.
      measure: `(prior, test images) -> figures by name`.
    """

    start: ArrayTree
    step: Callable[[Key, Any, Array], tuple[Any, dict[str, Array]]]
    prior: Callable[[Any], generators.Prior]
    measure: Callable[[generators.Prior, np.ndarray], dict[str, float]]


def main(arguments: Sequence[str] | None = None) -> None:
    """Trains, or goes on training, and prints how good the generator was on the way."""
    config = tyro.cli(Config, description=__doc__, args=arguments)
    if config.smoke:
        out = config.out if config.json is None else config.json.parent / "generator"
        config = replace(config, data="photos", size=8, width=4, epochs=1, batch_size=32, out=out, split="test")
    rows = train(config)
    harness.publish(
        f"{config.network.capitalize()} generator of {Path(config.data).stem}", rows, json_file=config.json
    )


def train(config: Config) -> list[dict]:
    """Runs the epochs that are still missing; a row for some epochs, those of earlier runs included."""
    training = data.load(config.data, split=config.split, size=config.size)
    testing = data.load(config.data, split=config.test_split, size=config.size)
    options = {} if config.width is None else {"width": config.width}
    key = jax.random.key(config.seed)
    batch_size = min(config.batch_size, len(training.images))
    steps_per_epoch = len(training.images) // batch_size
    schedule = optax.cosine_decay_schedule(config.learning_rate, steps_per_epoch * config.epochs)
    make = by_likelihood if config.network == "pyramid" else partial(against_discriminator, config.network)
    learner = make(jax.random.fold_in(key, 0), training.images, schedule, options)
    step = jax.jit(learner.step)

    progress, rows, begin = learner.start, [], 1
    state_file = config.out / "state.safetensors"
    setting = {name: value for name, value in asdict(config).items() if name not in ("out", "json", "smoke")}
    if state_file.exists():
        facts = models.read_facts(state_file)
        if facts["setting"] != setting:
            raise SystemExit(
                f"{config.out} holds a run with another setting, {facts['setting']}; choose another --out"
            )
        progress, rows, begin = models.load_checkpoint(state_file, progress), facts["rows"], facts["epoch"] + 1

    for epoch in range(begin, config.epochs + 1):
        started, losses = time.perf_counter(), []
        order = np.random.default_rng((config.seed, epoch)).permutation(len(training.images))
        batches = order[: steps_per_epoch * batch_size].reshape(steps_per_epoch, batch_size)
        epoch_key = jax.random.fold_in(key, epoch)
        for chosen in track(batches, f"epoch {epoch}/{config.epochs}", transient=True):
            progress, loss = step(
                jax.random.fold_in(epoch_key, len(losses)), progress, jnp.asarray(training.images[chosen])
            )
            losses.append(loss)
        prior = learner.prior(progress)
        samples = draw(jax.random.fold_in(epoch_key, steps_per_epoch), prior, len(testing.images))
        save_grid(config.out / "samples.png", samples[:64])
        if epoch == config.epochs or epoch & (epoch - 1) == 0:
            rows.append(
                {
                    "epoch": epoch,
                    **{name: float(np.mean([loss[name] for loss in losses])) for name in losses[0]},
                    **learner.measure(prior, testing.images),
                    **frechet_distances(samples, training.images, testing.images),
                    "seconds_per_epoch": time.perf_counter() - started,
                }
            )
        generators.save_prior(
            config.out / "generator.safetensors",
            prior,
            options=options,
            facts={"data": Path(config.data).stem, "split": config.split, "epochs": epoch},
        )
        models.save_checkpoint(state_file, progress, {"setting": setting, "rows": rows, "epoch": epoch})
    return rows


def by_likelihood(key: Key, images: np.ndarray, schedule: optax.Schedule, options: dict[str, int]) -> Learner:
    """A pyramid: its base in closed form, the rest by gradients of the likelihood."""
    network = generators.pyramid(
        output_shape=images.shape[1:], conv_general_dilated=jax.lax.conv_general_dilated, **options
    )
    params = network.fit_base(jax.jit(network.generator.init)(key), mirrored_too(images))
    optimizer = optax.chain(optax.clip_by_global_norm(LARGEST_GRADIENT), optax.adam(schedule))
    trained = {name: leaf for name, leaf in params.items() if name != "base"}
    base = {"base": params["base"]}
    nats = jax.jit(network.loss)
    return Learner(
        Progress(trained, trained, optimizer.init(trained)),
        make_step(lambda params, images: network.loss({**params, **base}, images), optimizer),
        lambda progress: generators.Prior(network.generator, {**progress.average, **base}),
        lambda prior, images: {"test_nats": float(nats(prior.params, images))},
    )


def against_discriminator(
    name: str, key: Key, images: np.ndarray, schedule: optax.Schedule, options: dict[str, int]
) -> Learner:
    """A generator of that name, and its adversary."""
    generator = generators.REGISTRY[name](
        output_shape=images.shape[1:], conv_general_dilated=jax.lax.conv_general_dilated, **options
    )
    discriminator = adversarial.Discriminator(options.get("width", DISCRIMINATOR_WIDTH))
    optimizers = (optax.adam(schedule, b1=0.0, b2=0.99), optax.adam(schedule, b1=0.0, b2=0.99))
    return Learner(
        adversarial.start(key, generator, discriminator, optimizers),
        adversarial.make_step(generator, discriminator, optimizers, averaging=AVERAGING),
        lambda game: generators.Prior(generator, game.average),
        lambda prior, images: {},
    )


def make_step(
    loss_fn: Callable[[Params, Array], Array], optimizer: optax.GradientTransformation
) -> Callable[[Key, Progress, Array], tuple[Progress, dict[str, Array]]]:
    """One optimizer step on images, and the moving average after it."""

    def step(key: Key, progress: Progress, images: Array) -> tuple[Progress, dict[str, Array]]:
        augmentation_key, rounding_key = jax.random.split(key)
        images = mirrored_and_shifted(augmentation_key, images)
        images += (jax.random.uniform(rounding_key, images.shape) - 0.5) / 255
        loss, grad = jax.value_and_grad(loss_fn)(progress.params, images)
        updates, opt_state = optimizer.update(grad, progress.opt_state, progress.params)
        params = optax.apply_updates(progress.params, updates)
        average = optax.incremental_update(params, progress.average, 1 - AVERAGING)
        return Progress(params, average, opt_state), {"training_nats": loss}

    return step


def mirrored_too(images: np.ndarray) -> Array:
    """All images, and all of them mirrored."""
    return jnp.asarray(np.concatenate([images, images[:, :, ::-1]]))


def draw(key: Key, prior: generators.Prior, num_images: int) -> np.ndarray:
    """Samples from the generator, clipped to [0, 1]."""
    latents = generators.draw_latents(key, prior.generator, num_images)
    return np.clip(np.asarray(jax.jit(prior.generator.apply)(prior.params, latents)), 0, 1)


def frechet_distances(samples: np.ndarray, training: np.ndarray, testing: np.ndarray) -> dict[str, float | None]:
    """Of samples and of as many training images to the test images; none where these are too few for covariances."""
    count = min(len(training), len(testing))
    if count < FEWEST_FOR_COVARIANCE:
        return {"frechet": None, "train_frechet": None}
    return {
        "frechet": frechet_distance(samples[:count], testing[:count]),
        "train_frechet": frechet_distance(training[:count], testing[:count]),
    }


def frechet_distance(samples: ArrayLike, images: ArrayLike) -> float:
    """`|m - m'|^2 + tr(C + C' - 2 (C C')^1/2)` of simple features: pixels at 8 x 8, and the size of finer details.

    The formula of FID (Heusel et al. 2017) with 192 means of pixels and, for each octave between 8 pixels and the
    image's own size, the mean absolute difference of neighbors in 4 x 4 fields, all in units of pixels.
    """
    (mean, covariance), (mean_star, covariance_star) = (_moments(_features(np.asarray(x))) for x in (samples, images))
    product = scipy.linalg.sqrtm(covariance @ covariance_star)
    gap = mean - mean_star
    return float(gap @ gap + np.trace(covariance + covariance_star - 2 * np.real(product)))


def _features(images: np.ndarray) -> np.ndarray:
    count, height, width, channels = images.shape
    features = []
    while min(height, width) > 8 and height % 2 == 0 and width % 2 == 0:
        edges = np.abs(images[:, 1:, :-1] - images[:, :-1, :-1]) + np.abs(images[:, :-1, 1:] - images[:, :-1, :-1])
        edges = edges[:, : height // 4 * 4 - 4, : width // 4 * 4 - 4].mean(axis=-1)
        fields = edges.reshape(count, 4, -1, 4, edges.shape[2] // 4).mean(axis=(2, 4))
        features.append(fields.reshape(count, -1))
        images = images.reshape(count, height // 2, 2, width // 2, 2, channels).mean(axis=(2, 4))
        height, width = height // 2, width // 2
    return np.concatenate([images.reshape(count, -1), *features], axis=1)


def _moments(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return features.mean(axis=0), np.cov(features.T.astype(np.float64))


def save_grid(file: Path, images: np.ndarray, *, columns: int = 8) -> None:
    """Writes images side by side as a PNG."""
    from matplotlib import image

    count, height, width, channels = images.shape
    rows = -(-count // columns)
    grid = np.ones((rows, height, columns, width, channels), np.float32)
    for i, one in enumerate(images):
        grid[i // columns, :, i % columns] = one
    file.parent.mkdir(parents=True, exist_ok=True)
    pixels = grid.reshape(rows * height, columns * width, channels)
    image.imsave(file, pixels[..., 0] if channels == 1 else pixels, cmap="gray", vmin=0, vmax=1)


if __name__ == "__main__":
    main()
