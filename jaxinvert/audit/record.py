"""The content of `audit.json`: every figure of the page, and nothing that depends on when the audit ran.

    {"format": 1, "num_clients", "num_examples", "num_candidates", "significance",
     "assumptions": {...},                       # assumptions of the first setting's first attacker
     "settings": [{
       "name", "worst",                          # name of the attacker on whose evidence the verdict rests
       "verdict": {"level", "headline", "certainty", "clients_needed"},
       "note",                                   # such as why there is no adaptive attacker
       "privacy": {"epsilon" or null, "words",
         "allowed": {                            # bounds of differential privacy, see `Allowed`, or null
           "attacker", "trials": {"count", "total", "baseline"}, "release", "training", "delta", "epsilon", "shown"
         }} or null,
       "utility": {"rounds", "accuracy": [...], "num_test"} or null,
       "leakage": [{                             # to the worst attacker after "round" rounds of training, or null
         "round", "identified", "excess_psnr_db", "strongest", "choice",   # as below; round 0 is the same attack
         "psnr_db": DISTRIBUTION}, ...],         # over images
       "attack_free": {                         # see `AttackFree`; null if it was not requested
         "psnr_db", "low_db", "high_db", "unbiased_db": DISTRIBUTION or null,      # over clients
         "words", "reason", "unbiased_words"} or null,
       "attackers": {NAME: {
         "config": {...},
         "choice",                               # in words, the method that the attack "auto" chose, or null
         "identified": {"count", "total", "low", "high", "chance", "p_value", "least_p_value"},     # clients
         "in_class",                             # whether candidates are limited to the class, as labels were granted
         "game": {"count", "total", "baseline", "low", "high"},     # to pick one image of each client, see `Trials`
         "excess_psnr_db", "excess_ssim": {"mean", "low", "high", "p_value", "least_p_value"},      # over `strongest`
         "strongest",                            # control with the highest mean PSNR
         "closest",                              # control with the largest p of the PSNR; the excess has this p
         "above_db": {"20": {...}, "30": {...}}, # clients with an image at or above: "count", "total", "low", "high"
         "identified_in_class": {"share", "num_images"} or null,
         "labels": {"exact", "recall"} or null,  # of restored labels; null if they were granted
         "attack": {"psnr_db", "ssim", "mse": DISTRIBUTION, "identified"},     # over images, identified among all
                                                 # candidates; "lpips" and "identified_by_lpips" if requested
         "controls": {NAME: {... as "attack"}},
         "clients": [{"client", "psnr_db", "best_psnr_db", "ssim", "identified", "excess_db", "attack_loss"}, ...],
         "images": [{"client", "example", "label", "class_name", "psnr_db", "ssim", "mse", "identified"}, ...],
         "seconds_run"}}}],
     "versions": {...}, "device"}

For captured updates without their truth:

    {"format": 1, "assumptions", "versions", "device",
     "explained": {ATTACKER: {"config", "share": [T], "share_of_random_updates": [T]}}}

A `DISTRIBUTION` has `mean`, `std`, `min`, `q25`, `median`, `q75`, `max`. Undefined numbers are `null`.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from jaxinvert import jobs, metrics
from jaxinvert.audit.attack_free import AttackFree
from jaxinvert.audit.captured import Explained
from jaxinvert.audit.evidence import Trials, rate
from jaxinvert.audit.privacy import Training, allowed, privacy
from jaxinvert.audit.results import Attacked, Audited
from jaxinvert.audit.scoring import Scores
from jaxinvert.audit.verdict import SIGNIFICANCE
from jaxinvert.jobs import JobConfig

FORMAT = 1
THRESHOLDS_DB = (20.0, 30.0)
"""PSNR from which most images are recognizable, and from which they look the same as their original."""


def record(audited: Sequence[Audited], training: Training | None = None) -> dict[str, Any]:
    """The content of `audit.json`, see the module's docstring; `files.save_json` writes it.

    Args:
      audited: the judged scenarios.
      training: the training that privacy is accounted for, if it is known.

    Raises:
      ValueError: see `privacy`.
    """
    return frame(audited, training, _attacker)


def frame(
    audited: Sequence[Audited], training: Training | None, attacker: Callable[[Attacked], dict[str, Any]]
) -> dict[str, Any]:
    """What the records of all kinds of private data have in common.

    Args:
      audited: the judged scenarios.
      training: the training that privacy is accounted for, if it is known.
      attacker: the record of one attacker.
    """
    ground, first = audited[0].ground, next(iter(audited[0].attackers.values()))
    return {
        "format": FORMAT,
        "num_clients": ground.private.shape[0],
        "num_examples": ground.private.shape[1],
        "num_candidates": len(ground.labels),
        "significance": SIGNIFICANCE,
        "assumptions": first.summary["assumptions"],
        "settings": [
            {
                "name": one.name,
                "worst": one.worst,
                "verdict": one.verdict._asdict(),
                "note": one.note,
                "privacy": privacy_of(one, training),
                "utility": None if one.utility is None else one.utility._asdict(),
                "leakage": None if one.leakage is None else [_after(*each) for each in one.leakage.items()],
                "attack_free": _attack_free(one.attack_free),
                "attackers": {name: attacker(attacked) for name, attacked in one.attackers.items()},
            }
            for one in audited
        ],
        "versions": first.summary["versions"],
        "device": first.summary["device"],
    }


def record_of_capture(found: Mapping[str, tuple[JobConfig, Explained]]) -> dict[str, Any]:
    """The content of `audit.json` for captured updates whose truth is unknown."""
    return {
        "format": FORMAT,
        "assumptions": next(iter(found.values()))[1].assumptions,
        "explained": {
            name: {"config": config.flat, "share": one.share, "share_of_random_updates": one.share_of_noise}
            for name, (config, one) in found.items()
        },
        "versions": jobs.versions(),
        "device": jobs.device_name(),
    }


def privacy_of(one: Audited, training: Training | None) -> dict[str, Any] | None:
    """The guarantee of a scenario's defense with its bounds; `None` without a defense."""
    config = one.attackers[one.worst].config
    promised = privacy(config, training)
    if promised is None:
        return None
    most = allowed(config, {name: attacked.trials for name, attacked in one.attackers.items()}, training)
    return {**promised._asdict(), "allowed": most and {**most._asdict(), "trials": most.trials._asdict()}}


