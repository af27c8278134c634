"""An experiment that checks audit verdicts where the truth is known, with simulated audits and real attacks.

**Simulated.** Populations of small images with classes, and clients that hold one image among 100 candidates. Attack
and controls are drawn from a known distribution; retrieval, tests and verdict are the audit's own code. If the truth
is a null, "leaks" and "traces" are false alarms:

| truth             | the attack shows                                              |
|-------------------|---------------------------------------------------------------|
| random update     | smooth noise                                                  |
| class mean        | the public mean of the granted class; of any, without labels  |
| failing control   | 12.5 dB, and 2 dB in a tenth of its runs, as on random updates|
| other client      | the next client's image                                       |
| other candidates  | a pattern in all clients' images and in no other candidate    |

If an audit has two attackers, each is drawn independently. `false_low` to `false_high` is the 95 % Clopper-Pearson
interval of the rate of false alarms, which should be at most 1 %. A planted effect of `d` dB is an attack whose mean
PSNR is `d` dB above that of the class mean (without labels, of the mean image). With "details", half of its remaining
error is missing contrast and half is noise; with "pixels", PSNRs vary by 1 dB over clients and no image is
recognizable.

**Real.** Inverting Gradients on untrained networks with granted labels. "undefended" audits the clients' updates,
once for each network. "random update" audits normal noise with the norm of each tensor of the updates; every audit
has other clients and another seed.

**Intervals.** Coverage of the mean by `audit.mean_interval`, at n = 4, 8, 16 paired differences.

Command:  python -m experiments.audit_verdicts --data FILE.npz --json FILE --intervals-json FILE
Smoke:    python -m experiments.audit_verdicts --smoke
Measured: see experiments/details/audit-verdicts.md
"""

import itertools
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import tyro
from scipy import stats

from experiments import harness
from experiments.simulated_audits import EFFECTS, NULLS, Draw, simulated_audit
from jaxinvert import audit, jobs
from jaxinvert.audit import Audited, controls


@dataclass(frozen=True)
class Config:
    """Options of the experiment.

    Attributes:
      data: name, folder or npz file of the data set for the real attacks.
      audits: number of simulated audits for every null, number of clients, kind of labels and number of attackers.
      audits_of_effects: number of simulated audits for every planted effect, with the same combinations.
      clients: numbers of clients in simulated audits, each with one image.
      samples: number of samples whose intervals are checked.
      seeds: number of audits of random updates by a real attack.
      real_clients: number of clients in audits by real attacks, each with one image.
      candidates: number of candidates in audits by real attacks, including the private images.
      steps: optimizer steps of the real attack on updates.
      steps_on_noise: optimizer steps of the real attack on random updates.
      seed: seed of everything random.
      smoke: run for a few seconds on the embedded photos, only to test that everything works.
      json: file for the rows of audits; rows that it holds are not measured again, whatever their seed.
      intervals_json: file for the rows of intervals.
    """

    data: str = "cifar10"
    audits: int = 500
    audits_of_effects: int = 200
    clients: tuple[int, ...] = (9, 16, 32)
    samples: int = 100_000
    seeds: int = 10
    real_clients: int = 10
    candidates: int = 100
    steps: int = 1000
    steps_on_noise: int = 100
    seed: int = 0
    smoke: bool = False
    json: Path | None = None
    intervals_json: Path | None = None


MODELS = ("lenet", "small-convnet")
_WORDS = {True: "granted", False: "unknown"}


class Key(NamedTuple):
    """What a row is about: the truth, clients in an audit, labels, attackers, and the number of audits."""

    truth: str
    clients: int
    labels: str
    attackers: int
    audits: int


Measured = tuple[Counter[str], bool]
"""Number of verdicts of each level, and whether the truth is a null, so that "leaks" and "traces" are false."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Simulates audits, audits real attacks, and measures the coverage of intervals."""
    config = tyro.cli(Config, description=__doc__, args=arguments)
    if config.smoke:
        config = replace(
            config, data="photos", audits=2, audits_of_effects=2, clients=(9,), samples=200, seeds=1, real_clients=2
        )
        config = replace(config, candidates=10, steps=2, steps_on_noise=2)
    title = f"Verdicts where the answer is known, {Path(config.data).stem}"
    intervals = [covered(name, size, config.samples, config.seed) for name in DISTRIBUTIONS for size in (4, 8, 16)]
    harness.publish("Intervals of 95 %: how often they cover", intervals, json_file=config.intervals_json)
    rows = _finished(config)
    for key, measured in itertools.chain(simulated(config), by_real_attacks(config)):
        if key in rows:
            continue
        start = time.perf_counter()
        rows[key] = _row(key, *measured())
        print(f"{key}: {time.perf_counter() - start:.0f} s", flush=True)
        if config.json is not None:
            harness.save(config.json, title, list(rows.values()))
    harness.publish(title, list(rows.values()))
    nulls = [row for key, row in rows.items() if key.truth.removeprefix("simulated: ") in NULLS]
    alarms = [row["leaks"] + row["traces"] for row in nulls]
    total = sum(row["audits"] for row in nulls)
    print(f"simulated nulls: {sum(alarms)} false alarms in {total:,} audits, at most {max(alarms)} in a cell")


def simulated(config: Config) -> Iterator[tuple[Key, Callable[[], Measured]]]:
    """Yields the cells of simulated audits, under every null and with every planted effect, unmeasured."""
    truths = {**NULLS, **EFFECTS}
    for (truth, draw), clients, granted, attackers in itertools.product(
        truths.items(), config.clients, (True, False), (1, 2)
    ):
        audits = config.audits if truth in NULLS else config.audits_of_effects
        key = Key(f"simulated: {truth}", clients, _WORDS[granted], attackers, audits)
        yield key, partial(_levels, config.seed, truth, draw, key)


