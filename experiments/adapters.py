"""Text of clients that train low-rank adapters (LoRA) only: what the span checks of both factors give away.

Setting: FedSGD clients with adapters at query and value of every attention of a decoder. `text` is random tokens,
uniform, or English words (`data.words`). The decoder is untrained, each client's its own, or one for all clients that
was trained on the public half of the words. In round 0, `B` is zero and so is the gradient of `A`; in round 1, the
adapters have had one step on other text. `tokens` is the share of right tokens in sequences matched one-to-one,
`guess` that of tokens drawn from the same distribution, `noise` that of the same attack on a random update. A batch
is exact if its sequences with all labels are; `low` and `high` are the exact 95 % interval of that rate. `sequences
right` counts sequences without their labels. `possible` is the most distinct tokens that the check holds, `distinct`
the largest number in a batch. DP-SGD clips the gradient of each sequence to norm 1 and adds noise of the multiplier.

Command:  python -m experiments.adapters --json FILE.json
Smoke:    python -m experiments.adapters --smoke
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
import tyro

from experiments import harness
from experiments.trained_text import STEPS, on_trained
from jaxinvert.audit.clientwise import random_update
from jaxinvert.audit.evidence import rate
from jaxinvert.jobs import text
from jaxinvert.jobs.groups import DefenseConfig
from jaxinvert.metrics.records import evaluate_records


class Row(NamedTuple):
    """One row: rank of the adapters, sequences, tokens of each, rounds before the observed one, noise, text, network.

    `multiplier` is that of DP-SGD, 0 without a defense; `trained` whether the network is.
    """

    rank: int
    sequences: int
    length: int
    round: int
    multiplier: float = 0.0
    text: Literal["uniform", "words"] = "uniform"
    trained: bool = False


_HELD = {4: ((1, 8), (4, 2), (16, 8)), 8: ((1, 16), (4, 4), (16, 8))}
"""Sequences and their lengths by rank: as many tokens as the check holds, and, with 16 sequences, many more."""


@dataclass(frozen=True)
class Config:
    """Setting of the experiment.

    Attributes:
      rows: see `Row`.
      vocabulary: number of tokens that there are.
      batches: of each row.
      seed: of the networks and the text.
      smoke: a run of seconds that only shows that everything works.
      json: file for the rows; rows that it holds with the same setting are not run again.
    """

    rows: tuple[Row, ...] = (
        *(Row(4, *row) for row in ((1, 3, 0), (1, 8, 0), (1, 8, 1), (4, 2, 1), (4, 8, 1), (16, 8, 1))),
        *(Row(8, *row) for row in ((1, 7, 0), (1, 8, 0), (1, 16, 1), (4, 4, 1), (4, 8, 1), (16, 8, 1))),
        *(
            Row(rank, *held, 1, multiplier)
            for rank, all_held in _HELD.items()
            for held in all_held
            for multiplier in (0.001, 0.01, 0.1)
        ),
        *(
            Row(rank, *held, 1, 0.0, "words", trained)
            for rank, all_held in _HELD.items()
            for held in all_held[:2]
            for trained in (False, True)
        ),
    )
    vocabulary: int = 500
    batches: int = 10
    seed: int = 0
    smoke: bool = False
    json: Path | None = None


def main(arguments: Sequence[str] | None = None) -> None:
    """Attacks the batches of every row that the file does not hold, and prints the table."""
    config = tyro.cli(Config, description=__doc__, args=arguments)
    if config.smoke:
        config = replace(config, rows=(Row(2, 1, 2, 1, 0.1, "words", True),), vocabulary=20, batches=1)
    harness.run_rows(
        f"Adapters on a decoder, {config.vocabulary} tokens",
        config.rows,
        lambda row: measure(config, row),
        setting=f"vocabulary={config.vocabulary} batches={config.batches} seed={config.seed}",
        json_file=config.json,
    )


def measure(config: Config, row: Row) -> dict[str, Any]:
    """One row: many batches."""
    job = text.TextConfig(
        num_sequences=row.sequences,
        length=row.length,
        vocabulary=config.vocabulary,
        width=16 if config.smoke else 64,
        depth=1 if config.smoke else 2,
        distribution=row.text,
        targets=config.batches,
        seed=config.seed,
        lora_rank=row.rank,
        lora_rounds=row.round,
    )
    if row.multiplier:
        noise = {"norm": 1.0, "multiplier": row.multiplier}
        job = dataclasses.replace(job, defense=DefenseConfig("dp-sgd", noise))
    task = text.prepare_text(job)
    if row.trained:
        task = on_trained(job, task, steps=2 if config.smoke else STEPS)
    attacked, on_noise, distinct = [], [], 0
    for number in range(config.batches):
        batch = text.draw_text(job, number)
        observation = text.observe_text(job, task, number, batch)
        attacked.append(text.AttackedText(batch, jax.device_get(task.solve(jax.random.key(0), observation))))
        found = task.solve(jax.random.key(0), random_update(jax.random.key(number), observation))
        quality = evaluate_records(found.inputs, batch.inputs, np.zeros(row.length))
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
        "sequences_right": round(rates["dager"]["sequences"] * config.batches * row.sequences),
        "tokens": rates["dager"]["tokens"],
        "guess": rates["guess: drawn"]["tokens"],
        "noise": float(np.mean(on_noise)),
    }


if __name__ == "__main__":
    main()
