"""Tabular clients: what TabLeak reads of mixed records, against single searches, guesses and a null control.

Setting: FedSGD clients with an untrained perceptron of two hidden layers of 100 units, labels known, no defense;
every client draws its batch without replacement. A field is right if its category is the true one, or its value
within 0.319 standard deviations of the column; a record if all of its fields are. Records are matched one-to-one to
the truth. Seconds are those of an ensemble, compilation included.

    pooled           TabLeak: 30 members, medians and mean probabilities
    best             the member with the lowest attack loss
    single           the mean over the members
    no softmax       Inverting Gradients without prior on the encoded numbers, one start as long
    drawn, typical   guesses: columns from their marginals, and means with the most frequent categories
    random update    pooled, on normal noise in place of the update

`confident` is the share right of the pooled fields whose entropy over the ensemble is in the lower half of their
kind, `other` that of the rest.

Command:  python -m experiments.tabular --json experiments/results/tabular.json
Smoke:    python -m experiments.tabular --smoke
Measured: see experiments/details/tabular.md
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import jax
import numpy as np
import tyro

from experiments import harness
from jaxinvert import search
from jaxinvert.attacks import inverting_gradients
from jaxinvert.audit import controls
from jaxinvert.jobs import records
from jaxinvert.metrics import records as record_metrics


@dataclass(frozen=True)
class Config:
    """Setting of the experiment.

    Attributes:
      tables: by name.
      batch_sizes: of the clients.
      clients: of each batch size.
      members: of an ensemble.
      steps: of every search.
      features: widths of the hidden layers.
      seed: of network, batches and starts.
      smoke: a run of seconds that only shows that everything works.
      json: file for the rows, written after each.
    """

    tables: tuple[str, ...] = ("diabetes", "wine")
    batch_sizes: tuple[int, ...] = (1, 2, 4, 8, 16, 32)
    clients: int = 10
    members: int = 30
    steps: int = 1500
    features: tuple[int, ...] = (100, 100)
    seed: int = 0
    smoke: bool = False
    json: Path | None = None


def main(arguments: Sequence[str] | None = None) -> None:
    """Attacks clients of every table and batch size, and prints a row for each attack and guess."""
    config = tyro.cli(Config, description=__doc__, args=arguments)
    if config.smoke:
        config = replace(config, tables=("wine",), batch_sizes=(2,), clients=2, members=3, steps=5, features=(8,))
    rows = []
    for name in config.tables:
        for batch_size in config.batch_sizes:
            rows += measure(config, name, batch_size)
            harness.publish("Records of tabular clients", rows, json_file=config.json)


def measure(config: Config, name: str, batch_size: int) -> list[dict]:
    """All attacks and guesses on the clients of one batch size."""
    settings = records.RecordsConfig(
        table=name,
        widths=config.features,
        num_examples=batch_size,
        targets=config.clients,
        members=config.members,
        steps=config.steps,
        seed=config.seed,
    )
    task = records.prepare_records(settings)
    dataset, schema = task.table.dataset, task.table.schema
    _, attack_key = records.random_keys(settings)
    noise_key, plain_key = jax.random.split(jax.random.key(config.seed), 4)[2:]
    attack = jax.jit(search.over_targets(task.solve))
    plain = jax.jit(
        search.over_targets(
            search.run(inverting_gradients(task.problem, tv=0.0, horizon=config.steps), num_steps=config.steps),
            chunk_size=config.clients,
        )
    )
    begin = time.perf_counter()
    found = jax.device_get(attack(attack_key, task.observations))
    seconds = time.perf_counter() - begin
    random = jax.device_get(attack(attack_key, controls.random_update(noise_key, task.observations)))

    pooled, guesses = records.match_inputs(task, found.inputs), records.guess_records(settings, task)
    members = [records.match_inputs(task, member) for member in found.info["members"].swapaxes(0, 1)]
    attacks = {
        "pooled": pooled,
        "best": records.match_inputs(task, records.best_members(found)),
        "single": [quality for member in members for quality in member],
        "no softmax": records.match_inputs(task, np.asarray(plain(plain_key, task.observations).inputs)),
        **{name: records.match_records(task, guess) for name, guess in guesses.items()},
        "random update": records.match_inputs(task, random.inputs),
    }
    categorical = np.array([bool(column.categories) for column in schema])
    correct = np.stack([quality.correct for quality in pooled])
    entropy = np.stack([spread[quality.permutation] for spread, quality in zip(found.info["entropy"], pooled)])
    confident = _lower_half(entropy, categorical)
    by_entropy = {
        "confident": float(correct[confident].mean()),
        "other": float(correct[~confident].mean()),
        "seconds_per_client": seconds / config.clients,
    }
    return [
        {
            "table": dataset.name,
            "batch_size": batch_size,
            "attack": attack_name,
            "clients": config.clients,
            "members": config.members,
            "steps": config.steps,
            **record_metrics.rates(schema, qualities),
            **(by_entropy if attack_name == "pooled" else dict.fromkeys(by_entropy)),
        }
        for attack_name, qualities in attacks.items()
    ]


def _lower_half(entropy: np.ndarray, categorical: np.ndarray) -> np.ndarray:
    """Where an entropy `[T, B, columns]` is at most the median of all columns of its kind."""
    lower = np.empty(entropy.shape, bool)
    for kind in (categorical, ~categorical):
        lower[..., kind] = entropy[..., kind] <= np.median(entropy[..., kind])
    return lower


if __name__ == "__main__":
    main()
