"""Exact reconstruction of whole batches behind a dense ReLU layer: success against size, width, noise and steps.

Setting: clients with an untrained perceptron of one hidden layer, labels unknown, server of threat model C, float32
gradients; every batch has its own network and its own images, drawn without replacement. `noise` is the standard
deviation of Gaussian noise on every entry of the update, as DP-SGD's, in units of the update's root mean square.
`local_steps` above 1 are full-batch steps of rate 0.01, whose update is close to the sum of as many gradients. A
batch is exact if each of its images has at least 60 dB, after one-to-one matching; the interval is Clopper and
Pearson's at 95 %. A certificate is false if the batch is not exact. `size_read` counts the batches whose number of
examples the update alone tells (`rank.rank_above_noise`). Seconds are those of one batch, compilation apart.

Command:  python -m experiments.exact_batches --data FILE.npz --json FILE.json
Smoke:    python -m experiments.exact_batches --smoke
"""

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from scipy import stats

from experiments import harness
from jaxinvert import data, metrics, models
from jaxinvert.attacks import Problem, registry
from jaxinvert.attacks.closed_form.rank import rank_above_noise
from jaxinvert.clients import fedavg, fedsgd
from jaxinvert.defenses import gaussian_noise
from jaxinvert.models import Model
from jaxinvert.observation import threat_models
from jaxinvert.observation.observe import observe
from jaxinvert.trees import leaves_by_path
from jaxinvert.types import Batch, ClientUpdateFn, Key, Observation, SolveFn, Update

EXACT_DB = 60.0
RATE = 0.01


class Row(NamedTuple):
    """What tells rows apart."""

    attack: str
    width: int
    batch_size: int
    noise: float = 0.0
    local_steps: int = 1


NOISES = (1e-4, 1e-3, 1e-2)
ROWS = (
    *(Row("spear", 200, size) for size in (2, 4, 8, 10, 14)),
    *(Row("exact-batch", 200, size) for size in (16, 32)),
    Row("exact-batch", 512, 32),
    *(Row("exact-batch", 1024, size) for size in (16, 24, 32, 48, 64, 96, 128)),
    Row("exact-batch", 2048, 256),
    *(Row("cocktail-party", width, 64) for width in (512, 1024)),
    *(Row("exact-batch", width, size, noise) for width in (512, 1024) for size in (16, 32, 64) for noise in NOISES),
    *(Row("exact-batch", 1024, size, 0.0, steps) for size in (32, 64) for steps in (2, 5)),
)


@dataclass(frozen=True)
class Config:
    """Setting of the experiment.

    Attributes:
      data: data set by name, folder or npz.
      rows: attack, width of the hidden layer, batch size, noise and local steps of every row.
      batches: of each row.
      seed: of the networks, the images and the attacks.
      smoke: a run of seconds on the embedded photos that only shows that everything works.
      json: file for the rows, written after each batch; those that it holds with all batches are not run again.
    """

    data: str = "photos"
    rows: tuple[tuple[str, int, int, float, int], ...] = ROWS
    batches: int = 20
    seed: int = 0
    smoke: bool = False
    json: Path | None = None


def main(arguments: Sequence[str] | None = None) -> None:
    """Attacks the batches of every row that is missing and prints the table."""
    config = tyro.cli(Config, description=__doc__, args=arguments)
    if config.smoke:
        config = replace(config, data="photos", rows=(Row("exact-batch", 64, 3),), batches=1)
    dataset, title = data.load(config.data, split="test"), "Exact batches behind a dense ReLU layer"
    kept = {setting(row): row for row in harness.kept_rows(config.json)}
    for wanted in map(Row._make, config.rows):
        of_row = (*wanted, Path(config.data).stem, config.seed)
        if kept.get(of_row, {}).get("batches", 0) >= config.batches:
            continue
        for found in outcomes(config, dataset, wanted):
            facts = {"batches": len(found), "data": Path(config.data).stem, "seed": config.seed}
            kept[of_row] = {**wanted._asdict(), **facts, **statistics(found)}
            if config.json is not None:
                harness.save(config.json, title, in_order(kept.values()))
        print(f"done: {wanted}: {kept[of_row]['exact']} exact", flush=True)
    harness.publish(title, in_order(kept.values()), json_file=config.json)


def setting(row: Mapping) -> tuple:
    """What tells a row from others, but for the number of its batches."""
    return (*(row[name] for name in Row._fields), row["data"], row["seed"])


