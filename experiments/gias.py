"""GIAS against pixels at equal time, each above its own null control: the same attack on a random gradient.

Setting: batches of a client with an untrained LeNet, normalized images, FedSGD, labels known, one start. The
generator saw other images than those attacked. Every attack gets the time that the first of `ATTACKS` needs for
`--steps`: its rate is timed here, the shortest of several turns taken one after the other, and its schedule laid out
for the steps that it then has. PSNR after one-to-one matching; the iterate is chosen by attack loss. `gain_db` is
over Inverting Gradients as published, `over_pixels_db` over the best attack on pixels that there is here,
`above_null_db` over the null control: means with 95 % bootstrap intervals over batches.
With `--keep` the client sends the largest entries only, and every attack matches the entries that were sent.

Command:  python -m experiments.train_generator --data FILE.npz --epochs 16 --out runs/generators/cifar10
          python -m experiments.gias --data FILE.npz --generator runs/generators/cifar10/generator.safetensors \
              --json FILE.json
Smoke:    python -m experiments.gias --smoke
Measured: see experiments/README.md
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro

from experiments import harness
from experiments.train_generator import save_grid
from jaxinvert import attacks, clients, data, defenses, generators, metrics, models, objectives, regularizers
from jaxinvert.attacks.schedules import cosine_decay
from jaxinvert.attacks.transformations import scale_by_rates
from jaxinvert.audit.controls import random_update
from jaxinvert.matching import gradient_matching
from jaxinvert.observe import observe_targets
from jaxinvert.parametrizations import per_channel, stay
from jaxinvert.search import Stepwise
from jaxinvert.types import Array, Attack, Batch, ClientUpdateFn, Key, Objective, Observation, Parametrization, Scalar

TURNS, STEPS_PER_TURN = 12, 20


class Arena(NamedTuple):
    """What an attack is made of, whichever it is.

    Attributes:
      client_update: the attacker's simulation of the client.
      images: `batch_shape`, `mean` and `std`.
      objective: distance of updates.
      trained: the generator.
      untrained: the same network, and a convolutional one, as they are before training.
    """

    client_update: ClientUpdateFn
    images: dict[str, Any]
    objective: Objective
    trained: generators.Prior
    untrained: dict[str, generators.Prior]

    @property
    def of_generator(self) -> dict[str, Any]:
        """What attacks with a generator have in common."""
        return {"objective": self.objective, **{name: self.images[name] for name in ("batch_shape", "std")}}


def published(arena: Arena, horizon: Scalar) -> Attack:
    """Inverting Gradients with the paper's settings."""
    return attacks.inverting_gradients(
        arena.client_update, horizon=horizon, objective=arena.objective, **arena.images
    )


