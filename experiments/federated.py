"""What the studies of defenses in federated training share: the clients, the server that trains, and the attacker."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxinvert import attacks, clients, data, metrics, models, search
from jaxinvert.attacks import Problem
from jaxinvert.audit import identified_of_all
from jaxinvert.federation import (
    Federation,
    Population,
    Snapshot,
    Training,
    dirichlet_split,
    federated_averaging,
    populate,
)
from jaxinvert.observation.observe import observe_targets
from jaxinvert.types import Array, Batch, ClientUpdateFn, Defense, Observation, Params

MakeDefense = Callable[[Any], Defense]
"""`strength -> Defense`; the strength is traced, so that all strengths are one program."""


@dataclass(frozen=True)
class Setting:
    """Federated training, and who is attacked.

    Attributes:
      data: data set by name, folder or npz; the clients hold its "train", accuracy is that on "test".
      model: network by name, without BatchNorm.
      clients: that there are.
      concentration: of the Dirichlet distribution by which the clients' classes differ; "inf" = IID.
      clients_per_round: drawn in each round.
      examples: behind one client's update, which is their gradient.
      learning_rate: of the server, Adam: it takes updates of any scale, so that no defense needs one of its own.
      targets: clients that are attacked, each with its first examples.
      steps: of the attack, Inverting Gradients with known labels and one start.
      tv: the attack's weight of the total variation.
      seed: of the network, the clients, the rounds and the attack.
    """

    data: str = "cifar10"
    model: str = "lenet"
    clients: int = 100
    concentration: float = float("inf")
    clients_per_round: int = 32
    examples: int = 1
    learning_rate: float = 0.01
    targets: int = 10
    steps: int = 600
    tv: float = 0.01
    seed: int = 0


SMOKE = {"data": "photos", "model": "mlp", "clients": 8, "clients_per_round": 2, "targets": 2, "steps": 2}
"""What a run of seconds changes."""


class Task(NamedTuple):
    """A setting with its data and functions.

    Attributes:
      model: the network.
      params: its parameters before training.
      client_update: what every client computes.
      population: all clients.
      test: examples that no client holds.
      attacked: `[T, B, ...]` examples of the clients that are attacked.
      public: `[H, W, C]` the mean test image, the best guess of who sees no update.
    """

    model: models.Model
    params: Params
    client_update: ClientUpdateFn
    population: Population
    test: Batch
    attacked: Batch
    public: Array


def prepare(setting: Setting) -> Task:
    """Loads the data, deals it to the clients, and starts the network."""
    training, test = (data.load(setting.data, split=split) for split in ("train", "test"))
    model = models.create(setting.model, like=training)
    split = dirichlet_split(
        np.random.default_rng(setting.seed),
        training.labels,
        num_clients=setting.clients,
        concentration=setting.concentration,
    )
    population = populate(training.batch(), split)
    attacked = population.members[: setting.targets, : setting.examples]
    return Task(
        model=model,
        params=jax.jit(model.init)(jax.random.key(setting.seed)),
        client_update=clients.fedsgd(model.loss),
        population=population,
        test=test.batch(),
        attacked=jax.tree.map(lambda leaf: leaf[attacked], population.examples),
        public=jnp.asarray(test.images.mean(axis=0)),
    )


def train(
    setting: Setting, task: Task, make_defense: MakeDefense, strengths: Sequence[float], *, rounds: Sequence[int]
) -> list[list[Snapshot]]:
    """For every strength of a defense a training of its own: snapshots after each of `rounds`."""

    def make_federation(strength: Array) -> Federation:
        return federated_averaging(
            task.client_update,
            clients_per_round=setting.clients_per_round,
            examples_per_client=setting.examples,
            defense=make_defense(strength),
            server_optimizer=optax.adam(setting.learning_rate),
        )

    training = Training(make_federation, task.model.apply)
    key = jax.random.key(setting.seed + 1)
    return [
        list(training(key, task.params, task.population, task.test, strength, rounds=rounds))
        for strength in strengths
    ]


def make_attack(
    setting: Setting, task: Task, *, start_images: Array | None = None
) -> Callable[[MakeDefense], Callable[[Params, float], np.ndarray]]:
    """The same attack on every defense, `make_defense -> (params, strength) -> images [T, B, ...]`; it knows of none.

    Args:
      setting: of the study.
      task: what comes of it.
      start_images: `[H, W, C]` what the attack starts from; `None` = normal noise.
    """
    problem = Problem(task.client_update, task.model, num_examples=task.attacked.inputs.shape[1])
    search_all = search.Stepwise(
        lambda horizon: attacks.inverting_gradients(
            problem, tv=setting.tv, horizon=horizon, start_images=start_images
        )
    )
    defense_key, attack_key = jax.random.split(jax.random.key(setting.seed + 2))

    def on(make_defense: MakeDefense) -> Callable[[Params, float], np.ndarray]:
        @jax.jit
        def observe(params: Params, attacked: Batch, strength: Array) -> Observation:
            seen = observe_targets(
                task.client_update, params, attacked, defense=make_defense(strength), key=defense_key
            )
            return seen._replace(num_examples=None, local_training=None, defense=None)

        def attack(params: Params, strength: float) -> np.ndarray:
            seen = observe(params, task.attacked, jnp.float32(strength))
            *_, last = search_all(attack_key, seen, setting.steps, num_steps=setting.steps)
            return np.asarray(last.reconstruct().inputs)

        return attack

    return on


def leakage(task: Task, found: np.ndarray) -> dict[str, float]:
    """How well images `[T, B, ...]` show the attacked ones, and whether they tell them from the test images."""
    truth = np.asarray(task.attacked.inputs)
    quality = [metrics.evaluate(*pair) for pair in zip(found, truth)]
    candidates = np.concatenate([*truth, np.asarray(task.test.inputs)])
    private = np.arange(truth.shape[0] * truth.shape[1]).reshape(truth.shape[:2])
    return {
        "median_psnr_db": float(np.median([q.psnr_db for q in quality])),
        "median_ssim": float(np.median([q.ssim for q in quality])),
        "identified": float(identified_of_all(found, candidates, private).mean()),
    }
