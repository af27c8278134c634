"""BatchNorm leakage: what the running statistics that a client sends add to the leak, by round, size and noise.

Setting: clients in train mode send an update and running statistics after one step on 1 or 4 images, or two steps of
4 on 8 images; labels are known. Attacks are spectral matching and the published one (Hatamizadeh et al. 2022), each
with the recovered statistics and without; spectral matching also on the statistics alone. All start at a public
prior, the mean of 100 training images, which is the first row of each setting. `gain` is the PSNR over that of the
same attack without statistics, paired by client, with a 95 % interval; `excess` the same over the prior.

RDLV is the gain in SSIM over the prior, for each client the largest over its reconstructions and images, then the
mean over clients; IIP is whether the nearest of all test images and 500 others is the true one. `round` is the epoch
of the network, noise the sigma_0 of N(0, (sigma_0 P95)^2) on every tensor that is sent. Published (chest X-rays,
ResNet-18): one image leaks with RDLV about 0.5 until sigma_0 = 25, clients of 8 images stay below 0.

Command:  python -m experiments.batch_norm_leakage --data FILE.npz --checkpoints FILE.safetensors ... --json FILE
Smoke:    python -m experiments.batch_norm_leakage --smoke
Measured: see experiments/details/batch-norm-leakage.md
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro

from experiments import harness
from jaxinvert import attacks, clients, data, defenses, metrics, models, search
from jaxinvert.attacks import Problem, objectives
from jaxinvert.audit import evidence, identified_of_all
from jaxinvert.clients import running_statistics
from jaxinvert.observation.observe import observe_targets
from jaxinvert.observation.threat_models import LADDER
from jaxinvert.types import (
    Array,
    ArrayTree,
    Attack,
    Batch,
    ClientUpdateFn,
    Key,
    LocalTraining,
    Observation,
    Params,
    Update,
)


@dataclass(frozen=True)
class Config:
    """Setting of the experiment.

    Attributes:
      data: data set by name, folder or npz.
      model: network with BatchNorm, by name.
      checkpoints: its parameters at several epochs; by default fresh ones.
      targets: clients of one image each; of 4 images there are half as many, of 8 a quarter.
      images: sizes of the clients.
      first: where the clients' images begin in the test set.
      attacks: which of the attacks.
      steps: of the attack.
      noise: sigma_0, tried on the last checkpoint.
      local_lr: the clients' learning rate.
      seed: of the network, the starts and the noise.
      smoke: a run of seconds on the embedded photos that only shows that everything works.
      json: file for the rows.
    """

    data: str = "cifar10"
    model: str = "small-convnet-bn16"
    checkpoints: tuple[Path, ...] = ()
    targets: int = 8
    images: tuple[int, ...] = (1, 4, 8)
    first: int = 0
    attacks: tuple[str, ...] = ("spectral", "batch-norm-leakage")
    steps: int = 300
    noise: tuple[float, ...] = (0.1, 1.0)
    local_lr: float = 0.01
    seed: int = 0
    smoke: bool = False
    json: Path | None = None


class Client(NamedTuple):
    """How many images a client has, how many of them it takes at each of its local steps, and how rare it is."""

    num_images: int
    batch_size: int
    share: float


CLIENTS = (Client(1, 1, 1.0), Client(4, 4, 0.5), Client(8, 4, 0.25))
NOT_USED = "not used"
VARIANTS: tuple[tuple[str, str, dict[str, float]], ...] = (
    ("spectral", NOT_USED, {"update": 1.0, "batch_norm": 0.0}),
    ("spectral", "recovered", {"update": 1.0, "batch_norm": 1.0}),
    ("spectral", "alone", {"update": 0.0, "batch_norm": 1.0}),
    ("batch-norm-leakage", NOT_USED, {"update": 1e-3, "batch_norm": 0.0}),
    ("batch-norm-leakage", "recovered", {"update": 1e-3, "batch_norm": 0.1}),
)
"""Attack, use of the statistics, and the weights that make it; without statistics before with them."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Attacks with and without the statistics in every round, then under noise in the last one."""
    config = tyro.cli(Config, description=__doc__, args=arguments)
    if config.smoke:
        config = replace(
            config,
            data="photos",
            model="small-convnet-bn4",
            checkpoints=(),
            targets=1,
            images=(1,),
            attacks=("batch-norm-leakage",),
            steps=1,
            noise=(),
        )
    checkpoints: Sequence[Path | None] = sorted(config.checkpoints, key=_epoch) or [None]
    title = f"BatchNorm leakage, {config.model}, {Path(config.data).stem}"
    rows: list[dict] = []
    for client in (client for client in CLIENTS if client.num_images in config.images):
        for checkpoint in checkpoints:
            noise = (0.0, *(config.noise if checkpoint == checkpoints[-1] else ()))
            rows += compare(config, client, checkpoint, noise=noise)
            print(f"done: {client.num_images} images, round {rows[-1]['round']}", flush=True)
            if config.json is not None:
                harness.save(config.json, title, rows)
    harness.publish(title, rows, json_file=config.json)


