"""What each part of spectral matching is worth: without it, on the images that it was tuned on.

Rows compare with the whole attack. Behind four networks they take away its first guess, or let biases and norms count
beside kernels. Behind two, they take one part of the descent away or change it: the spectrum (pixels instead, or
another fall), the multiplied prior (added instead, with weights for exact updates and for noisy ones), Adam's short
memory, plain gradients, half a cosine; or they add one: the input of the last dense layer, known in closed form for
one example, as a second distance; L-BFGS on the logarithm of the same loss for the last fifth of the steps; or a
choice by attack loss between gradients and their signs, each for half of the steps.
`noise` is normal noise on the update with so many times its root mean square. Each row's `gain_db` is the mean over
images of its difference to the whole attack on the same update, with its 95 % interval.

Command:  python -m experiments.spectral_ablation --data FILE.npz --json FILE.json
Smoke:    python -m experiments.spectral_ablation --smoke
Measured: see docs/spectral.md
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro

from experiments import harness
from jaxinvert import attacks, data, metrics, models, search, trees
from jaxinvert.attacks import Problem, initial_guess, objectives
from jaxinvert.attacks.matching import search_inputs, update_distance
from jaxinvert.attacks.schedules import cosine_decay, step_decay
from jaxinvert.audit.evidence import excess
from jaxinvert.clients import fedsgd
from jaxinvert.observation.observe import observe_targets
from jaxinvert.priors import parametrizations, regularizers
from jaxinvert.types import (
    Array,
    Attack,
    Batch,
    Key,
    Objective,
    Observation,
    Reconstruction,
    SolveFn,
    Update,
)


@dataclass(frozen=True)
class Config:
    """Setting of the experiment.

    Attributes:
      data: data set by name, folder or npz.
      split: the images, one for each client.
      seed: of the networks and the starts.
      smoke: a run of seconds on the embedded photos that only shows that everything works.
      json: file for the rows; those that it holds are not run again.
    """

    data: str = "photos"
    split: str = "train[2000:2010]"
    seed: int = 7
    smoke: bool = False
    json: Path | None = None


class Setting(NamedTuple):
    """A network, how long the attack runs, how many of the images it has to find, and whether every part is tried."""

    model: str
    steps: int
    targets: int
    every_part: bool = True
    noises: tuple[float, ...] = (0.0, 1.0)


SETTINGS = (
    Setting("lenet", 300, 10),
    Setting("small-convnet", 100, 5),
    Setting("convnet16", 250, 6, every_part=False),
    Setting("resnet20-4", 300, 4, every_part=False, noises=(0.0,)),
)

TITLE, WHOLE, BLIND, BIASES = (
    "What the parts of spectral matching are worth",
    "whole",
    "no first guess",
    "biases, too",
)
VARIANTS: dict[str, Mapping[str, Any]] = {
    WHOLE: {},
    BLIND: {"guessed": False},
    BIASES: {"objective": objectives.cosine},
    "pixels instead of frequencies": {"pixels": True},
    "flat spectrum": {"fall": 0.0},
    "spectrum falling as 1/f": {"fall": 1.0},
    "spectrum falling as 1/f^2": {"fall": 2.0},
    "no prior": {"tv": 0.0},
    "prior added, 3e-4": {"tv": 3e-4, "added": True},
    "prior added, 3e-2": {"tv": 3e-2, "added": True},
    "Adam remembers 1000 steps": {"memory": 0.999},
    "signs of gradients": {"sign": True},
    "step decay": {"decay": step_decay},
    "dense layer's input, too": {"dense_input": 0.3},
    "L-BFGS at the end": {"line_search_share": 0.2},
    "plain or signs, by loss": {"choose": True},
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs every variant on every setting, and prints what each is worth."""
    config = tyro.cli(Config, description=__doc__, args=arguments)
    settings, variants = SETTINGS, VARIANTS
    if config.smoke:
        config = replace(config, data="photos", split="test")
        settings = (Setting("mlp-32", 4, 2, noises=(1.0,)),)
        variants = {name: VARIANTS[name] for name in (WHOLE, "pixels instead of frequencies", "L-BFGS at the end")}
    stored = harness.kept_rows(config.json)
    finished = {(row["model"], row["noise"], row["variant"]): row for row in stored}
    order = [(setting.model, noise, name) for setting in settings for noise in setting.noises for name in variants]

    def rows() -> list[dict[str, Any]]:
        return [finished[place] for place in order if place in finished]

    for setting in settings:
        for noise in setting.noises:
            tried = variants if setting.every_part else {name: variants[name] for name in (WHOLE, BLIND, BIASES)}
            missing = {n: changed for n, changed in tried.items() if (setting.model, noise, n) not in finished}
            if not missing:
                continue
            problem, truth, observations = observed(config, setting, noise)
            whole = np.zeros(setting.targets)
            for name, changed in {WHOLE: {}, **missing}.items():  # which all others are compared with
                solve = search.over_targets(solver(problem, setting.steps, **changed), chunk_size=5)
                found = jax.jit(solve)(jax.random.key(config.seed + 1), observations)
                psnr = np.asarray(jax.vmap(metrics.psnr)(found.inputs[:, 0], truth[:, 0]))
                whole = psnr if name == WHOLE else whole
                gain = excess(psnr, whole)
                finished[setting.model, noise, name] = {
                    "model": setting.model,
                    "steps": setting.steps,
                    "noise": noise,
                    "variant": name,
                    "images": setting.targets,
                    "mean_psnr_db": float(psnr.mean()),
                    "min_psnr_db": float(psnr.min()),
                    "gain_db": gain.mean,
                    "gain_low_db": gain.low,
                    "gain_high_db": gain.high,
                }
                print(f"{setting.model}, noise {noise:g}: {name} {psnr.mean():.1f} dB", flush=True)
                if config.json is not None:
                    harness.save(config.json, TITLE, rows())
    harness.publish(TITLE, rows())


