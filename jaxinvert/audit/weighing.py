"""Weighs what attackers reached against their controls and against chance, and judges the scenario."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxinvert.audit.evidence import (
    Rate,
    Trials,
    excess,
    excess_over_all,
    identification,
    permutation_p_value,
)
from jaxinvert.audit.results import Attacked, Audited
from jaxinvert.audit.retrieval import NOBODY, Null, null, pool
from jaxinvert.audit.scoring import Ground, Scores
from jaxinvert.audit.verdict import judge
from jaxinvert.jobs import JobConfig


def judged(
    name: str, ground: Ground, found: Mapping[str, tuple[JobConfig, dict[str, Any], Scores, dict[str, Scores]]]
) -> Audited:
    """Judges the scores of all attackers of one scenario.

    Args:
      name: name of the scenario.
      ground: truth and candidates.
      found: by attacker: the job, its summary, scores of the attack, and scores of its controls by name.
    """
    nulls: dict[bool, Null] = {}
    attackers = {attacker: weighed(ground, *reached, nulls) for attacker, reached in found.items()}
    worst, verdict = judge(
        {name: attacked.evidence for name, attacked in attackers.items()},
        num_candidates=len(ground.candidates.labels),
    )
    return Audited(name, ground, attackers, worst, verdict)


def weighed(
    ground: Ground,
    config: JobConfig,
    summary: dict[str, Any],
    scores: Scores,
    of_controls: dict[str, Scores],
    nulls: dict[bool, Null],
) -> Attacked:
    """Compares one attacker with its controls; `nulls` caches the null distribution of `ground` by `in_class`."""
    over_strongest, strongest, closest = excess_over_all(
        scores.psnr_db.mean(axis=1), {name: one.psnr_db.mean(axis=1) for name, one in of_controls.items()}
    )
    in_class = config.granted.labels and scores.picked_in_class is not None
    if in_class not in nulls:
        same = (ground.pool or pool(ground.candidates.inputs)).same
        nulls[in_class] = null(ground.private, ground.candidates.labels, same, in_class=in_class)
    return Attacked(
        config,
        summary,
        scores,
        of_controls,
        _identification(scores, of_controls, nulls[in_class], in_class),
        in_class,
        _trials(_picks(scores, nulls[in_class], in_class), nulls[in_class]),
        strongest,
        closest,
        over_strongest,
        excess(scores.ssim.mean(axis=1), of_controls[strongest].ssim.mean(axis=1)),
    )


def _identification(scores: Scores, of_controls: Mapping[str, Scores], deals: Null, in_class: bool) -> Rate:
    """Rate of clients identified, tested against permuted private images and against the controls."""
    able = deals.clients

    def hits_and_counts(one: Scores) -> tuple[np.ndarray, np.ndarray]:
        picks = _picks(one, deals, in_class)
        return deals.hits(picks)[able], deals.counts(picks)

    return identification(
        *hits_and_counts(scores),
        permutation_p_value(int(able.sum()), deals.counts(deals.private)),
        chance=deals.chance,
        controls=[hits_and_counts(one) for one in of_controls.values()],
    )


def _picks(scores: Scores, deals: Null, in_class: bool) -> np.ndarray:
    """`[T, P]`: candidates that the reconstructions pick, among those of their class or among all."""
    picks = scores.picked_in_class if in_class else scores.picked
    return np.full(deals.private.shape, NOBODY) if picks is None else picks


def _trials(picks: np.ndarray, deals: Null) -> Trials:
    hits, chances = deals.one_of_each(picks)
    return Trials(int(hits.sum()), len(hits), float(chances.mean()) if len(hits) else 1.0)
