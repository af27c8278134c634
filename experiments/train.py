"""Trains a network and keeps its parameters at chosen epochs: attacks are easiest before training, hardest after.

Setting: AdamW or SGD with Nesterov momentum, cosine decay to zero, mean cross-entropy, mirrored and shifted images,
BatchNorm in train mode. `OUT/epoch-N.safetensors` holds what `jaxinvert invert --checkpoint` takes. Started again
with the same setting, an interrupted run goes on where it was, and ends with the same parameters.

Command:  python -m experiments.train --data FILE.npz --model lenet --out runs/train/lenet --json FILE.json
Smoke:    python -m experiments.train --smoke
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from rich.progress import track

from experiments import harness
from jaxinvert import data, models
from jaxinvert.clients import running_statistics
from jaxinvert.types import Array, ArrayTree, Batch, Key, Params


@dataclass(frozen=True)
class Config:
    """Setting of the training.

    Attributes:
      data: data set by name, folder or npz.
      split: what to train on.
      test_split: what to measure accuracy on.
      size: side of the images in pixels; by default that of the data set.
      model: network by name.
      epochs: passes over the split.
      batch_size: examples per step; a last incomplete batch is left out.
      optimizer: "adam" (AdamW) or "sgd" (Nesterov momentum 0.9).
      learning_rate: at the start.
      weight_decay: of the optimizer.
      augment: mirrors images at random and shifts them by up to an eighth of their size.
      keep: epochs whose parameters are kept, 0 = before training; the last one always is.
      seed: of the parameters, the order and the augmentation.
      out: folder for checkpoints.
      smoke: a run of seconds on the embedded photos that only shows that everything works.
      json: file for the rows, one for each epoch.
    """

    data: str = "photos"
    split: str = "train"
    test_split: str = "test"
    size: int | None = None
    model: str = "lenet"
    epochs: int = 20
    batch_size: int = 64
    optimizer: Literal["adam", "sgd"] = "adam"
    learning_rate: float = 1e-3
    weight_decay: float = 1e-4
    augment: bool = True
    keep: tuple[int, ...] = (0, 1, 5, 20)
    seed: int = 0
    out: Path = Path("runs/train")
    smoke: bool = False
    json: Path | None = None


class Progress(NamedTuple):
    """A training run between two epochs: all that has to be stored to go on."""

    params: Params
    opt_state: ArrayTree


def main(arguments: Sequence[str] | None = None) -> None:
    """Trains, or goes on training, and prints a row for each epoch."""
    config = tyro.cli(Config, description=__doc__, args=arguments)
    if config.smoke:
        out = config.out if config.json is None else config.json.parent / "train"
        config = replace(config, data="photos", epochs=2, keep=(0, 1), batch_size=32, out=out)
    rows = train(config)
    harness.publish(f"Training {config.model} on {Path(config.data).stem}", rows, json_file=config.json)


def train(config: Config) -> list[dict]:
    """Runs the epochs that are still missing; a row for each epoch, those of earlier runs included."""
    training, testing = (loaded(config.data, split, config.size) for split in (config.split, config.test_split))
    create = functools.partial(models.create, config.model, like=training)
    model = create()
    key = jax.random.key(config.seed)
    params = jax.jit(model.init)(jax.random.fold_in(key, 0))
    steps_per_epoch = len(training.images) // config.batch_size
    if steps_per_epoch == 0:
        raise SystemExit(f"{len(training.images)} images are less than one batch of {config.batch_size}")
    optimizer = make_optimizer(config, steps_per_epoch * config.epochs)
    in_training = create(batch_norm="train") if "batch_stats" in params else model
    step = jax.jit(make_step(in_training, optimizer, augment=config.augment))
    measure = jax.jit(lambda params, images: jnp.argmax(model.apply(params, images), axis=-1))

    progress, rows = Progress(params, optimizer.init(params)), []
    state_file = config.out / "state.safetensors"
    apart = ("out", "json", "keep", "smoke")
    setting = {name: value for name, value in asdict(config).items() if name not in apart and value is not None}
    if state_file.exists():
        facts = models.read_facts(state_file)
        if facts["setting"] != setting:
            raise SystemExit(
                f"{config.out} holds a run with another setting, {facts['setting']}; choose another --out"
            )
        progress, rows = models.load_checkpoint(state_file, progress), facts["rows"]

    def keep(epoch: int) -> None:
        facts = {
            "model": config.model,
            "num_classes": model.num_classes,
            "mean": model.mean,
            "std": model.std,
            "data": config.data,
            "epochs": epoch,
            "test_accuracy": rows[-1]["test_accuracy"],
        }
        models.save_checkpoint(config.out / f"epoch-{epoch}.safetensors", progress.params, facts)

    for epoch in range(len(rows), config.epochs + 1):
        losses = []
        if epoch > 0:
            epoch_key = jax.random.fold_in(key, epoch)
            batches = minibatches(training, config, epoch)
            for batch in track(batches, f"epoch {epoch}/{config.epochs}", total=steps_per_epoch, transient=True):
                step_key = jax.random.fold_in(epoch_key, len(losses))
                progress, loss = step(step_key, progress, batch)
                losses.append(loss)
        rows.append(
            {
                "epoch": epoch,
                "training_loss": float(np.mean(losses)) if losses else None,
                "test_accuracy": accuracy(functools.partial(measure, progress.params), testing),
            }
        )
        if epoch in (*config.keep, config.epochs):
            keep(epoch)
        models.save_checkpoint(state_file, progress, {"setting": setting, "rows": rows})
    return rows


def loaded(name: str, split: str, size: int | None) -> data.Dataset:
    """A split with images of this side length."""
    if size is None or name != "photos":
        return data.load(name, split=split, size=size)
    dataset = data.load(name, split=split)  # tiles of the photographs have one size
    count, *_, channels = dataset.images.shape
    images = jax.image.resize(jnp.asarray(dataset.images), (count, size, size, channels), "linear")
    return dataset._replace(images=np.asarray(images))


def make_optimizer(config: Config, num_steps: int) -> optax.GradientTransformation:
    """The optimizer of the whole run."""
    schedule = optax.cosine_decay_schedule(config.learning_rate, num_steps)
    if config.optimizer == "adam":
        return optax.adamw(schedule, weight_decay=config.weight_decay)
    return optax.chain(
        optax.add_decayed_weights(config.weight_decay), optax.sgd(schedule, momentum=0.9, nesterov=True)
    )


def make_step(
    model: models.Model, optimizer: optax.GradientTransformation, *, augment: bool
) -> Callable[[Key, Progress, Batch], tuple[Progress, Array]]:
    """One optimizer step; running statistics are those that a client in train mode would send."""
    loss_fn = model.loss

    def step(key: Key, progress: Progress, batch: Batch) -> tuple[Progress, Array]:
        params, opt_state = progress
        if augment:
            batch = batch._replace(inputs=mirrored_and_shifted(key, batch.inputs))
        loss, grad = jax.value_and_grad(loss_fn)(params, batch)
        updates, opt_state = optimizer.update(grad, opt_state, params)
        moved = cast(dict[str, ArrayTree], optax.apply_updates(params, updates))
        if "batch_stats" in params:
            measured = jax.tree.map(lambda leaf: leaf[None], model.batch_statistics(params, batch.inputs))
            running = running_statistics.advance(params["batch_stats"], measured, momentum=models.BATCH_NORM_MOMENTUM)
            moved = {**moved, "batch_stats": running}
        return Progress(moved, opt_state), loss

    return step


def mirrored_and_shifted(key: Key, images: Array) -> Array:
    """Each image mirrored with probability 1/2 and shifted by up to an eighth of its size, edges reflected."""
    _, height, width, channels = images.shape
    margin = (height // 8, width // 8)
    padded = jnp.pad(images, ((0, 0), (margin[0],) * 2, (margin[1],) * 2, (0, 0)), mode="reflect")
    mirror_key, row_key, column_key = jax.random.split(key, 3)

    def one(image: Array, mirror: Array, row: Array, column: Array) -> Array:
        image = jnp.where(mirror, image[:, ::-1], image)
        return jax.lax.dynamic_slice(image, (row, column, 0), (height, width, channels))

    count = images.shape[:1]
    return jax.vmap(one)(
        padded,
        jax.random.bernoulli(mirror_key, shape=count),
        jax.random.randint(row_key, count, 0, 2 * margin[0] + 1),
        jax.random.randint(column_key, count, 0, 2 * margin[1] + 1),
    )


def minibatches(dataset: data.Dataset, config: Config, epoch: int) -> Iterator[Batch]:
    """The examples in the order of this epoch."""
    order = np.random.default_rng((config.seed, epoch)).permutation(len(dataset.images))
    for begin in range(0, len(order) - config.batch_size + 1, config.batch_size):
        rows = order[begin : begin + config.batch_size]
        yield Batch(jnp.asarray(dataset.images[rows]), jnp.asarray(dataset.labels[rows]))


def accuracy(predict: Callable[[Any], Array], dataset: data.Dataset, *, chunk: int = 250) -> float:
    """Share of the examples whose class is found."""
    hits = 0
    for begin in range(0, len(dataset.images), chunk):
        rows = slice(begin, begin + chunk)
        hits += int(np.sum(np.asarray(predict(dataset.images[rows])) == dataset.labels[rows]))
    return hits / len(dataset.images)


if __name__ == "__main__":
    main()
