"""The content of `audit.json` for records and text: every figure of the page.

As in `record`, with these differences:

    {"kind": "record" or "sequence",
     "measure": {"score", "unit"},
     "fields": [{"name", "tolerance"}, ...],     # of a record or sequence
     "settings": [{... "utility": null, "leakage": null, "attack_free": null,
       "attackers": {NAME: {
         "config", "choice": null, "identified", "in_class", "game", "strongest", "closest", # as in `record`
         "excess",                               # right fields in percentage points above `strongest`
         "excess_exact",                         # exact items in percentage points above `strongest`; no test
         "exact",                                # clients with an exact item: "count", "total", "low", "high"
         "attack": {"right": DISTRIBUTION, "exact", "identified"},           # over items; "right" in percent
         "controls": {NAME: {... as "attack"}},
         "clients": [{"client", "right", "exact", "identified", "excess", "attack_loss"}, ...],
         "items": [{"client", "example", "found": [...], "truth": [...], "correct": [...], "identified"}, ...],
         "seconds_run"}}}]}

"found" and "truth" hold values of the fields, with names of categories; "right" is in percent of the fields.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxinvert import metrics
from jaxinvert.audit.discrete import DiscreteGround, DiscreteScores, Field
from jaxinvert.audit.evidence import rate
from jaxinvert.audit.privacy import Training
from jaxinvert.audit.record import frame, game_of
from jaxinvert.audit.results import Attacked, Audited


def record_discrete(
    audited: Sequence[Audited[Any, DiscreteScores, DiscreteGround]], training: Training | None = None
) -> dict[str, Any]:
    """The content of `audit.json`, see the module's docstring; `files.save_json` writes it.

    Args:
      audited: the judged scenarios.
      training: the training that privacy is accounted for, if it is known.

    Raises:
      ValueError: see `privacy`.
    """
    ground = audited[0].ground
    return {
        **frame(audited, training, lambda attacked: _attacker(attacked, ground)),
        "kind": ground.measure.item,
        "measure": {"score": ground.measure.score, "unit": ground.measure.unit},
        "fields": [{"name": field.name, "tolerance": field.tolerance} for field in ground.fields],
    }


def _attacker(attacked: Attacked[Any, DiscreteScores], ground: DiscreteGround) -> dict[str, Any]:
    scores, over = attacked.scores, attacked.controls[attacked.strongest]
    exact = rate(int(scores.exact.any(axis=1).sum()), len(scores.exact), chance=0.5)
    return {
        "config": attacked.summary["config"],
        "choice": attacked.summary["choice"],
        "identified": attacked.identified._asdict(),
        "in_class": attacked.in_class,
        "game": game_of(attacked.trials),
        "excess": attacked.excess._asdict(),
        "excess_exact": {name: getattr(attacked.gained, name) for name in ("mean", "low", "high")},
        "strongest": attacked.strongest,
        "closest": attacked.closest,
        "exact": {name: getattr(exact, name) for name in ("count", "total", "low", "high")},
        "attack": _figures(scores),
        "controls": {name: _figures(of_control) for name, of_control in attacked.controls.items()},
        "clients": [
            {
                "client": t,
                "right": float(scores.by_client[t]),
                "exact": int(scores.exact[t].sum()),
                "identified": int(scores.identified[t].sum()),
                "excess": float(scores.by_client[t] - over.by_client[t]),
                "attack_loss": float(attacked.summary["attack_loss"][t]),
            }
            for t in range(len(scores.correct))
        ],
        "items": [
            {
                "client": t,
                "example": b,
                "found": in_words(scores.matched[t, b], ground.fields),
                "truth": in_words(ground.truth[t, b], ground.fields),
                "correct": scores.correct[t, b],
                "identified": bool(scores.identified[t, b]),
            }
            for t, b in np.ndindex(scores.exact.shape)
        ],
        "seconds_run": attacked.summary["seconds"],
    }


def in_words(row: np.ndarray, fields: Sequence[Field]) -> list[Any]:
    """The values of a row `[F]`: names of categories, integers for tokens, numbers for continuous fields."""
    return [_in_words(float(value), field) for value, field in zip(row, fields)]


def _in_words(value: float, field: Field) -> Any:
    if not np.isfinite(value):
        return None
    if field.values:
        return field.values[int(value)] if 0 <= int(value) < len(field.values) else int(value)
    return value if field.scale else int(value)


def _figures(scores: DiscreteScores) -> Mapping[str, Any]:
    right = metrics.distribution("right", 100 * scores.correct.mean(axis=2))
    return {
        "right": right._asdict(),
        "exact": int(scores.exact.sum()),
        "identified": int(scores.identified.sum()),
    }
