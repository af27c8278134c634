"""An experiment that checks the verdicts on records and text where the truth is known, by simulated audits.

Populations of rows with classes, and clients that hold some of them among 100 candidates. Attack and controls are
drawn from a known distribution; scores, retrieval, tests and verdict are the audit's own code. The kinds of rows:

| rows       | fields                                                                         | classes     |
|------------|--------------------------------------------------------------------------------|-------------|
| records    | 4 categories of 3 values and 4 continuous fields, which depend on the class     | 3, granted  |
| coarse     | 4 categories of 2 values: most of the 100 candidates are copies of others       | 3, granted  |
| sequences  | 8 tokens of 1,000, Zipf's distribution                                          | none        |
| short      | 2 tokens of 20, Zipf's distribution: many copies                                | none        |

The truths are nulls, so "leaks" and "traces" are false alarms:

| truth            | the attack shows                                                                    |
|------------------|-------------------------------------------------------------------------------------|
| random update    | rows drawn field by field from the population                                       |
| class mean       | the typical row of the granted class, of any class without labels, with 10 % errors |
| constant         | the same row for all clients, as similar to many candidates as possible             |
| failing control  | as "random update", but controls on random updates fail in a tenth of their runs    |
| other client     | the next client's rows                                                              |

`false_low` to `false_high` is the 95 % Clopper-Pearson interval of the rate of false alarms, which should be at most
1 %. "planted" is no null: every field is the true one with a probability of 60 %, else drawn from the population.

Command:  python -m experiments.audit_verdicts_discrete --json FILE
Smoke:    python -m experiments.audit_verdicts_discrete --smoke
Measured: see experiments/details/attack-free.md
"""

import itertools
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tyro

from experiments import harness
from jaxinvert import audit
from jaxinvert.audit import discrete, measures
from jaxinvert.jobs.records import RecordsConfig
from jaxinvert.jobs.text import TextConfig


@dataclass(frozen=True)
class Config:
    """Options of the experiment.

    Attributes:
      audits: number of simulated audits for every row of the result.
      kinds: kinds of rows; by default all.
      clients: numbers of clients.
      examples: numbers of rows of a client.
      attackers: numbers of attackers.
      candidates: number of candidates, including the private rows.
      seed: seed of everything random.
      smoke: run for a few seconds, only to test that everything works.
      json: file for the rows; rows that it holds are not simulated again.
    """

    audits: int = 500
    kinds: tuple[str, ...] = ("records", "coarse", "sequences", "short")
    clients: tuple[int, ...] = (9, 16)
    examples: tuple[int, ...] = (1, 4)
    attackers: tuple[int, ...] = (1, 2)
    candidates: int = 100
    seed: int = 0
    smoke: bool = False
    json: Path | None = None


_CLASSES, _POPULATION = 3, 400


class Population(NamedTuple):
    """Rows of one simulated audit.

    Attributes:
      ground: truth and candidates.
      rows: `[M, F]`, the population; the first `T x B` are the clients'.
      labels: `[M]` their classes.
      own: `[T, B]` indices of the clients' rows.
      granted: whether the attacker knows the classes.
    """

    ground: audit.DiscreteGround
    rows: np.ndarray
    labels: np.ndarray
    own: np.ndarray
    granted: bool


Draw = Callable[[np.random.Generator, Population], np.ndarray]
"""Draws the reconstructions `[T, B, F]` of an attacker."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Simulates audits of every kind of rows under every truth."""
    config = tyro.cli(Config, description=__doc__, args=arguments)
    if config.smoke:
        config = replace(config, audits=2, clients=(9,), examples=(1,))
    rows = []
    for row in simulated(config, _finished(config)):
        rows.append(row)
        if config.json is not None:
            harness.save(config.json, _TITLE, rows)
    harness.publish(_TITLE, rows, json_file=config.json)


_TITLE = "Verdicts on records and text where the answer is known"


