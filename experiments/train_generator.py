"""Trains a generator for GIAS: a pyramid by maximum likelihood, on images the attacker may have.

Setting: Adam with cosine decay on mirrored and shifted images with rounding noise, an exponential moving average of
the weights. `OUT/generator.safetensors` is what `jaxinvert invert --attack gias --generator` takes, `OUT/samples.png`
shows samples after every epoch. Started again with the same setting, an interrupted run goes on where it was.

`test_nats` is minus the log likelihood of the test images per number, without its constant. `frechet` is like FID,
but of statistics that need no trained network (see `frechet_distance`), between as many samples as test images and
these; it compares generators trained here, and says nothing beside published FIDs. `train_frechet` is that of
training images, the best that a generator could reach.

Command:  python -m experiments.train_generator --data FILE.npz --out runs/generators/cifar10 --json FILE.json
Shipped:  python -m experiments.train_generator --epochs 300 --batch-size 48 --out runs/generators/photos
Smoke:    python -m experiments.train_generator --smoke
Measured: see experiments/README.md
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import optax
import scipy.linalg
import tyro
from jax.typing import ArrayLike
from rich.progress import track

from experiments import harness
from experiments.train import mirrored_and_shifted
from jaxinvert import data, generators, models
from jaxinvert.types import Array, ArrayTree, Key, Params

matplotlib.use("Agg")
AVERAGING = 0.995
LARGEST_GRADIENT = 1.0
FEWEST_FOR_COVARIANCE = 400


@dataclass(frozen=True)
class Config:
    """Setting of the training.

    Attributes:
      data: data set by name, folder or npz.
      split: what to train on.
      test_split: what to measure on.
      size: side of the images in pixels; by default the data set's own.
      width: channels of the networks' hidden layers.
      epochs: passes over the split.
      batch_size: images per step; a last incomplete batch is left out.
      learning_rate: at the start.
      seed: of the parameters, the order and the augmentation.
      out: folder for the generator.
      smoke: a run of seconds on the embedded photos that only shows that everything works.
      json: file for the rows, one for each epoch that is a power of two, and the last.
    """

    data: str = "photos"
    split: str = "train"
    test_split: str = "test"
    size: int | None = None
    width: int = 32
    epochs: int = 20
    batch_size: int = 64
    learning_rate: float = 2e-3
    seed: int = 0
    out: Path = Path("runs/generators/photos")
    smoke: bool = False
    json: Path | None = None


class Progress(NamedTuple):
    """A training run between two epochs."""

    params: Params
    average: Params
    opt_state: ArrayTree


def main(arguments: Sequence[str] | None = None) -> None:
    """Trains, or goes on training, and prints how good the generator was on the way."""
    config = tyro.cli(Config, description=__doc__, args=arguments)
    if config.smoke:
        out = config.out if config.json is None else config.json.parent / "generator"
        config = replace(config, data="photos", size=16, width=4, epochs=1, batch_size=32, out=out, split="test")
    rows = train(config)
    harness.publish(f"Pyramid generator of {Path(config.data).stem}", rows, json_file=config.json)


def train(config: Config) -> list[dict]:
    """Runs the epochs that are still missing; a row for some epochs, those of earlier runs included."""
    training = data.load(config.data, split=config.split, size=config.size)
    testing = data.load(config.data, split=config.test_split, size=config.size)
    shape, options = training.images.shape[1:], {"width": config.width}
    network = generators.pyramid(output_shape=shape, conv_general_dilated=jax.lax.conv_general_dilated, **options)
    key = jax.random.key(config.seed)
    params = network.fit_base(
        jax.jit(network.generator.init)(jax.random.fold_in(key, 0)), mirrored_too(training.images)
    )
    batch_size = min(config.batch_size, len(training.images))
    steps_per_epoch = len(training.images) // batch_size
    schedule = optax.cosine_decay_schedule(config.learning_rate, steps_per_epoch * config.epochs)
    optimizer = optax.chain(optax.clip_by_global_norm(LARGEST_GRADIENT), optax.adam(schedule))
    trained, base = _without_base(params), params["base"]
    step = jax.jit(make_step(lambda p, images: network.loss({**p, "base": base}, images), optimizer))
    measure = jax.jit(network.loss)

    progress, rows, begin = Progress(trained, trained, optimizer.init(trained)), [], 1
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
        prior = generators.Prior(network.generator, {**progress.average, "base": base})
        samples = draw(jax.random.fold_in(epoch_key, steps_per_epoch), prior, len(testing.images))
        save_grid(config.out / "samples.png", samples[:64])
        if epoch == config.epochs or epoch & (epoch - 1) == 0:
            rows.append(
                {
                    "epoch": epoch,
                    "training_nats": float(np.mean(losses)),
                    "test_nats": float(measure(prior.params, testing.images)),
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


def make_step(
    loss_fn: Callable[[Params, Array], Array], optimizer: optax.GradientTransformation
) -> Callable[[Key, Progress, Array], tuple[Progress, Array]]:
    """One optimizer step on images, and the moving average after it."""

    def step(key: Key, progress: Progress, images: Array) -> tuple[Progress, Array]:
        augmentation_key, rounding_key = jax.random.split(key)
        images = mirrored_and_shifted(augmentation_key, images)
        images += (jax.random.uniform(rounding_key, images.shape) - 0.5) / 255
        loss, grad = jax.value_and_grad(loss_fn)(progress.params, images)
        updates, opt_state = optimizer.update(grad, progress.opt_state, progress.params)
        params = optax.apply_updates(progress.params, updates)
        average = jax.tree.map(lambda old, new: AVERAGING * old + (1 - AVERAGING) * new, progress.average, params)
        return Progress(params, average, opt_state), loss

    return step


def _without_base(params: Params) -> Params:
    """What is trained by gradients: the base has a closed form."""
    return {name: leaf for name, leaf in params.items() if name != "base"}


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
