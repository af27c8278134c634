"""Text of clients that train low-rank adapters (LoRA) only: what the span checks of both factors give away.

Setting: FedSGD clients with sequences of random tokens, each on an untrained decoder of its own with adapters at
query and value of every attention. In round 0, `B` is zero and so is the gradient of `A`; in round 1, the adapters
have had one step on other text. `tokens` is the share of right tokens in sequences matched one-to-one, `guess` that
of tokens drawn from the same distribution, `noise` that of the same attack on a random update. A batch is exact if
its sequences with all labels are; `low` and `high` are the exact 95 % interval of that rate. `possible` is the most
distinct tokens that the check holds, `distinct` the largest number in a batch.

Command:  python -m experiments.adapters --json FILE.json
Smoke:    python -m experiments.adapters --smoke
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import tyro

from experiments import harness
from jaxinvert.audit.clientwise import random_update
from jaxinvert.audit.evidence import rate
from jaxinvert.jobs import text
from jaxinvert.metrics.records import evaluate_records


class Row(NamedTuple):
    """One row: rank of the adapters, sequences, tokens of each, and rounds before the observed one."""

    rank: int
    sequences: int
    length: int
    round: int


@dataclass(frozen=True)
class Config:
    """Setting of the experiment.

    Attributes:
      rows: rank, sequences, tokens of each, and rounds before the observed one.
      vocabulary: number of tokens that there are.
      batches: of each row.
      seed: of the networks and the text.
      smoke: a run of seconds that only shows that everything works.
      json: file for the rows.
    """

    rows: tuple[Row, ...] = (
        Row(4, 1, 3, 0),
        Row(4, 1, 8, 0),
        Row(4, 1, 8, 1),
        Row(4, 4, 2, 1),
        Row(4, 4, 8, 1),
        Row(4, 16, 8, 1),
        Row(8, 1, 7, 0),
        Row(8, 1, 8, 0),
        Row(8, 1, 16, 1),
        Row(8, 4, 4, 1),
        Row(8, 4, 8, 1),
        Row(8, 16, 8, 1),
    )
    vocabulary: int = 500
    batches: int = 10
    seed: int = 0
    smoke: bool = False
    json: Path | None = None


def main(arguments: Sequence[str] | None = None) -> None:
    """Attacks every row's batches and prints the table."""
    config = tyro.cli(Config, description=__doc__, args=arguments)
    if config.smoke:
        config = replace(config, rows=(Row(2, 1, 2, 1),), vocabulary=20, batches=1)
    rows = []
    for row in config.rows:
        rows.append(measure(config, row))
        print(f"done: {row}: {rows[-1]['exact']} exact", flush=True)
    harness.publish(f"Adapters on a decoder, {config.vocabulary} tokens", rows, json_file=config.json)


def measure(config: Config, row: Row) -> dict[str, Any]:
    """One row: many batches."""
    job = text.TextConfig(
        num_sequences=row.sequences,
        length=row.length,
        vocabulary=config.vocabulary,
        width=16 if config.smoke else 64,
        depth=1 if config.smoke else 2,
        targets=config.batches,
        seed=config.seed,
        lora_rank=row.rank,
        lora_rounds=row.round,
    )
    task = text.prepare_text(job)
    attacked, on_noise, distinct = [], [], 0
    for number in range(config.batches):
        batch = text.draw_text(job, number)
        observation = text.observe_text(job, task, number, batch)
        attacked.append(text.AttackedText(batch, jax.device_get(task.solve(jax.random.key(0), observation))))
        noise = task.solve(jax.random.key(0), random_update(jax.random.key(number), observation))
        quality = evaluate_records(noise.inputs, batch.inputs, np.zeros(row.length))
        on_noise.append(quality.correct.mean())
        distinct = max(distinct, sum(len(set(column)) for column in np.asarray(batch.inputs).T.tolist()))
    summary = text.measure_text(job, attacked)
    rates, exact = summary["rates"], sum(target["exact"] for target in summary["targets"])
    exactly = rate(exact, config.batches, chance=0.0)
    certified = [target["certified"] for target in summary["targets"]]
    return {
        **row._asdict(),
        "possible": 2 * row.rank if row.round else row.rank - 1,
        "distinct": distinct,
        "batches": config.batches,
        "exact": exact,
        "low": exactly.low,
        "high": exactly.high,
        "certified": sum(certified),
        "false_certificates": sum(
            certified and not target["exact"] for certified, target in zip(certified, summary["targets"])
        ),
        "tokens": rates["dager"]["tokens"],
        "guess": rates["guess: drawn"]["tokens"],
        "noise": float(np.mean(on_noise)),
    }


if __name__ == "__main__":
    main()
