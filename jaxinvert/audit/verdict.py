"""The verdict in words: what the evidence says, how sure it is, and what it cannot say."""

import math
from collections.abc import Mapping
from typing import Literal, NamedTuple

from jaxinvert.audit.evidence import Evidence, clients_needed

SIGNIFICANCE = 0.01
"""Chance of any evidence at all where nothing leaks, for one audited setting, over all its tests and attackers."""

Level = Literal["leaks", "traces", "none", "inconclusive"]


class Verdict(NamedTuple):
    """What the evidence says of one setting.

    Attributes:
      level: "leaks" if reconstructions pick out their private images; "traces" if they are only closer to them than
        every control; "none" if neither is shown; "inconclusive" if so few clients could not have shown traces.
      headline: a sentence.
      certainty: a sentence with the interval, and what it does not exclude.
      clients_needed: the fewest clients with which both tests could succeed; as many as there are, or fewer, unless
        the level is "inconclusive".
    """

    level: Level
    headline: str
    certainty: str
    clients_needed: int


def judge(evidence: Mapping[str, Evidence], *, num_candidates: int) -> tuple[str, Verdict]:
    """Weighs the evidence on a setting, from all of its attackers.

    Each of two tests for each attacker gets an equal part of `SIGNIFICANCE` (Bonferroni), and each level is shown by
    whoever shows it best: who identifies may be another than who comes closest.

    Args:
      evidence: by name of the attacker.
      num_candidates: that images were compared with, themselves included.

    Returns:
      The attacker on whose evidence the verdict rests, and the verdict.
    """
    enough = SIGNIFICANCE / (2 * len(evidence))
    identifies = min(evidence, key=lambda name: (evidence[name].identified.p_value, -evidence[name].identified.count))
    closest = min(evidence, key=lambda name: (evidence[name].excess.p_value, -evidence[name].excess.mean))
    needed = clients_needed(enough)
    if evidence[identifies].identified.p_value < enough:
        one = evidence[identifies]
        gain, picked, interval = _gain(one), _picked(one, num_candidates), _interval(one)
        closer = gain if one.excess.low > 0 else f"in pixels they need not be close: {gain}"
        return identifies, Verdict(
            "leaks", f"This leaks: {picked}.", f"{_sentence(interval)} {_sentence(closer)}", needed
        )
    if evidence[closest].excess.p_value < enough:
        one = evidence[closest]
        details = " ".join(
            map(_sentence, [_gain(one), _picked(one, num_candidates), _interval(one), *_blind_spots(one, enough)])
        )
        return closest, Verdict(
            "traces",
            "There are traces: reconstructions are closer to the private images than any control, but do not pick "
            "them out.",
            details,
            needed,
        )
    most = max(evidence, key=lambda name: (evidence[name].identified.count, evidence[name].excess.mean))
    one = evidence[most]
    gain, picked, interval = _gain(one), _picked(one, num_candidates), _interval(one)
    if one.excess.least_p_value >= enough:
        attackers = "an attacker" if len(evidence) == 1 else f"{len(evidence)} attackers"
        return most, Verdict(
            "inconclusive",
            f"Too few clients to tell: {_num_clients(one)}, at least {needed} are needed.",
            f"With {attackers}, even {_num_clients(one)} of {_num_clients(one)} above every control could be luck. "
            f"{_sentence(gain)} {_sentence(picked)} {_sentence(interval)}",
            needed,
        )
    told = [] if one.closest == one.strongest else [f"the attack can be told least from the control {one.closest}"]
    return most, Verdict(
        "none",
        "No evidence above the null controls, for this attack and these assumptions.",
        f"That is no proof of safety: up to {_percent(one.identified.high)} of clients could be identified and "
        f"{picked}. {' '.join(map(_sentence, [gain, *told, *_blind_spots(one, enough)]))} A stronger attack may find "
        "more.",
        needed,
    )


def _picked(one: Evidence, num_candidates: int) -> str:
    count, total = one.identified.count, one.identified.total
    if not total:
        return "no client has rivals of its class among the candidates, so the granted labels alone tell the images"
    among = "the candidates of its class" if one.in_class else f"{num_candidates} candidates"
    return f"{count} of {total} clients had an image picked out among {among}"


def _interval(one: Evidence) -> str:
    low, high, chance = one.identified.low, one.identified.high, one.identified.chance
    return f"95 % interval {_percent(low)} to {_percent(high)} of clients, guessing reaches {_percent(chance)}"


def _gain(one: Evidence) -> str:
    side = "above" if one.excess.mean >= 0 else "below"
    interval = f"95 % interval {one.excess.low:+.1f} to {one.excess.high:+.1f}"
    if not math.isfinite(one.excess.high):
        interval = "one client gives no interval"
    return f"PSNR is {abs(one.excess.mean):.1f} dB {side} the strongest control, {one.strongest} ({interval})"


def _blind_spots(one: Evidence, enough: float) -> list[str]:
    """What could not have been shown."""
    if one.identified.least_p_value < enough:
        return []
    return [
        "that images are picked out could not have been shown: it takes more clients, or more candidates of a class"
    ]


def _num_clients(one: Evidence) -> int:
    return round(-math.log2(one.excess.least_p_value))


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."