def _levels(seed: int, truth: str, draw: Draw, key: Key) -> Measured:
    """Levels of the verdicts of one cell; the same for every order of the cells."""
    granted = key.labels == _WORDS[True]
    generator = np.random.default_rng([seed, *truth.encode(), key.clients, granted, key.attackers])
    shared = truth == "other candidates"
    levels = Counter(
        simulated_audit(generator, draw, key.clients, granted, key.attackers, shared=shared)
        for _ in range(key.audits)
    )
    return levels, truth in NULLS


DISTRIBUTIONS: dict[str, Callable[[np.random.Generator, tuple[int, int]], np.ndarray]] = {
    "normal": lambda generator, shape: generator.normal(size=shape),
    "exponential": lambda generator, shape: generator.exponential(size=shape) - 1,
    "gamma(2)": lambda generator, shape: generator.gamma(2, size=shape) - 2,
    "t(4)": lambda generator, shape: generator.standard_t(4, size=shape),
}


def covered(name: str, size: int, num_samples: int, seed: int) -> dict[str, Any]:
    """Coverage of `mean_interval` for samples of a distribution with mean 0, compared with Student's t."""
    samples = DISTRIBUTIONS[name](np.random.default_rng([seed, size]), (num_samples, size))
    low, high = audit.mean_interval(samples)
    half = stats.t.ppf(0.975, size - 1) * samples.std(axis=1, ddof=1) / np.sqrt(size)
    inside = (low <= 0) & (high >= 0)
    found = audit.rate(int(inside.sum()), num_samples, chance=0.95)
    return {
        "distribution": name,
        "n": size,
        "samples": num_samples,
        "covered": float(inside.mean()),
        "low": found.low,
        "high": found.high,
        "student_t": float(np.mean(np.abs(samples.mean(axis=1)) <= half)),
        "length": float(np.mean((high - low) / (2 * half))),
    }


def by_real_attacks(config: Config) -> Iterator[tuple[Key, Callable[[], Measured]]]:
    """Yields the audits of every network's updates, and of random updates, unmeasured."""
    common = jobs.JobConfig.of(data=config.data, targets=config.real_clients, restarts=1, tv=1e-3, seed=config.seed)
    models = ("mlp",) if config.smoke else MODELS
    for model in models:
        key = Key(f"undefended {model}", config.real_clients, _WORDS[True], 1, 1)
        yield key, partial(_of_updates, common.replace(model=model, steps=config.steps), config.candidates)
    key = Key(f"random update to {models[0]}", config.real_clients, _WORDS[True], 1, config.seeds)
    noise = common.replace(model=models[0], steps=config.steps_on_noise)
    yield key, partial(_of_noise, noise, config.seeds, config.candidates)


def _of_updates(settings: jobs.JobConfig, num_candidates: int) -> Measured:
    (found,) = audit.audit([audit.Scenario(settings.model.name, {"naive": settings})], num_candidates=num_candidates)
    print(found.verdict.headline, found.verdict.certainty, flush=True)
    return Counter([found.verdict.level]), False


def _of_noise(settings: jobs.JobConfig, num_audits: int, num_candidates: int) -> Measured:
    audits = audits_of_noise(settings, num_audits=num_audits, num_candidates=num_candidates)
    return Counter(one.verdict.level for one in audits), True


def audits_of_noise(config: jobs.JobConfig, *, num_audits: int, num_candidates: int) -> list[Audited]:
    """Audits of normal noise in place of updates, each with other clients and another seed; compiles one attack."""
    setup = jobs.set_up(config)
    images, labels = setup.dataset.images, np.asarray(setup.dataset.labels)
    audits = []
    for number in range(num_audits):
        seeded = config.replace(seed=config.seed + number)
        others = np.random.default_rng(number).permutation(len(images))  # other clients and candidates
        shuffled = setup._replace(dataset=setup.dataset._replace(images=images[others], labels=labels[others]))
        task = jobs.prepare(seeded, shuffled)
        key = jax.random.fold_in(jax.random.key(seeded.seed), 5)
        task = task._replace(observations=controls.random_update(key, task.observations))
        ground = audit.ground_truth(
            task.truth, shuffled.dataset.images, shuffled.dataset.labels, num_candidates=num_candidates
        )
        found = audit.attack_and_score(seeded, task, ground)
        audits.append(audit.judged("random update", ground, {"naive": found}))
        print(f"random update {number + 1} of {num_audits}: {audits[-1].verdict.level}", flush=True)
    return audits


def _row(key: Key, levels: Counter[str], null: bool) -> dict[str, Any]:
    """A row of counted verdicts; for a null, also the rate of false alarms with its interval."""
    false = levels["leaks"] + levels["traces"]
    found = audit.rate(false, levels.total(), chance=audit.SIGNIFICANCE) if null else None
    return {
        **key._asdict(),
        **{level: levels[level] for level in ("leaks", "traces", "none", "inconclusive")},
        "false_share": None if found is None else found.count / found.total,
        "false_low": None if found is None else found.low,
        "false_high": None if found is None else found.high,
    }


def _finished(config: Config) -> dict[Key, dict[str, Any]]:
    """Rows of an earlier run."""
    return {Key(*(row[name] for name in Key._fields)): row for row in harness.kept_rows(config.json)}


if __name__ == "__main__":
    main()
