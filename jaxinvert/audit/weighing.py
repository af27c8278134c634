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
from jaxinvert.audit.measures import Known, Scored
from jaxinvert.audit.results import Attacked, Audited
from jaxinvert.audit.retrieval import NOBODY, Null, null
from jaxinvert.audit.verdict import judge


def judged(
    name: str,
    ground: Known,
    found: Mapping[str, tuple[Any, dict[str, Any], Scored, dict[str, Any]]],
    nulls: dict[bool, Null] | None = None,
) -> Audited:
    """Judges the scores of all attackers of one scenario.

    Args:
      name: name of the scenario.
      ground: truth and candidates.
      found: by attacker: the job, which says what is `granted`, its summary, scores of the attack, and scores of
        its controls by name.
      nulls: cache of the null distributions of `ground`, for scenarios that share it; see `weighed`.
    """
    nulls = {} if nulls is None else nulls
    attackers = {attacker: weighed(ground, *reached, nulls) for attacker, reached in found.items()}
    worst, verdict = judge(
        {name: attacked.evidence for name, attacked in attackers.items()},
        num_candidates=len(ground.labels),
        measure=ground.measure,
    )
    return Audited(name, ground, attackers, worst, verdict)


def weighed(
    ground: Known,
    config: Any,
    summary: dict[str, Any],
    scores: Scored,
    of_controls: Mapping[str, Scored],
    nulls: dict[bool, Null],
) -> Attacked:
    """Compares one attacker with its controls; `nulls` caches the null distribution of `ground` by `in_class`."""
    over_strongest, strongest, closest = excess_over_all(
        scores.by_client, {name: one.by_client for name, one in of_controls.items()}
    )
    in_class = config.granted.labels and scores.picked_in_class is not None
    if in_class not in nulls:
        nulls[in_class] = null(ground.private, ground.labels, ground.same, in_class=in_class)
    return Attacked(
        config,
        summary,
        scores,
        dict(of_controls),
        _identification(scores, of_controls, nulls[in_class], in_class),
        in_class,
        _trials(_picks(scores, nulls[in_class], in_class), nulls[in_class]),
        strongest,
        closest,
        over_strongest,
        excess(scores.second_by_client, of_controls[strongest].second_by_client),
    )


def _identification(scores: Scored, of_controls: Mapping[str, Scored], deals: Null, in_class: bool) -> Rate:
    """Rate of clients identified, tested against permuted private images and against the controls."""
    able, picks = deals.clients, _picks(scores, deals, in_class)
    every, swapped = int(able.sum()), deals.counts_swapped(deals.private)

    def hits_and_counts(one: Scored) -> tuple[np.ndarray, np.ndarray]:
        of_one = _picks(one, deals, in_class)
        return deals.hits(of_one)[able], deals.counts(of_one)

    return identification(
        *hits_and_counts(scores),
        permutation_p_value(every, deals.counts(deals.private)),
        # With few clients, or few of a class, even a perfect attack survives a permutation among the clients.
        swapped_counts=None if (swapped == every).any() else deals.counts_swapped(picks),
        chance=deals.chance,
        controls=[hits_and_counts(one) for one in of_controls.values()],
    )


def _picks(scores: Scored, deals: Null, in_class: bool) -> np.ndarray:
    """`[T, P]`: candidates that the reconstructions pick, among those of their class or among all."""
    picks = scores.picked_in_class if in_class else scores.picked
    return np.full(deals.private.shape, NOBODY) if picks is None else picks


def _trials(picks: np.ndarray, deals: Null) -> Trials:
    hits, chances = deals.one_of_each(picks)
    return Trials(int(hits.sum()), len(hits), float(chances.mean()) if len(hits) else 1.0)
