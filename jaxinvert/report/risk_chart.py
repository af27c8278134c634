"""The chart of an audit's risk: for each setting what attacks reached, what no attack can reach, and the accuracy.

Three plots share the rows, one row for each setting:

- *Picked out.* The share of games that the attacker won, with its exact 95 % interval, and guessing. In a game
  the attacker picks one image of a client out of the candidates that it cannot rule out. Shares that differential
  privacy rules out, for an attacker without further knowledge, are shaded.
- *PSNR*, or the share of fields or tokens that are right. What the attacker that the verdict rests on reached, the
  strongest control, and the attack-free figure.
- *Accuracy* of training under the defense, if it was measured.

`decision` is the sentence above the chart. Together they must suffice to decide.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from jaxinvert.audit import UNDEFENDED, percent
from jaxinvert.report.charts import MOST_DB, axis
from jaxinvert.report.wording import number, plural

_WORTH_DB = 15.0
"""An attack-free figure below this PSNR warns of nothing: little of a picture is left there."""
_STRONGER_DB = 6.0
"""From this difference on, the attack-free figure says that the attack was weak."""
_ORDER = ("leaks", "traces", "inconclusive", "none")

UPPER_BOUND = "diagnostic upper bound"
ADVICE = {
    "leaks, as deployed": (
        "do not send these updates in the clear: larger batches, secure aggregation, DP-SGD; audit again"
    ),
    f"leaks, {UPPER_BOUND}": "audit the deployed case, without what this page marks “favors the attacker”",
    "traces": "treat as a leak if the data are sensitive; more clients and restarts may decide",
    "inconclusive": "audit at least {needed}",
    "none": "keep the page with its assumptions; audit again when network, batch or defense change",
}
"""What to decide in each case, for this page and for the guide to it (`docs/howto/reading-an-audit.md`)."""
FLAGS = "--num-examples, --client fedavg, --checkpoint, --batch-norm train, --labels restored"
"""By which an audit of images comes near its deployed case."""


def decision(settings: Sequence[Mapping[str, Any]], *, kind: str = "as deployed", item: str = "image") -> str:
    """What the audit says about all settings, and what it does not say, in a few sentences.

    Args:
      settings: settings of an audit's record, see `jaxinvert.audit.record`.
      kind: how realistic its assumptions are, see `jobs.realism.Realism`.
      item: what is private: "image", "record" or "sequence".
    """
    by_level = {level: [one for one in settings if one["verdict"]["level"] == level] for level in _ORDER}
    sentences = []
    if by_level["leaks"]:
        found = by_level["leaks"]
        flags = f": {FLAGS}" if kind == UPPER_BOUND and item == "image" else ""
        sentences.append(f"{under(found)}, updates leak: {ADVICE[f'leaks, {kind}']}{flags}")
    if by_level["traces"]:
        sentences.append(f"{under(by_level['traces'])}, updates show traces of a leak: {ADVICE['traces']}")
    if by_level["inconclusive"]:
        needed = max(one["verdict"]["clients_needed"] for one in by_level["inconclusive"])
        told = ADVICE["inconclusive"].format(needed=plural(needed, "client"))
        sentences.append(f"Undecided {under(by_level['inconclusive'])}: {told}")
    for one in by_level["none"]:
        sentences.append(f"No leak was found {under([one])}{_accuracy(one, settings)}; {_limit(one)}")
        sentences += _warning(one)
    if by_level["none"]:
        sentences.append(ADVICE["none"])
    return " ".join(f"{sentence[0].upper()}{sentence[1:]}." for sentence in sentences)


def worst_first(settings: Sequence[Mapping[str, Any]]) -> int:
    """Index of the setting with the worst verdict, the first one of several."""
    return min(range(len(settings)), key=lambda index: _ORDER.index(settings[index]["verdict"]["level"]))


def attack_free_words(settings: Sequence[Mapping[str, Any]]) -> list[str]:
    """What the attack-free figures assume, or why there is none, each with the names of its settings."""
    of_words: dict[str, list[Mapping[str, Any]]] = {}
    for one in settings:
        found = one["attack_free"]
        if found is not None:
            said = f"no attack-free figure: {found['reason']}" if found["psnr_db"] is None else found["words"]
            of_words.setdefault(said, []).append(one)
            if found["unbiased_db"] is not None:
                most = number(found["unbiased_db"]["median"], "psnr_db")
                said = f"attacks without bias reach {most} dB at most (median), {found['unbiased_words']}"
                of_words.setdefault(said, []).append(one)
    return [f"{_named(ones)}: {said}." for said, ones in of_words.items()]


def risk_chart(settings: Sequence[Mapping[str, Any]], *, item: str = "image") -> dict[str, Any]:
    """Paths, ticks and captions of the chart, for the template.

    Args:
      settings: settings of an audit's record, see `jaxinvert.audit.record`.
      item: what is private: "image", or "record" or "sequence", whose score is the percentage that is right.
    """
    figure = "psnr_db" if item == "image" else "right"
    most = MOST_DB if item == "image" else 100.0
    ends = np.array([value for one in settings for value in _ends(one, figure)])
    along, ticks = axis(np.minimum(ends, most), pad=0.04)

    def place(value: ArrayLike) -> np.ndarray:
        return along(np.minimum(value, most))

    score = {"image": "PSNR in dB", "record": "fields right in %", "sequence": "tokens right in %"}[item]
    with_accuracy = any(one["utility"] for one in settings)
    return {
        "with_accuracy": with_accuracy,
        "item": item,
        "measure": "PSNR" if item == "image" else "right values",
        "score": f"{score}, at most {most:.0f}" if (ends > most).any() else score,
        "ticks": {"share": [(0.0, "0"), (50.0, "50"), (100.0, "100 %")], "score": ticks},
        "rows": [
            {
                "name": one["name"],
                "level": one["verdict"]["level"],
                "share": _share(one, item),
                "score": _score(one, figure, place),
                "accuracy": _accuracy_bar(one) if with_accuracy else None,
            }
            for one in settings
        ],
        "with_bound": any(_bound(one) is not None for one in settings),
        "with_attack_free": any(_attack_free(one) for one in settings),
    }


def _share(one: Mapping[str, Any], item: str) -> dict[str, Any]:
    game = one["attackers"][one["worst"]]["game"]
    if not game["total"]:
        return {"paths": [], "words": f"no game: labels alone identify the {item}s", "bound": ""}
    share, bound = 100 * game["count"] / game["total"], _bound(one)
    low, high, guess = (100 * game[name] for name in ("low", "high", "baseline"))
    interval = f"{percent(game['low'])} to {percent(game['high'])}"
    paths = [] if bound is None else [("ruled-out", f"M{100 * bound:.2f} 15H100V85H{100 * bound:.2f}Z")]
    paths += [
        ("guess", f"M{guess:.2f} 15V85"),
        ("interval", f"M{low:.2f} 50H{high:.2f}"),
        ("reached", f"M{share:.2f} 50h0"),
    ]
    return {
        "paths": paths,
        "words": f"{game['count']} of {game['total']} ({interval}), guessing {percent(game['baseline'])}",
        "bound": "" if bound is None else f"at most {percent(bound)} of any attack",
    }


def _score(one: Mapping[str, Any], figure: str, place: Callable[[ArrayLike], np.ndarray]) -> dict[str, Any]:
    attacker = one["attackers"][one["worst"]]
    reached, control = attacker["attack"][figure], attacker["controls"][attacker["strongest"]][figure]
    at = {name: float(place(value)) for name, value in reached.items() if np.isfinite(value)}
    paths = [("guess", f"M{float(place(control['median'])):.2f} 15V85")]
    if "median" in at:
        paths += [
            ("whole", f"M{at['min']:.2f} 50H{at['max']:.2f}"),
            ("interval", f"M{at['q25']:.2f} 50H{at['q75']:.2f}"),
            ("reached", f"M{at['median']:.2f} 50h0"),
        ]
    free = _attack_free(one)
    if free:
        middle, low, high = (float(place(value)) for value in free)
        paths += [("free", f"M{low:.2f} 78H{high:.2f}"), ("free mark", f"M{middle:.2f} 78h0")]
    unit = "dB" if figure == "psnr_db" else "%"
    median, of_control = (number(values["median"], figure) for values in (reached, control))
    return {
        "paths": paths,
        "words": f"median {median} {unit}, median of the control {of_control} {unit}",
        "bound": f"attack-free {_range_db(free)}" if free else "",
    }


def _accuracy_bar(one: Mapping[str, Any]) -> dict[str, Any]:
    if not one["utility"]:
        return {"paths": [], "words": "not measured", "bound": ""}
    last = 100 * one["utility"]["accuracy"][-1]
    return {
        "paths": [("interval", f"M0 50H{last:.2f}"), ("reached", f"M{last:.2f} 50h0")],
        "words": f"{last:.1f} %",
        "bound": "",
    }


def _ends(one: Mapping[str, Any], figure: str) -> list[float]:
    """Smallest and largest score of a row."""
    attacker = one["attackers"][one["worst"]]
    reached, free = attacker["attack"][figure], _attack_free(one) or ()
    control = attacker["controls"][attacker["strongest"]][figure]["median"]
    ends = [reached["min"], reached["max"], control, *free]
    return [value for value in ends if np.isfinite(value)]


def _bound(one: Mapping[str, Any]) -> float | None:
    """Largest share of games that differential privacy allows for the attacked release; `None` without guarantee."""
    allowed = (one["privacy"] or {}).get("allowed")
    return None if allowed is None else allowed["release"]


def _attack_free(one: Mapping[str, Any]) -> tuple[float, float, float] | None:
    """The attack-free figure in dB and the ends of its range, each the median over clients, if there is one."""
    found = one["attack_free"]
    if found is None or found["psnr_db"] is None:
        return None
    middle, low, high = (float(found[name]["median"]) for name in ("psnr_db", "low_db", "high_db"))
    return middle, low, high


def _range_db(free: tuple[float, float, float]) -> str:
    middle, low, high = (number(value, "psnr_db") for value in free)
    return f"{middle} dB ({low} to {high})"


def _limit(one: Mapping[str, Any]) -> str:
    bound = _bound(one)
    if bound is None:
        return "nothing proves that a stronger attack finds none"
    return f"differential privacy limits attacks with this knowledge to {percent(bound)} picked out"


def _warning(one: Mapping[str, Any]) -> list[str]:
    """A warning if the update allows much more than the attack reached, by the low end of the attack-free figure."""
    free, reached = _attack_free(one), one["attackers"][one["worst"]]["attack"].get("psnr_db")
    if not free or not reached or free[1] < max(_WORTH_DB, reached["median"] + _STRONGER_DB):
        return []
    median = number(reached["median"], "psnr_db")
    told = f"the attack-free figure is {_range_db(free)} and the attack reached {median} dB"
    return [f"There, {told}: it was weak, so do not rely on its failure"]


def _accuracy(one: Mapping[str, Any], settings: Sequence[Mapping[str, Any]]) -> str:
    if not one["utility"]:
        return ""
    best = max(other["utility"]["accuracy"][-1] for other in settings if other["utility"])
    own = one["utility"]["accuracy"][-1]
    return f" (accuracy {100 * own:.1f} %{f', best setting {100 * best:.1f} %' if best > own else ''})"


def _named(settings: Sequence[Mapping[str, Any]]) -> str:
    names = [f"“{one['name']}”" for one in settings]
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def under(settings: Sequence[Mapping[str, Any]]) -> str:
    """The settings in a sentence, such as "without a defense and under “top-k (keep 0.1)”"."""
    defended = [one for one in settings if one["name"] != UNDEFENDED]
    parts = ["without a defense"] if len(defended) < len(settings) else []
    return " and ".join([*parts, *([f"under {_named(defended)}"] if defended else [])])
