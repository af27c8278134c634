"""The verdict of an audit in words: its level, its statistical certainty, and what it cannot exclude."""

import math
from collections.abc import Mapping
from typing import Literal, NamedTuple

from jaxinvert.audit.evidence import Evidence, clients_needed
from jaxinvert.audit.measures import IMAGES, Measure

SIGNIFICANCE = 0.01
"""Largest probability of a false "leaks" or "traces", for one scenario, over all its tests and attackers."""

_NOTABLE = 0.05
"""Largest p-value of identification that is not called "none" where more clients could make it significant."""

Level = Literal["leaks", "traces", "none", "inconclusive"]


class Verdict(NamedTuple):
    """The verdict on one scenario.

    Attributes:
      level: "leaks" if reconstructions pick out their private images; "traces" if they are only closer to them than
        every control; "none" if neither is shown; "inconclusive" if there are too few clients to show traces, or to
        show that an attack which picks out more than chance also does so more often than a control.
      headline: the verdict in one sentence.
      certainty: sentences with the intervals, and with what they do not exclude.
      clients_needed: the smallest number of clients for which both tests can be significant; more than the audit has
        only if the level is "inconclusive".
    """

    level: Level
    headline: str
    certainty: str
    clients_needed: int


def judge(evidence: Mapping[str, Evidence], *, num_candidates: int, measure: Measure = IMAGES) -> tuple[str, Verdict]:
    """Judges one scenario from the evidence of all its attackers.

    Each attacker has two tests, and every test gets an equal part of `SIGNIFICANCE` (Bonferroni). For each level the
    attacker with the strongest evidence counts, so "leaks" and "traces" may rest on different attackers.

    Args:
      evidence: evidence by name of the attacker.
      num_candidates: number of candidates, including the private items.
      measure: the words for the private items and their score.

    Returns:
      The name of the attacker whose evidence the verdict rests on, and the verdict.
    """
    enough = SIGNIFICANCE / (2 * len(evidence))
    identifies = min(evidence, key=lambda name: (evidence[name].identified.p_value, -evidence[name].identified.count))
    closest = min(evidence, key=lambda name: (evidence[name].excess.p_value, -evidence[name].excess.mean))
    needed = clients_needed(enough)
    if evidence[identifies].identified.p_value < enough:
        one = evidence[identifies]
        gain, picked, interval = _gain(one, measure), _picked(one, num_candidates, measure), _interval(one)
        closer = gain if one.excess.low > 0 else f"the reconstructions need not be {measure.near}: {gain}"
        return identifies, Verdict(
            "leaks", f"This setting leaks: {picked}.", f"{_sentence(interval)} {_sentence(closer)}", needed
        )
    if evidence[closest].excess.p_value < enough:
        one = evidence[closest]
        details = " ".join(
            map(
                _sentence,
                [
                    _gain(one, measure),
                    _picked(one, num_candidates, measure),
                    _interval(one),
                    *_blind_spots(one, enough),
                ],
            )
        )
        return closest, Verdict(
            "traces",
            f"This setting shows traces of a leak: reconstructions are closer to the private {measure.item}s than "
            "every control, but do not pick them out.",
            details,
            needed,
        )
    most = max(evidence, key=lambda name: (evidence[name].identified.count, evidence[name].excess.mean))
    one = evidence[most]
    gain, picked, interval = _gain(one, measure), _picked(one, num_candidates, measure), _interval(one)
    if one.excess.least_p_value >= enough:
        attackers = "one attacker" if len(evidence) == 1 else f"{len(evidence)} attackers"
        return most, Verdict(
            "inconclusive",
            f"Too few clients for a verdict: {_num_clients(one)}, but at least {needed} are needed.",
            f"With {attackers}, even {_num_clients(one)} of {_num_clients(one)} clients above every control would "
            f"not be significant. {_sentence(gain)} {_sentence(picked)} {_sentence(interval)}",
            needed,
        )
    unsure = evidence[identifies]
    if unsure.identified.p_value < _NOTABLE and unsure.identified.least_p_value >= enough:
        picked, needed = _picked(unsure, num_candidates, measure), max(needed, 2 * _num_clients(unsure))
        return identifies, Verdict(
            "inconclusive",
            f"Too few clients for a verdict: {picked}, but with so few, or so many by a control, this may be chance.",
            f"{_sentence(_interval(unsure))} {_sentence(_gain(unsure, measure))}",
            needed,
        )
    told = [] if one.closest == one.strongest else [f"the control hardest to tell from the attack is {one.closest}"]
    return most, Verdict(
        "none",
        "No evidence of a leak beyond the null controls, for this attack and these assumptions.",
        f"This does not prove safety: up to {percent(one.identified.high)} of clients could be identified, and "
        f"{picked}. {' '.join(map(_sentence, [gain, *told, *_blind_spots(one, enough)]))} A stronger attack may find "
        "more.",
        needed,
    )


def _picked(one: Evidence, num_candidates: int, measure: Measure) -> str:
    count, total = one.identified.count, one.identified.total
    if not total:
        return (
            "no client has competing candidates of its class, so the granted labels alone identify the "
            f"{measure.item}s"
        )
    among = "the candidates of its class" if one.in_class else f"{num_candidates} candidates"
    return f"{count} of {total} clients had {measure.one} picked out among {among}"


def _interval(one: Evidence) -> str:
    low, high, chance = one.identified.low, one.identified.high, one.identified.chance
    return f"the 95 % interval is {percent(low)} to {percent(high)} of clients; guessing reaches {percent(chance)}"


def _gain(one: Evidence, measure: Measure) -> str:
    side = "above" if one.excess.mean >= 0 else "below"
    interval = f"95 % interval {one.excess.low:+.1f} to {one.excess.high:+.1f}"
    if not math.isfinite(one.excess.high):
        interval = "one client gives no interval"
    return (
        f"averaged over clients, {measure.score} is {abs(one.excess.mean):.1f} {measure.unit} {side} the control "
        f"with the highest mean, {one.strongest} ({interval})"
    )


def _blind_spots(one: Evidence, enough: float) -> list[str]:
    """A note if this many clients and candidates could not have shown identification."""
    if one.identified.least_p_value < enough:
        return []
    return ["identification could not have been shown: it needs more clients, or more candidates per class"]


def _num_clients(one: Evidence) -> int:
    return round(-math.log2(one.excess.least_p_value))


def percent(share: float) -> str:
    """A share for people, rounded in the same way wherever an audit names it.

    >>> [percent(0.0925), percent(0.0004), percent(0.0)]
    ['9.2 %', '0.04 %', '0.0 %']
    """
    return f"{100 * share:.2g} %" if 0 < share < 0.001 else f"{100 * share:.1f} %"


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."