def in_order(rows: Iterable[Mapping]) -> list[Mapping]:
    """In the order of `ROWS`; others last."""
    order = {row: number for number, row in enumerate(ROWS)}
    return sorted(rows, key=lambda row: order.get(Row(*(row[name] for name in Row._fields)), len(order)))


def outcomes(config: Config, dataset: data.Dataset, row: Row) -> Iterator[list[dict]]:
    """Attacks batches of one size behind one width, and yields what was found so far after each."""
    model = models.create("mlp", features=(row.width,), like=dataset)
    client = jax.jit(client_of(model, row.local_steps))
    solve = cast(SolveFn, registry.REGISTRY[row.attack].build(Problem(client, model, row.batch_size)))
    compiled, found_so_far = None, []
    for number in range(config.batches):
        rng = np.random.default_rng((config.seed, row.width, row.batch_size, number))
        chosen = rng.choice(len(dataset.images), row.batch_size, replace=False)
        batch = Batch(jnp.asarray(dataset.images[chosen]), jnp.asarray(dataset.labels[chosen]))
        params = jax.jit(model.init)(jax.random.key(rng.integers(2**31)))
        key = jax.random.key(rng.integers(2**31))
        observation = observe(client, params, batch, threat_model=threat_models.LADDER["C"])
        observation = with_noise(jax.random.fold_in(key, 1), observation, row.noise)
        if compiled is None:
            compiled = jax.jit(solve).lower(key, observation).compile()
        begin = time.perf_counter()
        found = jax.block_until_ready(compiled(key, observation))
        seconds = time.perf_counter() - begin
        quality = metrics.evaluate(np.asarray(found.inputs), np.asarray(batch.inputs))
        found_so_far.append(
            {
                "psnr": np.asarray(quality.psnr_db),
                "certified": bool(found.info.get("certified", False)),
                "size_read": size_read(observation.update) == row.batch_size,
                "labels": found.labels is not None
                and bool(np.all(np.asarray(found.labels)[quality.permutation] == np.asarray(batch.labels))),
                "seconds": seconds,
            }
        )
        yield found_so_far


def client_of(model: Model, local_steps: int) -> ClientUpdateFn:
    """FedSGD for one step; for more, FedAvg in full batches."""
    if local_steps == 1:
        return fedsgd(model.loss)
    return fedavg(model.loss, optimizer=optax.sgd(RATE), num_epochs=local_steps)


def with_noise(key: Key, observation: Observation, noise: float) -> Observation:
    """Adds Gaussian noise to the update, in units of its root mean square."""
    if noise == 0:
        return observation
    leaves = jax.tree.leaves(observation.update)
    power = sum(float(jnp.sum(jnp.square(leaf))) for leaf in leaves) / sum(leaf.size for leaf in leaves)
    return observation._replace(update=gaussian_noise(noise * power**0.5)(key, observation.update))


def size_read(update: Update) -> int:
    """The batch size as the rank of the first layer's gradient."""
    kernels = [leaf for leaf in leaves_by_path(update).values() if leaf.ndim == 2]
    largest = max(kernels, key=lambda kernel: kernel.size)
    return rank_above_noise(np.asarray(largest)).rank


def statistics(found: Sequence[dict]) -> dict:
    """Over all batches of a row."""
    psnr = np.stack([outcome["psnr"] for outcome in found])
    exact, certified = psnr.min(axis=1) >= EXACT_DB, np.array([outcome["certified"] for outcome in found])
    low, high = clopper_pearson(int(exact.sum()), len(exact))
    seconds = [outcome["seconds"] for outcome in found]
    return {
        "exact": int(exact.sum()),
        "exact_low": low,
        "exact_high": high,
        "certified": int(certified.sum()),
        "false_certificates": int(np.sum(certified & ~exact)),
        "labels_exact": int(sum(outcome["labels"] for outcome in found)),
        "size_read": int(sum(outcome["size_read"] for outcome in found)),
        "worst_image_db": float(psnr.min()),
        "mean_psnr_db": float(psnr.mean()),
        "share_above_20_db": float(np.mean(psnr > 20)),
        "share_above_40_db": float(np.mean(psnr >= 40)),
        "median_seconds": float(np.median(seconds)),
        "max_seconds": float(np.max(seconds)),
    }


def clopper_pearson(successes: int, trials: int) -> tuple[float, float]:
    """The exact 95 % confidence interval of a share."""
    low = stats.beta.ppf(0.025, successes, trials - successes + 1) if successes else 0.0
    high = stats.beta.ppf(0.975, successes + 1, trials - successes) if successes < trials else 1.0
    return float(low), float(high)


if __name__ == "__main__":
    main()
