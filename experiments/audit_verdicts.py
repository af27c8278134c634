"""Verdicts of the audit where the answer is known: clients without a defense, and updates that are only noise.

Setting: Inverting Gradients on untrained networks, labels granted, clients of one image each, candidates from the
same split, all controls of an audit. "undefended" audits the clients' updates, once for each network. "random update"
audits normal noise in their place, tensor by tensor of the same norm, with other clients and another seed (updates,
starts, controls) for every audit. Expected: "leaks" with nearly all clients identified; and "none" for at least 95 of
100 random updates (the audit promises 99).

Command:  python -m experiments.audit_verdicts --data FILE.npz --json FILE
Smoke:    python -m experiments.audit_verdicts --smoke
Measured: see experiments/README.md
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tyro

from experiments import harness
from jaxinvert import audit, jobs
from jaxinvert.audit import Audited, controls


@dataclass(frozen=True)
class Config:
    """Setting of the experiment.

    Attributes:
      data: data set by name, folder or npz.
      clients: of one image, in every audit.
      candidates: private images and others.
      seeds: audits of random updates, on the first network.
      steps: of the attack on updates.
      steps_on_noise: of the attack on random updates.
      seed: of the networks and the starts.
      smoke: a run of seconds on the embedded photos that only shows that everything works.
      json: file for the rows.
    """

    data: str = "cifar10"
    clients: int = 10
    candidates: int = 100
    seeds: int = 100
    steps: int = 1000
    steps_on_noise: int = 100
    seed: int = 0
    smoke: bool = False
    json: Path | None = None


MODELS = ("lenet", "small-convnet")


def main(arguments: Sequence[str] | None = None) -> None:
    """Audits every network once, then noise again and again."""
    config = tyro.cli(Config, description=__doc__, args=arguments)
    if config.smoke:
        config = replace(config, data="photos", clients=2, candidates=10, seeds=2, steps=2, steps_on_noise=2)
    common = jobs.JobConfig.of(data=config.data, targets=config.clients, restarts=1, tv=1e-3, seed=config.seed)
    rows = []
    for model in ("mlp",) if config.smoke else MODELS:
        settings = common.replace(model=model, steps=config.steps)
        (found,) = audit.audit([audit.Setting(model, {"naive": settings})], num_candidates=config.candidates)
        rows.append({"audit": "undefended", "model": model, "audits": 1, **_row([found])})
        print(found.verdict.headline, found.verdict.certainty, flush=True)
    model = "mlp" if config.smoke else MODELS[0]
    noise = common.replace(model=model, steps=config.steps_on_noise)
    audits = audits_of_noise(noise, num_audits=config.seeds, num_candidates=config.candidates)
    rows.append({"audit": "random update", "model": model, "audits": len(audits), **_row(audits)})
    harness.publish(f"Verdicts where the answer is known, {Path(config.data).stem}", rows, json_file=config.json)


def audits_of_noise(config: jobs.JobConfig, *, num_audits: int, num_candidates: int) -> list[Audited]:
    """Audits in which clients sent normal noise, each with other clients and another seed; one compiled attack."""
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


def _row(audits: Sequence[Audited]) -> dict[str, Any]:
    """Verdicts counted, and rates over all clients of all audits."""
    levels = Counter(one.verdict.level for one in audits)
    attacked = [one.attackers[one.worst] for one in audits]
    clients, hits = (sum(getattr(one.identified, name) for one in attacked) for name in ("total", "count"))
    found = audit.rate(hits, clients, chance=attacked[0].identified.chance)
    psnr = np.concatenate([one.scores.psnr_db.ravel() for one in attacked])
    return {
        **{level: levels[level] for level in ("leaks", "traces", "none", "inconclusive")},
        "identified": hits,
        "clients": clients,
        "low": found.low,
        "high": found.high,
        "chance": found.chance,
        "median_psnr_db": float(np.median(psnr)),
        "mean_excess_db": float(np.mean([one.excess.mean for one in attacked])),
        "strongest": Counter(one.strongest for one in attacked).most_common(1)[0][0],
    }


if __name__ == "__main__":
    main()
