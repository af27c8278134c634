"""GIML: a generator learned from the updates that a server sees over rounds, where no images are to be had.

Setting: an untrained pyramid (or another network), and clients of one image each with an untrained LeNet, four in
every round. In a round the attacker searches their latents (GI-z), then moves the one generator that they share so
that it explains all four updates better (GI-w); the meta-step of Reptile takes Adam's step on |theta - theta'|^2.
After some rounds the generator inverts updates of clients that were never seen, by GI-z from the same starts.
`gain_db` is over the untrained generator, mean with a 95 % interval over images; `above_null_db` over the
same attack on a random gradient. No image is read but to measure.

Deviations from the paper: fewer rounds and steps, and GI-z with this library's settings (`attacks.gias_latents`).

Command:  python -m experiments.giml --data FILE.npz --json FILE.json
Smoke:    python -m experiments.giml --smoke
Measured: see experiments/details/generative-priors.md

Jinwoo Jeon et al.: "Gradient Inversion with Generative Image Prior", NeurIPS 2021, arXiv:2110.14962, section 4.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro

from experiments import gias, harness
from jaxinvert import attacks, clients, data, metrics, models
from jaxinvert.attacks import Problem
from jaxinvert.attacks.objectives import cosine
from jaxinvert.attacks.schedules import cosine_decay
from jaxinvert.audit.controls import random_update
from jaxinvert.observation.observe import observe_targets
from jaxinvert.priors import generators
from jaxinvert.priors.generators import Generator, Latents, Prior
from jaxinvert.search import over_targets, run, split_shared
from jaxinvert.types import Array, ArrayTree, Batch, ClientUpdateFn, Key, Observation, Params


@dataclass(frozen=True)
class Config:
    """Setting of the experiment.

    Attributes:
      data: data set by name, folder or npz.
      split: of the clients whose updates teach the generator.
      test_split: of those that are attacked in the end.
      generator: network, by name.
      rounds: of meta-learning.
      clients: updates seen in each round.
      images: attacked in the end.
      latent_steps: of GI-z, in a round and in the end.
      weight_steps: of GI-w in a round.
      meta_rate: of Adam on the generator.
      seed: of all that is random.
      smoke: a run of seconds on the embedded photos that only shows that everything works.
      json: file for the rows.
    """

    data: str = "photos"
    split: str = "train"
    test_split: str = "test"
    generator: str = "pyramid"
    rounds: int = 32
    clients: int = 4
    images: int = 16
    latent_steps: int = 200
    weight_steps: int = 50
    meta_rate: float = 1e-2
    seed: int = 0
    smoke: bool = False
    json: Path | None = None


class Learner(NamedTuple):
    """A generator being learned.

    Attributes:
      params: its parameters `theta`.
      opt_state: of the meta-step.
    """

    params: Params
    opt_state: ArrayTree


def main(arguments: Sequence[str] | None = None) -> None:
    """Learns a generator round by round, and prints what it is worth after 0, 1, 2, 4 ... of them."""
    config = tyro.cli(Config, description=__doc__, args=arguments)
    if config.smoke:
        config = replace(config, data="photos", split="test", generator="convolutional", rounds=1, clients=2)
        config = replace(config, images=2, latent_steps=2, weight_steps=2)
    rows = []
    for row in learn(config):
        rows.append(row)
        harness.publish(f"GIML from {Path(config.data).stem}, {config.generator}", rows, json_file=config.json)


def learn(config: Config) -> Iterator[dict]:
    """Yields a row for every round that is a power of two, and for none."""
    size = 8 if config.smoke else None
    dataset, testing = (data.load(config.data, split=split, size=size) for split in (config.split, config.test_split))
    model = models.create("mlp-8" if config.smoke else "lenet", like=dataset)
    problem = Problem(clients.fedsgd(model.loss), model, num_examples=1)
    key = jax.random.key(config.seed)
    params = jax.jit(model.init)(jax.random.fold_in(key, 0))
    generator = generators.REGISTRY[config.generator](output_shape=model.input_shape)
    meta_optimizer = optax.adam(config.meta_rate)
    theta = jax.jit(generator.init)(jax.random.fold_in(key, 1))
    learner = Learner(theta, meta_optimizer.init(theta))

    observe = jax.jit(partial(observe_targets, problem.client_update))
    meta_round = jax.jit(partial(one_round, problem, generator, meta_optimizer, config))
    invert = jax.jit(partial(search_latents, problem, generator, config.latent_steps))
    unseen = singles(testing, range(config.images))
    observations = observe(params, unseen)
    nothing = random_update(jax.random.fold_in(key, 2), observations)
    order = np.random.default_rng(config.seed).permutation(len(dataset.images))

    psnr, attack_key = [], jax.random.fold_in(key, 3)
    for number in range(config.rounds + 1):
        if number:
            begin = (number - 1) * config.clients
            seen = observe(params, singles(dataset, order[np.arange(begin, begin + config.clients) % len(order)]))
            learner, distance = meta_round(jax.random.fold_in(key, 3 + number), learner, seen)
        if number & (number - 1) == 0 or number == config.rounds:
            found, _ = invert(attack_key, learner.params, observations)
            null, _ = invert(attack_key, learner.params, nothing)
            found_db, null_db = (np.asarray(metrics.psnr(images, unseen.inputs)) for images in (found, null))
            psnr.append(found_db)
            yield {
                "rounds": number,
                "updates_seen": number * config.clients,
                "images": found_db.size,
                "distance_in_round": float(distance) if number else None,
                "mean_psnr_db": float(found_db.mean()),
                "null_db": float(null_db.mean()),
                **gias.interval("above_null", found_db - null_db),
                **gias.interval("gain", found_db - psnr[0]),
            }


def singles(dataset: data.Dataset, rows: Sequence[int] | np.ndarray) -> Batch:
    """Clients of one image each: `inputs [T, 1, H, W, C]`, `labels [T, 1]`."""
    chosen = np.asarray(rows)
    return Batch(jnp.asarray(dataset.images[chosen])[:, None], jnp.asarray(dataset.labels[chosen])[:, None])


def search_latents(
    problem: Problem,
    generator: Generator,
    num_steps: int,
    key: Key,
    params: Params,
    observations: Observation,
) -> tuple[Array, Latents]:
    """GI-z on updates of one image each: images `[T, 1, H, W, C]` and their latents, `[T, 1, ...]`."""
    attack = attacks.gias_latents(problem._replace(prior=Prior(generator, params)), horizon=num_steps)
    num_targets = jax.tree.leaves(observations.update)[0].shape[0]
    found = over_targets(run(attack, num_steps=num_steps), chunk_size=num_targets)(key, observations)
    return found.inputs, found.info["latents"]  # type: ignore[return-value]


def one_round(
    problem: Problem,
    generator: Generator,
    meta_optimizer: optax.GradientTransformation,
    config: Config,
    key: Key,
    learner: Learner,
    observations: Observation,
) -> tuple[Learner, Array]:
    """One round of observations: the generator after the meta-step, and the distance that GI-w ended with."""
    _, latents = search_latents(problem, generator, config.latent_steps, key, learner.params, observations)
    explained, distance = shared_weights(
        problem.client_update, generator, config.weight_steps, learner.params, latents, observations
    )
    towards = jax.tree.map(lambda old, new: 2 * (old - new), learner.params, explained)  # grad |theta - theta'|^2
    updates, opt_state = meta_optimizer.update(towards, learner.opt_state, learner.params)
    return Learner(optax.apply_updates(learner.params, updates), opt_state), distance


def shared_weights(
    client_update: ClientUpdateFn,
    generator: Generator,
    num_steps: int,
    params: Params,
    latents: Latents,
    observations: Observation,
    *,
    learning_rate: float = 1e-3,
) -> tuple[Params, Array]:
    """GI-w on one generator for all updates: its parameters `theta'`, and the mean distance they end with."""
    shared, per_target = split_shared(observations)

    def distance(weights: Params) -> Array:
        def of_one(one: Observation, its_latents: Latents) -> Array:
            batch = Batch(generator.apply(weights, its_latents), one.labels)  # type: ignore[arg-type]
            return cosine(client_update(shared["params"], batch), one.update)

        return jnp.mean(jax.vmap(of_one)(per_target, latents))

    optimizer = optax.adam(cosine_decay(learning_rate, num_steps))
    return descend(distance, optimizer, params, num_steps)


def descend(
    loss_fn: Callable[[Params], Array], optimizer: optax.GradientTransformation, params: Params, num_steps: int
) -> tuple[Params, Array]:
    """Where an optimizer gets in some steps, and the loss there."""

    def body(carry: tuple[Params, ArrayTree], _: None) -> tuple[tuple[Params, ArrayTree], None]:
        params, opt_state = carry
        updates, opt_state = optimizer.update(jax.grad(loss_fn)(params), opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), None

    (params, _), _ = jax.lax.scan(body, (params, optimizer.init(params)), None, length=num_steps)
    return params, loss_fn(params)


if __name__ == "__main__":
    main()