def _finished(config: Config) -> list[dict[str, Any]]:
    """Rows of an earlier run with the same number of audits."""
    rows = harness.kept_rows(config.json)
    return [row for row in rows if row["audits"] == config.audits and row["seed"] == config.seed]


def simulated(config: Config, finished: Sequence[dict[str, Any]] = ()) -> Iterator[dict[str, Any]]:
    """Simulates audits and yields the row of every truth, kind and size; rows that are `finished` are kept."""
    names = ("truth", "rows", "clients", "examples", "attackers")
    known = {tuple(row[name] for name in names): row for row in finished}
    for examples, attackers, truth, kind, clients in itertools.product(
        config.examples, config.attackers, (*NULLS, "planted"), config.kinds, config.clients
    ):
        place = (truth, kind, clients, examples, attackers)
        if place in known:
            yield known[place]
            continue
        start = time.perf_counter()
        generator = np.random.default_rng(
            [config.seed, *truth.encode(), *kind.encode(), clients, examples, attackers]
        )
        levels = Counter(
            simulated_audit(generator, truth, kind, (clients, examples), attackers, config.candidates)
            for _ in range(config.audits)
        )
        yield _row(config, place, levels)
        print(*place, dict(levels), f"{time.perf_counter() - start:.0f} s", flush=True)


def simulated_audit(
    generator: np.random.Generator,
    truth: str,
    kind: str,
    shape: tuple[int, int],
    num_attackers: int = 1,
    num_candidates: int = 100,
) -> str:
    """Simulates one audit, and returns the level of its verdict.

    Args:
      generator: random generator of everything.
      truth: what the attack shows, one of `NULLS` or "planted".
      kind: kind of rows, one of `KINDS`.
      shape: number of clients, and of rows of each client.
      num_attackers: number of attackers, drawn independently.
      num_candidates: number of candidates.
    """
    people = population(generator, kind, shape, num_candidates)
    granted = people.granted
    config = RecordsConfig() if granted else TextConfig()
    labels = people.ground.true_labels if granted else None
    draw, found = NULLS.get(truth, _planted), {}
    guessed = discrete.guesses(
        people.ground, people.rows, people.own, generator, row_labels=people.labels if granted else None
    )
    for attacker in range(num_attackers):
        attack = draw(generator, people)
        without_update = _random_update if draw in (_planted, _other_client) else draw
        on_noise = without_update(generator, people)
        if truth == "failing control":
            fails = generator.random(on_noise.shape[:1]) < 0.1
            on_noise[fails] = np.nan
        shown = {**guessed, "random update": on_noise, "other client": np.roll(attack, -1, axis=0)}
        scores = {name: discrete.score_discrete(one, labels, people.ground) for name, one in shown.items()}
        found[str(attacker)] = (config, {}, discrete.score_discrete(attack, labels, people.ground), scores)
    return audit.judged("simulated", people.ground, found).verdict.level


def population(generator: np.random.Generator, kind: str, shape: tuple[int, int], num_candidates: int) -> Population:
    """Draws a population with random distributions of its fields; the first rows are the clients'."""
    rows, labels, fields, granted = KINDS[kind](generator)
    num_private = shape[0] * shape[1]
    count = max(num_candidates, num_private)
    ground = discrete.discrete_ground(
        rows[:count],
        labels[:count],
        shape=shape,
        fields=fields,
        measure=measures.RECORDS if granted else measures.TEXT,
        rng=generator,
    )
    return Population(ground, rows, labels, np.arange(num_private).reshape(shape), granted)


Rows = tuple[np.ndarray, np.ndarray, list[discrete.Field], bool]


