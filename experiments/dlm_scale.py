"""Does the learning rate come out of the model difference alone? k of DLM against 1 / rate, ten starts.

Setting: an MLP with 32 ReLU units, one step of SGD with rate 0.01 on one image, known to the attacker only as two
models; k starts at 60, 80, ..., 240 for a true 100; Adam 0.1 (Zhao et al. 2022 report that k converges to 100 from
all starts). Within 5 %: share of starts and images whose k ends in 95 ... 105. DLM+ has no k. "closed-form" needs no
search: behind a dense layer images are quotients of gradients, of which no rate is left, and then k is `<g, dW> /
|dW|^2`.

Command:  python -m experiments.dlm_scale --data FILE.npz --json FILE
Smoke:    python -m experiments.dlm_scale --smoke
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro

from experiments import harness
from jaxinvert import attacks, clients, data, labels, metrics, models, search
from jaxinvert.attacks import Problem
from jaxinvert.observation.observe import observe_targets
from jaxinvert.observation.threat_models import LADDER
from jaxinvert.types import Array, Attack, Batch, Observation, Reconstruction

ROWS = (("dlm", 1), ("dlm-plus", 1), ("dlm-best-scale", 1), ("dlm-best-scale", 8), ("closed-form", 1))
"""Attacks with their numbers of restarts for each start of k; the lowest attack loss wins."""


@dataclass(frozen=True)
class Config:
    """Setting of the experiment.

    Attributes:
      data: data set by name, folder or npz.
      num_images: clients.
      starts: of k.
      steps: of Adam.
      learning_rate: the client's.
      seed: of the network and the starts.
      smoke: a run of seconds on the embedded photos that only shows that everything works.
      json: file for the rows.
    """

    data: str = "photos"
    num_images: int = 5
    starts: tuple[float, ...] = tuple(float(k) for k in range(60, 241, 20))
    steps: int = 5000
    learning_rate: float = 0.01
    seed: int = 0
    smoke: bool = False
    json: Path | None = None


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the attacks, in a smoke run the quick ones, and prints a row each."""
    config = tyro.cli(Config, description=__doc__, args=arguments)
    if config.smoke:
        config = replace(config, data="photos", num_images=1, starts=(60.0, 100.0), steps=5)
    rows = [measure(config, name, restarts) for name, restarts in (ROWS[2:] if config.smoke else ROWS)]
    harness.publish(f"DLM, MLP, {Path(config.data).stem}", rows, json_file=config.json)


def measure(config: Config, name: str, num_restarts: int) -> dict:
    """One attack on all images from all starts."""
    dataset = data.load(config.data, split=f"test[:{config.num_images}]")
    model = models.create(
        "mlp", input_shape=dataset.images.shape[1:], num_classes=dataset.num_classes, features=(32,)
    )
    params = jax.jit(model.init)(jax.random.key(config.seed))
    client = jax.jit(clients.fedavg(model.loss, optimizer=optax.sgd(config.learning_rate)))
    batches = Batch(jnp.asarray(dataset.images)[:, None], jnp.asarray(dataset.labels)[:, None])
    observations = observe_targets(client, params, batches, threat_model=LADDER["C"]._replace(local_training=False))
    gradient, rule = clients.fedsgd(model.loss), labels.bias_sign(head=model.head)
    problem = Problem(gradient, model, num_examples=1)

    def attack(start: Array) -> Attack:
        if name == "dlm":
            return attacks.dlm(problem, initial_scale=start)
        if name == "dlm-plus":
            return attacks.dlm_plus(problem)
        return attacks.dlm_best_scale(problem, rule=rule)

    shared, per_target = search.split_shared(observations)
    keys = jax.random.split(jax.random.key(config.seed + 1), len(config.starts))

    def closed_form(key: Array, observation: Observation) -> Reconstruction:
        found = attacks.dense_layer(problem)(key, observation)
        batch = Batch(found.inputs, labels.labels_from_counts(rule(observation), 1))
        scale = attacks.best_scale(gradient(params, batch), observation.update)
        return found._replace(info={"scale": scale})

    def one(target: Observation, key: Array, start: Array) -> Reconstruction:
        solve = closed_form if name == "closed-form" else search.run(attack(start), num_steps=config.steps)
        return search.best_of(solve, num_restarts=num_restarts)(key, target._replace(**shared))

    over_starts: Callable = jax.vmap(one, in_axes=(None, 0, 0))
    found = jax.jit(lambda targets: jax.lax.map(lambda t: over_starts(t, keys, jnp.array(config.starts)), targets))(
        per_target
    )
    psnr = np.array(
        [
            [metrics.evaluate(np.asarray(images), np.asarray(truth)).psnr_db[0] for images in starts]
            for starts, truth in zip(found.inputs, batches.inputs)
        ]
    )
    scale = np.asarray(found.info["scale"]) * config.learning_rate if "scale" in found.info else None
    return {
        "attack": name,
        "restarts": num_restarts,
        "images": config.num_images,
        "starts": len(config.starts),
        "steps": config.steps,
        "k_within_5_percent": None if scale is None else float(np.mean(np.abs(scale - 1) < 0.05)),
        "median_k_over_true": None if scale is None else float(np.median(scale)),
        "median_psnr_db": float(np.median(psnr)),
        "share_above_30_db": float(np.mean(psnr > 30)),
    }


if __name__ == "__main__":
    main()