def coarse_to_fine(arena: Arena, horizon: Scalar, *, tv: float = 2e-3) -> Attack:
    """Pixels without sign and with cosine decay, as the sum of images of 8, 16 and 32 pixels that begin in turn."""
    batch_shape = arena.images["batch_shape"]
    mean, std = (per_channel(name, arena.images[name], batch_shape) for name in ("mean", "std"))
    shapes = [(batch_shape[0], *(max(1, side // part) for side in batch_shape[1:3]), 3) for part in (4, 2, 1)]

    def init(key: Key) -> tuple[Array, ...]:
        return (0.1 * jax.random.normal(key, shapes[0]), *(jnp.zeros(shape) for shape in shapes[1:]))

    def decode(levels: tuple[Array, ...]) -> Array:
        return mean + std * sum(jax.image.resize(level, batch_shape, "bilinear") for level in levels)

    rates = tuple(cosine_decay(0.1, horizon, begin=share * horizon) for share in (0.0, 0.2, 0.45))
    return gradient_matching(
        arena.client_update,
        objective=arena.objective,
        regularizer=regularizers.weighted((tv, lambda x: regularizers.total_variation(x / std))),
        optimizer=optax.chain(optax.scale_by_adam(), scale_by_rates(rates)),
        parametrization=Parametrization(init, decode, stay),
    )


def spectral(arena: Arena, horizon: Scalar) -> Attack:
    """This library's own attack on frequencies of pixels, `docs/spectral.md`."""
    shape = arena.images["batch_shape"]
    return attacks.spectral(arena.client_update, batch_shape=shape, horizon=horizon, objective=arena.objective)


def latents(arena: Arena, horizon: Scalar) -> Attack:
    """GI-z only."""
    return attacks.latent_search(arena.client_update, arena.trained, horizon=horizon, **arena.of_generator)


def latents_then_weights(arena: Arena, horizon: Scalar) -> Attack:
    """GIAS."""
    return attacks.latents_then_weights(arena.client_update, arena.trained, horizon=horizon, **arena.of_generator)


def weights(arena: Arena, horizon: Scalar) -> Attack:
    """GI-w only, from latents that were not searched."""
    return attacks.weight_search(arena.client_update, arena.trained, horizon=horizon, **arena.of_generator)


def untrained_latents(arena: Arena, horizon: Scalar) -> Attack:
    """GI-z with the network before training: what the pyramid is worth that has learned nothing."""
    prior = arena.untrained["pyramid"]
    return attacks.latent_search(arena.client_update, prior, horizon=horizon, **arena.of_generator)


def deep_image_prior(arena: Arena, horizon: Scalar) -> Attack:
    """GI-w with an untrained convolutional network."""
    prior = arena.untrained["convolutional"]
    return attacks.weight_search(
        arena.client_update, prior, horizon=horizon, learning_rate=1e-2, tv=0.25, **arena.of_generator
    )


ATTACKS: dict[str, Callable[[Arena, Scalar], Attack]] = {
    "GI-z": latents,
    "GIAS": latents_then_weights,
    "GI-w": weights,
    "GI-z, untrained": untrained_latents,
    "deep image prior": deep_image_prior,
    "pixels, published": published,
    "pixels, coarse to fine": coarse_to_fine,
    "pixels, spectral": spectral,
}
"""What is compared, in the order of the table; the first sets the time that all have."""
PUBLISHED = "pixels, published"
PIXELS = tuple(name for name in ATTACKS if name.startswith("pixels"))


@dataclass(frozen=True)
class Config:
    """Setting of the experiment.

    Attributes:
      data: data set by name, folder or npz.
      split: whose images are attacked.
      generator: trained on others; by default the one that comes with jaxinvert.
      model: of the clients.
      batch_sizes: `B`, a table for each.
      images: attacked for each, rounded to whole batches.
      keep: share of the update that is sent, the largest entries; by default all.
      steps: of the first attack.
      attacks: only those whose names contain one of these, the first, and pixels.
      seed: of the network and the starts.
      smoke: a run of seconds on the embedded photos that only shows that everything works.
      json: file for the rows; pictures go beside it.
    """

    data: str = "photos"
    split: str = "test"
    generator: Path | None = None
    model: str = "lenet"
    batch_sizes: tuple[int, ...] = (4,)
    images: int = 48
    keep: float | None = None
    steps: int = 600
    attacks: tuple[str, ...] = ()
    seed: int = 0
    smoke: bool = False
    json: Path | None = None


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs all attacks for all batch sizes and prints the rows, after each batch size all so far."""
    config = tyro.cli(Config, description=__doc__, args=arguments)
    chosen = [name for name in ATTACKS if any(part in name for part in config.attacks or ("",))]
    chosen = list(dict.fromkeys([next(iter(ATTACKS)), *chosen, *PIXELS]))
    if config.smoke:
        config = replace(config, model="mlp-8", batch_sizes=(1,), images=2, steps=2)
        chosen = [next(iter(ATTACKS)), PUBLISHED]
    rows = []
    for batch_size in config.batch_sizes:
        rows += compare(config, batch_size, chosen)
        title = f"GIAS and pixels at equal time, {config.model}, {Path(config.data).stem}"
        harness.publish(title, rows, json_file=config.json)


def compare(config: Config, batch_size: int, chosen: Sequence[str]) -> list[dict]:
    """A row for each attack on the same updates, and a grid of their first images."""
    truth, observations, arena = clients_and_attacker(config, batch_size)
    nothing = random_update(jax.random.key(config.seed + 2), observations)
    key = jax.random.key(config.seed + 1)
    searches = {name: Stepwise(lambda horizon, make=ATTACKS[name]: make(arena, horizon)) for name in chosen}
    seconds = seconds_per_step(searches, key, observations)
    budget = config.steps * seconds[chosen[0]]

    found, psnr, rows = {}, {}, []
    for name in chosen:
        num_steps = config.steps if config.smoke else max(1, round(budget / seconds[name]))
        run = partial(search_all, searches[name], key, num_steps=num_steps)
        (found[name], seconds_run), (null, _) = run(observations), run(nothing)
        quality = [metrics.evaluate(one, true) for one, true in zip(found[name], truth.inputs)]
        null_db = np.array([metrics.evaluate(one, true).psnr_db for one, true in zip(null, truth.inputs)])
        psnr[name] = np.array([one.psnr_db for one in quality])
        rows.append(
            {
                "attack": name,
                "batch_size": batch_size,
                "images": psnr[name].size,
                "keep": config.keep or 1.0,
                "steps": num_steps,
                "seconds_fastest": num_steps * seconds[name],
                "seconds_run": seconds_run,
                "mean_psnr_db": float(psnr[name].mean()),
                "mean_ssim": float(np.mean([one.ssim for one in quality])),
                "null_db": float(null_db.mean()),
                **interval("above_null", psnr[name] - null_db),
            }
        )
    best_on_pixels = max((psnr[name] for name in PIXELS if name in psnr), key=np.mean)
    for row in rows:
        row |= interval("gain", psnr[row["attack"]] - psnr[PUBLISHED])
        row |= interval("over_pixels", psnr[row["attack"]] - best_on_pixels)
    if config.json is not None:
        shown = [truth.inputs, *(match(found[name], truth.inputs) for name in chosen)]
        grid = np.concatenate([np.asarray(images).reshape(-1, *images.shape[2:])[:8] for images in shown])
        save_grid(config.json.with_name(f"{config.json.stem}_{batch_size}.png"), grid)
    return rows


def clients_and_attacker(config: Config, batch_size: int) -> tuple[Batch, Observation, Arena]:
    """Private batches `[T, B, ...]`, what the server sees of them, and what the attacker brings along."""
    num_targets = max(1, config.images // batch_size)
    dataset = data.load(config.data, split=config.split)
    wanted = num_targets * batch_size
    if len(dataset.images) < wanted:
        raise SystemExit(
            f"{config.data} split {config.split!r} has {len(dataset.images)} images, {wanted} are needed"
        )
    batches = Batch(
        jnp.asarray(dataset.images[:wanted]).reshape(num_targets, batch_size, *dataset.images.shape[1:]),
        jnp.asarray(dataset.labels[:wanted]).reshape(num_targets, batch_size),
    )
    model = models.create(
        config.model,
        input_shape=dataset.images.shape[1:],
        num_classes=dataset.num_classes,
        mean=dataset.mean,
        std=dataset.std,
    )
    client_update = clients.fedsgd(models.cross_entropy(model.apply))
    params = jax.jit(model.init)(jax.random.key(config.seed))
    defense = defenses.identity if config.keep is None else defenses.top_k(config.keep)
    observations = observe_targets(
        client_update, params, batches, defense=defense, key=jax.random.key(config.seed + 3)
    )
    trained = generators.load_prior(config.generator, input_shape=model.input_shape)
    networks = (trained.generator, generators.convolutional(output_shape=model.input_shape))
    untrained = {
        network.name: generators.Prior(network, jax.jit(network.init)(jax.random.key(config.seed + 4)))
        for network in networks
    }
    arena = Arena(
        client_update,
        {"batch_shape": batches.inputs.shape[1:], "mean": model.mean, "std": model.std},
        objectives.cosine if config.keep is None else objectives.transmitted(objectives.cosine),
        trained,
        untrained,
    )
    return batches, observations, arena


def seconds_per_step(searches: dict[str, Stepwise], key: Key, observations: Observation) -> dict[str, float]:
    """Of a step on all targets; the fastest of several turns, so that what else the machine does counts little."""
    fastest = dict.fromkeys(searches, float("inf"))
    for turn in range(TURNS):
        for name, search in searches.items():
            begin = time.perf_counter()
            for progress in search(
                key, observations, 1000.0, num_steps=2 * STEPS_PER_TURN, report_every=STEPS_PER_TURN
            ):
                begin = time.perf_counter() if progress.step == STEPS_PER_TURN else begin
            if turn:  # the first compiled
                fastest[name] = min(fastest[name], (time.perf_counter() - begin) / STEPS_PER_TURN)
    return fastest


def search_all(search: Stepwise, key: Key, observations: Observation, *, num_steps: int) -> tuple[np.ndarray, float]:
    """What an attack finds, `[T, B, H, W, C]`, and the wall time that it took."""
    for progress in search(key, observations, float(num_steps), num_steps=num_steps):
        last = progress
    return np.asarray(last.reconstruct().inputs), last.seconds


def interval(name: str, gaps: np.ndarray) -> dict[str, float]:
    """Mean of `[T, B]` gaps in dB with a 95 % bootstrap interval over batches."""
    of_batches = gaps.mean(axis=1)
    drawn = np.random.default_rng(0).integers(len(of_batches), size=(2000, len(of_batches)))
    low, high = np.percentile(of_batches[drawn].mean(axis=1), (2.5, 97.5))
    return {f"{name}_db": float(gaps.mean()), f"{name}_low_db": float(low), f"{name}_high_db": float(high)}


def match(found: np.ndarray, truth: Array) -> np.ndarray:
    """Every batch in the order of the truth."""
    return np.stack([one[metrics.evaluate(one, true).permutation] for one, true in zip(found, truth)])


if __name__ == "__main__":
    main()
