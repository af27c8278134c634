"""TAG, LAMP and DAGER on English text: exact sequences, ROUGE and tokens beside guesses, under noise, with adapters.

Setting: FedSGD clients with sequences of English words (`data.words`: the private half; bigrams are of the public
one), each on an untrained decoder of its own that predicts the next word. Labels are unknown; the searches optimize
them. `guess` draws words by their frequency in the public half, `noise` is the same attack on a random update. LAMP's
prior is bigrams, not a language model. DP-SGD clips the
gradient of each sequence to norm 1 and adds noise of the multiplier; no attack adapts to it. `low` and `high` are the
exact 95 % interval of the rate of exact sequences, as if sequences of a batch were independent.

Command:  python -m experiments.text_attacks --json FILE.json
Smoke:    python -m experiments.text_attacks --smoke
"""

import time
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
from jaxinvert.jobs.groups import DefenseConfig


class Row(NamedTuple):
    """One row: attack, sequences, noise multiplier of DP-SGD (0: no defense), rank of adapters (0: none)."""

    attack: str
    sequences: int
    multiplier: float = 0.0
    rank: int = 0


@dataclass(frozen=True)
class Config:
    """Setting of the experiment.

    Attributes:
      rows: attack, sequences, noise multiplier and rank of adapters.
      vocabulary: number of tokens.
      length: words of a sequence.
      width: of the decoder.
      depth: of the decoder.
      steps: of a search.
      batches: of each row with one sequence; fewer of larger batches, at least two.
      seed: of the networks and the text.
      smoke: a run of seconds that only shows that everything works.
      json: file for the rows; rows that it holds with the same setting are not run again.
    """

    rows: tuple[Row, ...] = (
        *(Row(attack, 1) for attack in ("dager", "tag", "lamp")),
        *(Row(attack, 1, noise) for noise in (0.001, 0.01, 0.1) for attack in ("dager", "tag", "lamp")),
        *(Row(attack, 4) for attack in ("dager", "tag", "lamp")),
        *(Row("tag", 1, rank=rank) for rank in (8, 4)),
        *(Row(attack, 16) for attack in ("dager", "tag")),
    )
    vocabulary: int = 300
    length: int = 8
    width: int = 32
    depth: int = 2
    steps: int = 400
    batches: int = 8
    seed: int = 0
    smoke: bool = False
    json: Path | None = None


def main(arguments: Sequence[str] | None = None) -> None:
    """Attacks every row's batches, saving each row, and prints the table."""
    config = tyro.cli(Config, description=__doc__, args=arguments)
    if config.smoke:
        config = replace(
            config, rows=(Row("tag", 1, 0.01),), vocabulary=20, length=3, width=8, depth=1, steps=2, batches=1
        )
    title, rows = f"Words of {config.vocabulary}, {config.steps} steps", harness.kept_rows(config.json)
    setting = f"vocabulary={config.vocabulary} length={config.length} width={config.width} steps={config.steps}"
    done = {tuple(row[name] for name in (*Row._fields, "setting")) for row in rows}
    for row in config.rows:
        if (*row, setting) in done:
            continue
        rows.append({**measure(config, row), "setting": setting})
        print(f"done: {row}: {rows[-1]['tokens']:.2f} of tokens", flush=True)
        if config.json is not None:
            harness.save(config.json, title, rows)
    harness.publish(title, [{name: row[name] for name in row if name != "setting"} for row in rows])


def measure(config: Config, row: Row) -> dict[str, Any]:
    """One row: many batches."""
    batches = max(2, config.batches // row.sequences) if config.batches > 1 else 1
    noise = {"norm": 1.0, "multiplier": row.multiplier}
    job = text.TextConfig(
        num_sequences=row.sequences,
        length=config.length,
        vocabulary=config.vocabulary,
        width=config.width,
        depth=config.depth,
        distribution="words",
        targets=batches,
        seed=config.seed,
        attack=row.attack,
        steps=config.steps,
        defense=DefenseConfig("dp-sgd", noise) if row.multiplier else DefenseConfig(),
        lora_rank=row.rank or None,
    )
    task, attacked, on_noise, begin = text.prepare_text(job), [], [], time.perf_counter()
    for number in range(batches):
        batch = text.draw_text(job, number)
        observation = text.observe_text(job, task, number, batch)
        key = jax.random.key(number)
        attacked.append(text.AttackedText(batch, jax.device_get(task.solve(key, observation))))
        found = task.solve(key, random_update(key, observation))
        on_noise.append(text.score_text(found.inputs, batch.inputs)["tokens"])
    seconds = time.perf_counter() - begin
    rates = text.measure_text(job, attacked)["rates"]
    reached, guess = rates[row.attack], rates["guess: drawn"]
    total = batches * row.sequences
    exactly = rate(round(reached["sequences"] * total), total, chance=0.0)
    return {
        **row._asdict(),
        "total": total,
        "exact": exactly.count,
        "low": exactly.low,
        "high": exactly.high,
        "tokens": reached["tokens"],
        "guess": guess["tokens"],
        "noise": float(np.mean(on_noise)),
        **{name.replace("-", "_"): reached[name] for name in ("rouge-1", "rouge-2", "rouge-l")},
        "guess_rouge_1": guess["rouge-1"],
        "seconds": seconds / (2 * batches),
    }


if __name__ == "__main__":
    main()
