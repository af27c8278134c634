"""An experiment on DP-SGD: what attacks reach, what it allows, and what the attacks show of epsilon.

For each noise multiplier, an audit attacks simulated clients with DP-SGD, naive and adaptive. In a game, the attacker
picks the image of a client out of the candidates of its class. `reached` is the share of games that the better
attacker wins, with its exact 95 % interval; `allowed` is the largest share that DP-SGD leaves to any attack with this
side knowledge; `epsilon_shown` is the lower bound on epsilon from the games, with 95 % confidence, and `epsilon` the
upper bound of the accountant, both for the attacked release and at the same delta. If accountant, defense and games
are right, then `low` is at most `allowed`, and `epsilon_shown` at most `epsilon`.

`epsilon_training` is that of 1,000 steps at sampling rate 0.01; `seconds` and `megabytes` are what all these bounds
took in a process of their own: its peak memory includes that of the imports.

Command:  python -m experiments.dp_bounds --data FILE.npz --json FILE
Smoke:    python -m experiments.dp_bounds --smoke
Measured: see experiments/details/dp-bounds.md
"""

import multiprocessing
import resource
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import tyro

from experiments import harness
from jaxinvert import audit, jobs
from jaxinvert.defenses import accounting

_DELTA = 1e-5


@dataclass(frozen=True)
class Config:
    """Options of the experiment.

    Attributes:
      data: name, folder or npz file of the data set.
      split: split of the private images and the other candidates.
      model: the clients' network.
      multipliers: noise multipliers of DP-SGD, relative to the clipping norm 1.
      clients: number of clients, each with one image.
      candidates: number of candidates, including the private images.
      steps: optimizer steps of the attack.
      seed: seed of everything random.
      smoke: run for a few seconds on the embedded photos, only to test that everything works.
      json: file for the rows; rows that it holds are not measured again.
    """

    data: str = "cifar10"
    split: str = "test"
    model: str = "mlp-64"
    multipliers: tuple[float, ...] = (0.01, 0.02, 0.05, 0.1, 0.3, 1.0, 3.0)
    clients: int = 60
    candidates: int = 600
    steps: int = 200
    seed: int = 0
    smoke: bool = False
    json: Path | None = None


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures the rows that are not in the file yet."""
    config = tyro.cli(Config, description=__doc__, args=arguments)
    if config.smoke:
        config = replace(config, data="photos", split="private", model="mlp-8", multipliers=(1.0,))
        config = replace(config, clients=9, candidates=60, steps=2)
    title = f"DP-SGD: reached, allowed and shown, {config.model}, {Path(config.data).stem}"
    rows = {row["multiplier"]: row for row in harness.kept_rows(config.json)}
    for multiplier in config.multipliers:
        if multiplier in rows:
            continue
        print(f"multiplier {multiplier:g}", flush=True)
        rows[multiplier] = measured(config, multiplier)
        if config.json is not None:
            harness.save(config.json, title, [rows[key] for key in sorted(rows)])
    harness.publish(title, [rows[key] for key in sorted(rows)])


def measured(config: Config, multiplier: float) -> dict[str, Any]:
    """One row: the audit at a noise multiplier, and what its bounds cost."""
    settings = jobs.JobConfig.of(
        data=config.data,
        split=config.split,
        model=config.model,
        targets=config.clients,
        restarts=1,
        steps=config.steps,
        seed=config.seed,
    )
    scenarios = audit.settings_for(settings, [f"dp-sgd:norm=1,multiplier={multiplier}"])
    (found,) = audit.audit(scenarios, num_candidates=config.candidates)
    most = audit.allowed(
        found.attackers[found.worst].config, {name: one.trials for name, one in found.attackers.items()}, None
    )
    assert most is not None
    games = audit.rate(most.trials.count, most.trials.total, chance=most.trials.baseline)
    with multiprocessing.get_context("spawn").Pool(1) as alone:
        epsilon, seconds, megabytes = alone.apply(cost_of_bounds, (multiplier, most.trials.baseline))
    return {
        "multiplier": multiplier,
        "attacker": most.attacker,
        "verdict": found.verdict.level,
        "games": most.trials.total,
        "guessing": most.trials.baseline,
        "reached": most.trials.count / most.trials.total,
        "low": games.low,
        "high": games.high,
        "allowed": most.release,
        "epsilon_shown": most.shown,
        "epsilon": most.epsilon,
        "ordered": bool(games.low <= most.release and most.shown <= most.epsilon),
        "epsilon_training": epsilon,
        "seconds": seconds,
        "megabytes": megabytes,
    }


def cost_of_bounds(multiplier: float, baseline: float) -> tuple[float, float, float]:
    """Epsilon of a training, and seconds of all bounds and the peak memory of the process in megabytes."""
    start, unit = time.perf_counter(), 1 if sys.platform == "darwin" else 1024  # bytes or kilobytes
    release = {"sampling_rate": 1.0, "noise_multiplier": multiplier, "num_steps": 1}
    training = {"sampling_rate": 0.01, "noise_multiplier": multiplier, "num_steps": 1000}
    for steps in (release, training):
        accounting.success_bound(baseline=baseline, **steps)
        epsilon = accounting.tight_epsilon(delta=_DELTA, **steps)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return epsilon, time.perf_counter() - start, peak * unit / 1e6


if __name__ == "__main__":
    main()
