"""TIGER, TAG, LAMP and DAGER on English text: exact sequences and tokens beside guesses, under noise, with adapters.

Setting: FedSGD clients with sequences of English words (`data.words`: the private half; bigrams are of the public
one), on decoders that predict the next word: untrained, each client's its own, or one for all clients that was
trained on the public half. Labels are unknown; the searches optimize them. `guess` draws words by their frequency in
the public half, `noise` is the same attack on random updates, of every other batch. LAMP's prior is bigrams, not a
language model. DP-SGD clips the gradient of each sequence to norm 1 and adds noise of the multiplier; no attack
adapts to it. With adapters, clients train these only; after `rounds` on other text. `low` and `high` are the exact
95 % interval of the rate of exact sequences, as if sequences of a batch were independent.

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
from experiments.trained_text import STEPS, on_trained
from jaxinvert.audit.clientwise import random_update
from jaxinvert.audit.evidence import rate
from jaxinvert.jobs import text
from jaxinvert.jobs.groups import DefenseConfig


class Row(NamedTuple):
    """One row.

    Attributes:
      attack: by name.
      sequences: of a batch.
      multiplier: of the noise of DP-SGD; 0 without a defense.
      rank: of adapters; 0 if clients train the network itself.
      width: of the decoder.
      rounds: on other text before the observed one, with adapters.
      trained: whether the decoder is.
      batches: number of clients.
    """

    attack: str
    sequences: int
    multiplier: float = 0.0
    rank: int = 0
    width: int = 32
    rounds: int = 0
    trained: bool = False
    batches: int = 8


SEARCHES, NOISES = ("tag", "lamp", "tiger"), (0.0, 0.001, 0.01, 0.1)


@dataclass(frozen=True)
class Config:
    """Setting of the experiment.

    Attributes:
      rows: see `Row`.
      vocabulary: number of tokens.
      length: words of a sequence.
      depth: of the decoder.
      steps: of a search.
      seed: of the networks and the text.
      smoke: a run of seconds that only shows that everything works.
      json: file for the rows; rows that it holds with the same setting are not run again.
    """

    rows: tuple[Row, ...] = (
        *(Row(attack, 1, noise) for noise in NOISES for attack in ("dager", *SEARCHES)),
        *(Row(attack, 4, batches=2) for attack in ("dager", "tag", "lamp")),
        *(Row("tag", 1, rank=rank) for rank in (8, 4)),
        *(Row(attack, 16, batches=2) for attack in ("dager", "tag")),
        # Widths that hold the tokens of a batch.
        *(Row("dager", 4, noise, width=64, batches=10) for noise in NOISES),
        *(Row(attack, 4, noise, width=64, batches=4) for noise in NOISES for attack in SEARCHES),
        Row("dager", 16, width=128, batches=10),
        *(Row("dager", 16, noise, width=128, batches=3) for noise in NOISES[1:]),
        # Adapters, after a round.
        *(
            Row(attack, 1, noise, rank, rounds=1, batches=6)
            for rank in (4, 8)
            for noise in NOISES
            for attack in ("tag", "tiger")
        ),
        *(
            Row(attack, 4, noise, rank, rounds=1, batches=2)
            for rank in (4, 8)
            for noise in (0.0, 0.01)
            for attack in ("tag", "tiger")
        ),
        # A trained decoder, all of it and adapters only.
        *(
            Row(attack, 1, 0.0, rank, rounds=min(rank, 1), trained=True)
            for rank in (0, 8)
            for attack in ("dager", "tag", "tiger")
        ),
    )
    vocabulary: int = 300
    length: int = 8
    depth: int = 2
    steps: int = 400
    seed: int = 0
    smoke: bool = False
    json: Path | None = None


def main(arguments: Sequence[str] | None = None) -> None:
    """Attacks the batches of every row that the file does not hold, and prints the table."""
    config = tyro.cli(Config, description=__doc__, args=arguments)
    if config.smoke:
        row = Row("tiger", 1, 0.01, width=8, trained=True, batches=1)
        config = replace(config, rows=(row,), vocabulary=20, length=3, depth=1, steps=2)
    harness.run_rows(
        f"Words of {config.vocabulary}, {config.steps} steps",
        config.rows,
        lambda row: measure(config, row),
        setting=(
            f"vocabulary={config.vocabulary} length={config.length} depth={config.depth} steps={config.steps} "
            f"seed={config.seed}"
        ),
        json_file=config.json,
    )


def measure(config: Config, row: Row) -> dict[str, Any]:
    """One row: many batches."""
    noise = {"norm": 1.0, "multiplier": row.multiplier}
    job = text.TextConfig(
        num_sequences=row.sequences,
        length=config.length,
        vocabulary=config.vocabulary,
        width=row.width,
        depth=config.depth,
        distribution="words",
        targets=row.batches,
        seed=config.seed,
        attack=row.attack,
        steps=config.steps,
        defense=DefenseConfig("dp-sgd", noise) if row.multiplier else DefenseConfig(),
        lora_rank=row.rank or None,
        lora_rounds=row.rounds,
    )
    task, attacked, on_noise, begin = text.prepare_text(job), [], [], time.perf_counter()
    if row.trained:
        task = on_trained(job, task, steps=2 if config.smoke else STEPS)
    for number in range(row.batches):
        batch = text.draw_text(job, number)
        observation = text.observe_text(job, task, number, batch)
        key = jax.random.key(number)
        attacked.append(text.AttackedText(batch, jax.device_get(task.solve(key, observation))))
        if number % 2 == 0:
            found = task.solve(key, random_update(key, observation))
            on_noise.append(text.score_text(found.inputs, batch.inputs)["tokens"])
    seconds = time.perf_counter() - begin
    rates = text.measure_text(job, attacked)["rates"]
    reached, guess = rates[row.attack], rates["guess: drawn"]
    total = row.batches * row.sequences
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
        "seconds": seconds / (row.batches + len(on_noise)),
    }


if __name__ == "__main__":
    main()