def observed(config: Config, setting: Setting, noise: float) -> tuple[Problem, np.ndarray, Observation]:
    """What the attacker knows, true images `[T, 1, H, W, C]`, and what the server sees of them."""
    dataset = data.load(config.data, split=config.split, size=8 if config.smoke else None)
    images, labels = dataset.images[: setting.targets, None], dataset.labels[: setting.targets, None]
    model = models.create(setting.model, like=dataset)
    client = fedsgd(model.loss)

    def disturb(key: Key, update: Update) -> Update:
        leaves, structure = jax.tree.flatten(update)
        size = sum(leaf.size for leaf in leaves)
        spread = noise * trees.tree_norm(update) / size**0.5
        keys = jax.random.split(key, len(leaves))
        return structure.unflatten([g + spread * jax.random.normal(k, g.shape) for g, k in zip(leaves, keys)])

    observations = observe_targets(
        jax.jit(client),
        jax.jit(model.init)(jax.random.key(config.seed)),
        Batch(jnp.asarray(images), jnp.asarray(labels)),
        defense=disturb,
        key=jax.random.key(config.seed + 2),
    )
    return Problem(client, model, num_examples=1), np.asarray(images), observations


def solver(
    problem: Problem, num_steps: int, *, line_search_share: float = 0.0, choose: bool = False, **changed: Any
) -> SolveFn:
    """The attack with one part changed or added, for `num_steps` in all."""
    if choose:
        plain, signs = (
            search.run(variant(problem, num_steps // 2, sign=sign), num_steps=num_steps // 2)
            for sign in (False, True)
        )
        return lambda key, observation: search.select_best(
            jax.tree.map(lambda *both: jnp.stack(both), plain(key, observation), signs(key, observation))
        )
    begin = round(num_steps * (1 - line_search_share))
    first = search.run(variant(problem, begin, **changed), num_steps=begin)
    return first if not line_search_share else finished_by_line_search(problem, first, num_steps - begin)


def finished_by_line_search(problem: Problem, first: SolveFn, num_steps: int) -> SolveFn:
    """L-BFGS from where `first` ends, on the logarithm of the attack's loss, which has the same minimum."""
    unexplained = update_distance(problem.client_update, objectives.kernel_cosine)

    def distance(observation: Observation, batch: Batch) -> Array:
        return jnp.log(unexplained(observation, batch)) + regularizers.total_variation(batch.inputs)

    def solve(key: Key, observation: Observation) -> Reconstruction:
        found = first(key, observation).inputs
        from_there = parametrizations.spectrum(found.shape, around=found)._replace(
            init=lambda key: jnp.zeros(found.shape), project=parametrizations.stay, free=True
        )
        attack = search_inputs(
            distance, optimizer=optax.lbfgs(memory_size=10), parametrization=from_there, name="line search"
        )
        return search.run(attack, num_steps=num_steps)(key, observation)

    return solve


def variant(
    problem: Problem,
    horizon: int,
    *,
    guessed: bool = True,
    objective: Objective = objectives.kernel_cosine,
    pixels: bool = False,
    fall: float = 1.5,
    tv: float = 1.0,
    added: bool = False,
    memory: float = 0.95,
    sign: bool = False,
    dense_input: float = 0.0,
    decay: Callable[..., optax.Schedule] | None = None,
) -> Attack:
    """The attack with one part changed; without changes of the descent `attacks.spectral` itself."""
    if (pixels, fall, added, memory, sign, dense_input, decay) == (False, 1.5, False, 0.95, False, 0.0, None):
        return attacks.spectral(
            problem._replace(objective=objective),
            tv=tv,
            horizon=horizon,
            guess=initial_guess.regressed if guessed else initial_guess.gray_noise,
        )

    def gap(simulated: Update, observed: Update) -> Array:
        found, known = head_input(simulated), head_input(observed)
        share = jnp.sum(jnp.square(found - known)) / jnp.sum(jnp.square(known))
        return objective(simulated, observed) + dense_input * share

    unexplained = update_distance(problem.client_update, gap if dense_input else objective)
    # Pixels as in the published attack: in units of the contrast of photographs, at its rate.
    images = parametrizations.pixels(problem.batch_shape, mean=0.5, std=0.25)
    rate = 0.1 if pixels else 0.2
    guess = initial_guess.regressed(problem)

    def distance(observation: Observation, batch: Batch) -> Array:
        roughness = tv * regularizers.total_variation(batch.inputs)
        found = unexplained(observation, batch)
        return found + roughness if added else found * jnp.exp(roughness)

    def start(key: Key, observation: Observation) -> Array:
        first_images = guess(observation)
        if pixels:
            return (first_images - 0.5) / 0.25
        return parametrizations.near(key, first_images, fall=fall)

    return search_inputs(
        distance,
        optimizer=optax.chain(
            *([optax.scale_by_sign()] if sign else []),
            optax.scale_by_adam(b2=memory, eps=1e-12),
            optax.scale_by_learning_rate((decay or cosine_decay)(rate, horizon)),
        ),
        parametrization=images if pixels else parametrizations.spectrum(problem.batch_shape, fall=fall),
        start=start,
        name="variant",
    )


def head_input(update: Update) -> Array:
    """What the last dense layer read of one example, `[features]`: its kernel's gradient over its bias's."""
    kernel, bias = update["params"]["head"]["kernel"], update["params"]["head"]["bias"]
    return kernel @ bias / jnp.sum(jnp.square(bias))


if __name__ == "__main__":
    main()