def compare(config: Config, client: Client, checkpoint: Path | None, *, noise: Sequence[float]) -> list[dict]:
    """One network and kind of client: one row for each way to attack and each noise."""
    victims = data.load(config.data, split="test")
    others = data.load(config.data, split="train").images
    public = jnp.asarray(others[:100]).mean(axis=0)
    round_ = make_round(config, client, checkpoint, victims)
    searches = {attack: make_search(attack, client, round_, public) for attack in config.attacks}
    num_targets = max(1, int(config.targets * client.share))
    own = np.arange(config.first, config.first + num_targets * client.num_images)
    truth = Batch(jnp.asarray(victims.images[own]), jnp.asarray(victims.labels[own]))
    batches = jax.tree.map(lambda leaf: leaf.reshape(num_targets, client.num_images, *leaf.shape[1:]), truth)
    candidates = np.concatenate([victims.images, others[-500:]])

    def row(attack: str, statistics: str, noise: float, found: np.ndarray) -> tuple[np.ndarray, dict]:
        quality = [metrics.evaluate(f, np.asarray(t)) for f, t in zip(found, batches.inputs)]
        leakage = [leakage_of_client(f, np.asarray(t), public) for f, t in zip(found, batches.inputs)]
        psnr_db = np.array([np.mean(q.psnr_db) for q in quality])
        return psnr_db, {
            "images_per_client": client.num_images,
            "round": round_.facts.get("epochs", 0),
            "accuracy": round_.facts.get("test_accuracy"),
            "noise": noise,
            "attack": attack,
            "statistics": statistics,
            "clients": num_targets,
            "steps": config.steps,
            "mean_psnr_db": float(psnr_db.mean()),
            "mean_ssim": float(np.mean([q.ssim for q in quality])),
            "rdlv": float(np.mean(leakage)),
            "rdlv_max": float(np.max(leakage)),
            "candidates": len(candidates),
            "iip": float(identified_of_all(found, candidates, own.reshape(num_targets, -1)).mean()),
        }

    observe_all = make_observer(round_, batches)
    prior_db, prior = row("none", "-", 0.0, np.broadcast_to(public, batches.inputs.shape))
    rows = [prior]
    for scale in noise:
        seen = observe_all(jax.random.key(config.seed + 2), scale)._replace(
            local_training=LocalTraining(config.local_lr, client.num_images // client.batch_size)
        )
        without_db: dict[str, np.ndarray] = {}
        for attack, statistics, weights in VARIANTS:
            if attack not in searches:
                continue
            settings = {**weights, "steps": config.steps}
            *_, last = searches[attack](jax.random.key(config.seed + 1), seen, settings, num_steps=config.steps)
            psnr_db, measured = row(attack, statistics, scale, np.asarray(last.reconstruct().inputs))
            measured |= _interval("excess", evidence.excess(psnr_db, prior_db))
            if statistics == NOT_USED:
                without_db[attack] = psnr_db
            else:
                measured |= _interval("gain", evidence.excess(psnr_db, without_db[attack]))
            rows.append(measured | {"seconds_run": last.seconds})
    columns = dict.fromkeys(name for measured in rows for name in measured)
    return [{name: measured.get(name) for name in columns} for measured in rows]


def _interval(name: str, excess: evidence.Excess) -> dict[str, float]:
    return {f"{name}_db": excess.mean, f"{name}_low_db": excess.low, f"{name}_high_db": excess.high}


def make_search(attack: str, client: Client, round_: "Round", public: Array) -> search.Stepwise:
    """The attack, which takes its number of steps and the weights of update and statistics as settings."""
    problem = Problem(round_.client_update, round_.model, client.num_images, sent_statistics=round_.sent_statistics)

    def spectral(settings: dict[str, Any]) -> Attack:
        def weighted(simulated: Update, observed: Update) -> Array:
            return settings["update"] * objectives.cosine(simulated, observed)

        return attacks.spectral(
            problem._replace(objective=weighted),
            batch_norm=settings["batch_norm"],
            horizon=settings["steps"],
            start_images=public,
        )

    def published(settings: dict[str, Any]) -> Attack:
        return attacks.batch_norm_leakage(
            problem,
            matching=settings["update"],
            batch_norm=settings["batch_norm"],
            horizon=settings["steps"],
            start_images=public,
        )

    return search.Stepwise({"spectral": spectral, "batch-norm-leakage": published}[attack])


def leakage_of_client(found: np.ndarray, images: np.ndarray, prior: Array) -> float:
    """RDLV as published: the largest over reconstructions `[B, ...]` and then over the client's images `[B, ...]`."""
    pairs = np.broadcast_arrays(found[:, None], images[None])
    leakage = metrics.relative_data_leakage(
        metrics.ssim(*pairs), metrics.ssim(np.broadcast_to(prior, images.shape), images)[None]
    )
    return float(leakage.max())


class Round(NamedTuple):
    """The network at one epoch, and what clients compute on it."""

    model: models.Model
    params: Params
    facts: dict[str, Any]
    client_update: ClientUpdateFn
    sent_statistics: Callable[[Params, Batch], ArrayTree]


def make_round(config: Config, client: Client, checkpoint: Path | None, victims: data.Dataset) -> Round:
    """BatchNorm in train mode, parameters from the checkpoint or fresh."""
    facts = {} if checkpoint is None else models.read_facts(checkpoint)
    model = models.create(
        config.model, like=victims, mean=facts.get("mean"), std=facts.get("std"), batch_norm="train"
    )
    params = jax.jit(model.init)(jax.random.key(config.seed))
    if checkpoint is not None:
        params = models.load_checkpoint(checkpoint, params)
    loss_fn = model.loss
    training: dict[str, Any] = {"optimizer": optax.sgd(config.local_lr), "batch_size": client.batch_size}
    measure = clients.local_batch_statistics(loss_fn, model.batch_statistics, **training)

    def sent_statistics(params: Params, batch: Batch) -> ArrayTree:
        return running_statistics.advance(
            params["batch_stats"], measure(params, batch), momentum=models.BATCH_NORM_MOMENTUM
        )

    return Round(model, params, facts, clients.fedavg(loss_fn, **training), sent_statistics)


def make_observer(round_: Round, batches: Batch) -> Callable[[Key, float], Observation]:
    """Returns `(key, sigma_0) -> what the server sees of all clients`, noise on update and statistics alike."""
    params = round_.params

    @jax.jit
    def observe_all(key: Key, noise: Array) -> Observation:
        defense = defenses.percentile_noise(noise)
        of_updates, of_statistics = jax.random.split(key)

        def statistics(params: Params, batch: Batch) -> ArrayTree:
            return jax.tree.map(jnp.subtract, round_.sent_statistics(params, batch), params["batch_stats"])

        moved = jax.vmap(statistics, in_axes=(None, 0))(params, batches)
        keys = jax.random.split(of_statistics, len(batches.inputs))
        noisy = jax.vmap(defense)(keys, moved)
        seen = observe_targets(
            round_.client_update,
            params,
            batches,
            threat_model=LADDER["E"],
            defense=defense,
            defense_parameters={"scale": noise},
            key=of_updates,
        )
        return seen._replace(batch_stats=jax.tree.map(lambda r, m: r[None] + m, params["batch_stats"], noisy))

    return lambda key, noise: observe_all(key, noise)._replace(num_examples=batches.inputs.shape[1])


def _epoch(checkpoint: Path) -> int:
    return models.read_facts(checkpoint)["epochs"]


if __name__ == "__main__":
    main()
