"""The verdict in words: what the evidence says, how sure it is, and what it cannot say."""

from typing import Literal, NamedTuple

from jaxinvert.audit.evidence import Excess, Rate

SIGNIFICANCE = 0.01
"""Chance of any evidence at all where nothing leaks, for one audited setting, over all its tests and attackers."""

Level = Literal["leaks", "traces", "none", "inconclusive"]


class Verdict(NamedTuple):
    """What the evidence says of one setting.

    Attributes:
      level: "leaks" if reconstructions pick out their private images; "traces" if they are only closer to them than
        the controls; "none" if neither is shown; "inconclusive" if so few clients could not have shown it.
      headline: a sentence.
      certainty: a sentence with the interval, and what it does not exclude.
    """

    level: Level
    headline: str
    certainty: str


def judge(
    identified: Rate, excess: Excess, *, num_candidates: int, strongest: str, num_attackers: int = 1
) -> Verdict:
    """Weighs the evidence on a setting, from the worst of its attackers.

    Each of two tests for each attacker gets an equal part of `SIGNIFICANCE` (Bonferroni).

    Args:
      identified: clients with at least one image identified.
      excess: of the PSNR in dB over the strongest control.
      num_candidates: that each image was compared with, itself included.
      strongest: name of that control.
      num_attackers: attackers that were tried, of which this is the worst.
    """
    enough = SIGNIFICANCE / (2 * num_attackers)
    picked = (
        f"{identified.count} of {identified.total} clients had an image picked out among {num_candidates} candidates"
    )
    interval = (
        f"95 % interval {_percent(identified.low)} to {_percent(identified.high)} of clients, "
        f"guessing reaches {_percent(identified.chance)}"
    )
    side = "above" if excess.mean >= 0 else "below"
    gain = (
        f"PSNR is {abs(excess.mean):.1f} dB {side} the strongest control, {strongest} "
        f"(95 % interval {excess.low:+.1f} to {excess.high:+.1f})"
    )
    if identified.p_value < enough:
        closer = gain if excess.low > 0 else f"in pixels they need not be close: {gain}"
        return Verdict("leaks", f"This leaks: {picked}.", f"{_sentence(interval)} {_sentence(closer)}")
    if excess.p_value < enough:
        return Verdict(
            "traces",
            "There are traces: reconstructions are closer to the private images than any control, but do not pick "
            "them out.",
            f"{_sentence(gain)} {_sentence(picked)} {_sentence(interval)}",
        )
    if min(identified.least_p_value, excess.least_p_value) >= enough:
        return Verdict(
            "inconclusive",
            f"Too few clients to tell: {identified.total}.",
            f"Even a full success could not have been told from guessing. {_sentence(picked)} {_sentence(interval)}",
        )
    return Verdict(
        "none",
        "No evidence above the null controls, for this attack and these assumptions.",
        f"That is no proof of safety: up to {_percent(identified.high)} of clients could be identified and {picked}. "
        f"{_sentence(gain)} A stronger attack may find more.",
    )


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."
