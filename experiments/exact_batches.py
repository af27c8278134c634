"""Exact reconstruction of whole batches behind a dense ReLU layer: success against batch size and width.

Setting: FedSGD clients with an untrained perceptron of one hidden layer, labels unknown, server of threat model C,
float32 gradients; every batch has its own network and its own images, drawn without replacement. A batch is exact if
each of its images has at least 60 dB, after one-to-one matching; the interval is Clopper and Pearson's at 95 %. A
certificate is false if the batch is not exact. Seconds are those of one batch, compilation apart.

Command:  python -m experiments.exact_batches --data FILE.npz --json FILE.json
Smoke:    python -m experiments.exact_batches --smoke
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from scipy import stats

from experiments import harness
from jaxinvert import data, metrics, models
from jaxinvert.attacks import Problem, registry
from jaxinvert.clients import fedsgd
from jaxinvert.observation import threat_models
from jaxinvert.observation.observe import observe
from jaxinvert.types import Batch, SolveFn

EXACT_DB = 60.0


@dataclass(frozen=True)
class Config:
    """Setting of the experiment.

    Attributes:
      data: data set by name, folder or npz.
      settings: attack, width of the hidden layer and batch size of every row.
      batches: of each row.
      seed: of the networks, the images and the attacks.
      smoke: a run of seconds on the embedded photos that only shows that everything works.
      json: file for the rows, written after each.
    """

    data: str = "photos"
    settings: tuple[tuple[str, int, int], ...] = (
        ("spear", 200, 2),
        ("spear", 200, 4),
        ("spear", 200, 8),
        ("spear", 200, 10),
        ("spear", 200, 14),
        ("exact-batch", 200, 16),
        ("exact-batch", 200, 32),
        ("exact-batch", 512, 32),
        ("exact-batch", 1024, 16),
        ("exact-batch", 1024, 24),
        ("exact-batch", 1024, 32),
        ("cocktail-party", 512, 64),
        ("cocktail-party", 1024, 64),
        ("exact-batch", 1024, 48),
        ("exact-batch", 1024, 64),
    )
    batches: int = 20
    seed: int = 0
    smoke: bool = False
    json: Path | None = None


def main(arguments: Sequence[str] | None = None) -> None:
    """Attacks every row's batches and prints the table."""
    config = tyro.cli(Config, description=__doc__, args=arguments)
    if config.smoke:
        config = replace(config, data="photos", settings=(("exact-batch", 64, 3),), batches=1)
    dataset = data.load(config.data, split="test")
    rows = []
    for attack, width, batch_size in config.settings:
        rows.append(measure(config, dataset, attack, width, batch_size))
        print(f"done: {attack}, width {width}, B = {batch_size}: {rows[-1]['exact']} exact", flush=True)
        if config.json is not None and len(rows) < len(config.settings):
            harness.publish(_title(config), rows, json_file=config.json)
    harness.publish(_title(config), rows, json_file=config.json)


def measure(config: Config, dataset: data.Dataset, attack: str, width: int, batch_size: int) -> dict:
    """One row: many batches of one size behind one width."""
    model = models.create("mlp", features=(width,), like=dataset)
    client = jax.jit(fedsgd(model.loss))
    solve = cast(SolveFn, registry.REGISTRY[attack].build(Problem(client, model, batch_size)))
    compiled, outcomes = None, []
    for number in range(config.batches):
        rng = np.random.default_rng((config.seed, width, batch_size, number))
        chosen = rng.choice(len(dataset.images), batch_size, replace=False)
        batch = Batch(jnp.asarray(dataset.images[chosen]), jnp.asarray(dataset.labels[chosen]))
        params = jax.jit(model.init)(jax.random.key(rng.integers(2**31)))
        observation = observe(client, params, batch, threat_model=threat_models.LADDER["C"])
        key = jax.random.key(rng.integers(2**31))
        if compiled is None:
            compiled = jax.jit(solve).lower(key, observation).compile()
        begin = time.perf_counter()
        found = jax.block_until_ready(compiled(key, observation))
        seconds = time.perf_counter() - begin
        quality = metrics.evaluate(np.asarray(found.inputs), np.asarray(batch.inputs))
        outcomes.append(
            {
                "psnr": np.asarray(quality.psnr_db),
                "certified": bool(found.info.get("certified", False)),
                "labels": found.labels is not None
                and bool(np.all(np.asarray(found.labels)[quality.permutation] == np.asarray(batch.labels))),
                "seconds": seconds,
            }
        )
    psnr = np.stack([outcome["psnr"] for outcome in outcomes])
    exact, certified = psnr.min(axis=1) >= EXACT_DB, np.array([outcome["certified"] for outcome in outcomes])
    low, high = clopper_pearson(int(exact.sum()), len(exact))
    seconds = [outcome["seconds"] for outcome in outcomes]
    return {
        "attack": attack,
        "width": width,
        "batch_size": batch_size,
        "batches": len(outcomes),
        "exact": int(exact.sum()),
        "exact_low": low,
        "exact_high": high,
        "certified": int(certified.sum()),
        "false_certificates": int(np.sum(certified & ~exact)),
        "labels_exact": int(sum(outcome["labels"] for outcome in outcomes)),
        "worst_image_db": float(psnr.min()),
        "mean_psnr_db": float(psnr.mean()),
        "share_above_20_db": float(np.mean(psnr > 20)),
        "median_seconds": float(np.median(seconds)),
        "max_seconds": float(np.max(seconds)),
    }


def clopper_pearson(successes: int, trials: int) -> tuple[float, float]:
    """The exact 95 % confidence interval of a share."""
    low = stats.beta.ppf(0.025, successes, trials - successes + 1) if successes else 0.0
    high = stats.beta.ppf(0.975, successes + 1, trials - successes) if successes < trials else 1.0
    return float(low), float(high)


def _title(config: Config) -> str:
    return f"Exact batches behind a dense ReLU layer, {Path(config.data).stem}"


if __name__ == "__main__":
    main()
