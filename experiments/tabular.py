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
Measured: see experiments/README.md
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from experiments import harness
from jaxinvert import models, record_metrics, records, search
from jaxinvert.attacks import inverting_gradients, tableak
from jaxinvert.audit import controls
from jaxinvert.clients import fedsgd
from jaxinvert.data.tabular import Table, load_table
from jaxinvert.observe import observe_targets
from jaxinvert.types import Batch


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
        table = load_table(name)
        for batch_size in config.batch_sizes:
            rows += measure(config, table, batch_size)
            harness.publish("Records of tabular clients", rows, json_file=config.json)


def measure(config: Config, table: Table, batch_size: int) -> list[dict]:
    """All attacks and guesses on the clients of one batch size."""
    dataset, schema = table.dataset, table.schema
    rng = np.random.default_rng((config.seed, batch_size))
    chosen = np.stack([rng.choice(len(dataset.images), batch_size, replace=False) for _ in range(config.clients)])
    model = models.create(
        "mlp",
        features=config.features,
        input_shape=dataset.images.shape[1:],
        num_classes=dataset.num_classes,
        mean=dataset.mean,
        std=dataset.std,
    )
    client = fedsgd(models.cross_entropy(model.apply))
    model_key, attack_key, noise_key, plain_key = jax.random.split(jax.random.key(config.seed), 4)
    batches = Batch(jnp.asarray(dataset.images[chosen]), jnp.asarray(dataset.labels[chosen]))
    observations = observe_targets(client, model.init(model_key), batches)
    normalization: Any = {"mean": dataset.mean, "std": dataset.std}
    attack = jax.jit(
        search.over_targets(
            tableak(
                client,
                schema=schema,
                batch_size=batch_size,
                num_members=config.members,
                num_steps=config.steps,
                **normalization,
            )
        )
    )
    plain = jax.jit(
        search.over_targets(
            search.run(
                inverting_gradients(
                    client, batch_shape=batches.inputs.shape[1:], tv=0.0, horizon=config.steps, **normalization
                ),
                num_steps=config.steps,
            ),
            chunk_size=config.clients,
        )
    )
    begin = time.perf_counter()
    found = jax.device_get(attack(attack_key, observations))
    seconds = time.perf_counter() - begin
    random = jax.device_get(attack(attack_key, controls.random_update(noise_key, observations)))

    population = records.decode(schema, dataset.images)
    truth, tolerance = population[chosen], record_metrics.tolerances(schema, population)
    rest = [np.delete(population, own, axis=0) for own in chosen]

    def match(guessed: Sequence[np.ndarray]) -> list[record_metrics.RecordQuality]:
        return [record_metrics.evaluate_records(*pair, tolerance) for pair in zip(guessed, truth)]

    def match_encoded(inputs: np.ndarray) -> list[record_metrics.RecordQuality]:
        return match([records.decode(schema, batch) for batch in inputs])

    pooled = match_encoded(found.inputs)
    members = [match_encoded(member) for member in found.info["members"].swapaxes(0, 1)]
    attacks = {
        "pooled": pooled,
        "best": [members[best][client] for client, best in enumerate(found.info["member_losses"].argmin(axis=1))],
        "single": [quality for member in members for quality in member],
        "no softmax": match_encoded(np.asarray(plain(plain_key, observations).inputs)),
        "drawn": match([record_metrics.drawn_records(rng, others, batch_size) for others in rest]),
        "typical": match(
            [np.tile(record_metrics.typical_record(schema, others), (batch_size, 1)) for others in rest]
        ),
        "random update": match_encoded(random.inputs),
    }
    categorical = np.array([bool(column.categories) for column in schema])
    entropy = np.stack([spread[quality.permutation] for spread, quality in zip(found.info["entropy"], pooled)])
    confident = _lower_half(entropy, categorical)
    rows = []
    for name, qualities in attacks.items():
        correct = np.stack([quality.correct for quality in qualities])
        rows.append(
            {
                "table": dataset.name,
                "batch_size": batch_size,
                "attack": name,
                "clients": config.clients,
                "members": config.members,
                "steps": config.steps,
                "fields": float(correct.mean()),
                "categories": float(correct[..., categorical].mean()),
                "values": float(correct[..., ~categorical].mean()),
                "records": float(correct.all(axis=-1).mean()),
                "confident": float(correct[confident].mean()) if name == "pooled" else None,
                "other": float(correct[~confident].mean()) if name == "pooled" else None,
                "seconds_per_client": seconds / config.clients if name == "pooled" else None,
            }
        )
    return rows


def _lower_half(entropy: np.ndarray, categorical: np.ndarray) -> np.ndarray:
    """Where an entropy `[T, B, columns]` is at most the median of all columns of its kind."""
    lower = np.empty(entropy.shape, bool)
    for kind in (categorical, ~categorical):
        lower[..., kind] = entropy[..., kind] <= np.median(entropy[..., kind])
    return lower


if __name__ == "__main__":
    main()