def _after(num_rounds: int, attacked: Attacked) -> dict[str, Any]:
    return {
        "round": num_rounds,
        "identified": attacked.identified._asdict(),
        "excess_psnr_db": attacked.excess._asdict(),
        "strongest": attacked.strongest,
        "choice": attacked.summary["choice"],
        "psnr_db": metrics.distribution("psnr_db", attacked.scores.psnr_db)._asdict(),
    }


def _attacker(attacked: Attacked) -> dict[str, Any]:
    scores, null = attacked.scores, attacked.controls[attacked.strongest]
    in_class = scores.identified_in_class[~np.isnan(scores.identified_in_class)]
    found = attacked.summary["labels"]
    return {
        "config": attacked.summary["config"],
        "choice": attacked.summary["choice"],
        "identified": attacked.identified._asdict(),
        "in_class": attacked.in_class,
        "game": game_of(attacked.trials),
        "excess_psnr_db": attacked.excess._asdict(),
        "excess_ssim": attacked.gained._asdict(),
        "strongest": attacked.strongest,
        "closest": attacked.closest,
        "above_db": {f"{level:.0f}": _share_above(scores, level) for level in THRESHOLDS_DB},
        "identified_in_class": {"share": float(in_class.mean()), "num_images": in_class.size}
        if in_class.size
        else None,
        "labels": None if found is None else {"exact": int(np.sum(found["exact"])), "recall": found["recall"]},
        "attack": _distributions(scores),
        "controls": {name: _distributions(of_control) for name, of_control in attacked.controls.items()},
        "clients": [
            {
                "client": t,
                "psnr_db": float(scores.psnr_db[t].mean()),
                "best_psnr_db": float(scores.psnr_db[t].max()),
                "ssim": float(scores.ssim[t].mean()),
                "identified": int(scores.identified[t].sum()),
                "excess_db": float(scores.psnr_db[t].mean() - null.psnr_db[t].mean()),
                "attack_loss": attacked.summary["targets"][t]["attack_loss"],
            }
            for t in range(len(scores.psnr_db))
        ],
        "images": [
            {
                "client": image["target"],
                **{name: image[name] for name in ("example", "label", "class_name", "psnr_db", "ssim", "mse")},
                "identified": bool(scores.identified[image["target"], image["example"]]),
            }
            for image in attacked.summary["images"]
        ],
        "seconds_run": attacked.summary["seconds_run"],
    }


def _attack_free(found: AttackFree | None) -> dict[str, Any] | None:
    if found is None:
        return None
    figures = {name: getattr(found, name) for name in ("psnr_db", "low_db", "high_db", "unbiased_db")}
    return {
        **{
            name: None if values is None else metrics.distribution("psnr_db", values.mean(axis=1))._asdict()
            for name, values in figures.items()
        },
        **{name: getattr(found, name) for name in ("words", "reason", "unbiased_words")},
    }


def game_of(trials: Trials) -> dict[str, Any]:
    """Games with the exact interval of the share won."""
    if not trials.total:
        return {**trials._asdict(), "low": 0.0, "high": 1.0}
    found = rate(trials.count, trials.total, chance=trials.baseline)
    return {**trials._asdict(), "low": found.low, "high": found.high}


def _share_above(scores: Scores, level: float) -> dict[str, Any]:
    """Clients with an image at or above `level` dB, with the exact interval."""
    clients = scores.psnr_db.max(axis=1) >= level
    found = rate(int(clients.sum()), len(clients), chance=0.5)
    return {name: getattr(found, name) for name in ("count", "total", "low", "high")}


def _distributions(scores: Scores) -> dict[str, Any]:
    measures = {"psnr_db": scores.psnr_db, "ssim": scores.ssim, "mse": scores.mse}
    if scores.lpips is not None:
        measures["lpips"] = scores.lpips
    return {
        **{name: metrics.distribution(name, values)._asdict() for name, values in measures.items()},
        "identified": int(scores.identified.sum()),
        **({} if scores.recognized is None else {"identified_by_lpips": int(scores.recognized.sum())}),
    }