def _records(
    generator: np.random.Generator, *, categories: Sequence[int] = (3, 3, 3, 3), continuous: int = 4
) -> Rows:
    labels = generator.integers(0, _CLASSES, _POPULATION)
    columns, fields = [], []
    for number, size in enumerate(categories):
        chances = generator.dirichlet(np.ones(size), _CLASSES)[labels].cumsum(axis=1)
        columns.append((generator.random((_POPULATION, 1)) > chances).sum(axis=1).clip(0, size - 1).astype(float))
        fields.append(discrete.Field(f"category {number}"))
    for number in range(continuous):
        values = generator.normal(size=_CLASSES)[labels] + generator.normal(size=_POPULATION)
        columns.append(np.round(values, 1))  # as tables hold few digits
        fields.append(discrete.Field(f"value {number}", 0.319 * float(values.std()), float(values.std())))
    return np.stack(columns, axis=1), labels, fields, True


def _coarse(generator: np.random.Generator) -> Rows:
    return _records(generator, categories=(2, 2, 2, 2), continuous=0)


def _sequences(generator: np.random.Generator, *, vocabulary: int = 1000, length: int = 8) -> Rows:
    chances = 1 / np.arange(1, vocabulary + 1)
    tokens = generator.choice(vocabulary, (_POPULATION, length), p=chances / chances.sum())
    fields = [discrete.Field(f"token {position}") for position in range(length)]
    return tokens.astype(float), np.zeros(_POPULATION, int), fields, False


def _short(generator: np.random.Generator) -> Rows:
    return _sequences(generator, vocabulary=20, length=2)


KINDS: dict[str, Callable[[np.random.Generator], Rows]] = {
    "records": _records,
    "coarse": _coarse,
    "sequences": _sequences,
    "short": _short,
}


def _random_update(generator: np.random.Generator, people: Population) -> np.ndarray:
    shape = (*people.own.shape, people.rows.shape[1])
    return people.rows[generator.integers(0, len(people.rows), shape), np.arange(shape[2])]


def _class_mean(generator: np.random.Generator, people: Population) -> np.ndarray:
    classes = people.ground.true_labels if people.granted else generator.integers(0, _CLASSES, people.own.shape)
    others = people.rows[people.own.size :]
    of_class = people.labels[people.own.size :]
    chosen = [others[of_class == label] if people.granted else others for label in range(_CLASSES)]
    shown = np.stack([discrete.typical(rows, people.ground.fields) for rows in chosen])[classes]
    return np.where(generator.random(shown.shape) < 0.1, _random_update(generator, people), shown)


def _constant(generator: np.random.Generator, people: Population) -> np.ndarray:
    del generator
    row = discrete.typical(people.rows[people.own.size :], people.ground.fields)
    return np.broadcast_to(row, (*people.own.shape, len(row))).copy()


def _other_client(generator: np.random.Generator, people: Population) -> np.ndarray:
    del generator
    return np.roll(people.ground.truth, -1, axis=0)


def _planted(generator: np.random.Generator, people: Population) -> np.ndarray:
    truth = people.ground.truth
    return np.where(generator.random(truth.shape) < 0.6, truth, _random_update(generator, people))


NULLS: dict[str, Draw] = {
    "random update": _random_update,
    "class mean": _class_mean,
    "constant": _constant,
    "failing control": _random_update,
    "other client": _other_client,
}


def _row(config: Config, place: tuple[str, str, int, int, int], levels: Counter[str]) -> dict[str, Any]:
    """A row of counted verdicts; for a null, also the rate of false alarms with its interval."""
    truth, kind, clients, examples, attackers = place
    found = None
    if truth in NULLS:
        found = audit.rate(levels["leaks"] + levels["traces"], levels.total(), chance=audit.SIGNIFICANCE)
    return {
        "truth": truth,
        "rows": kind,
        "clients": clients,
        "examples": examples,
        "attackers": attackers,
        "audits": levels.total(),
        "seed": config.seed,
        **{level: levels[level] for level in ("leaks", "traces", "none", "inconclusive")},
        "false_share": None if found is None else found.count / found.total,
        "false_low": None if found is None else found.low,
        "false_high": None if found is None else found.high,
    }


if __name__ == "__main__":
    main()
