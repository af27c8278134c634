"""What differential privacy promises of a setting, beside what its attackers reached."""

from collections.abc import Mapping
from typing import NamedTuple

from jaxinvert.audit.evidence import Trials
from jaxinvert.defenses.accounting import guarantee, shown_epsilon, success_bound, tight_epsilon
from jaxinvert.jobs import JobConfig

_DELTA = 1e-5
"""Of an epsilon of one release, where that of the training is not given."""


class Training(NamedTuple):
    """The whole training that an attacked update is a part of, which a guarantee is about.

    Attributes:
      sampling_rate: probability with which an example takes part in a step.
      num_steps: of the whole training.
      delta: the probability with which the guarantee may fail.
    """

    sampling_rate: float
    num_steps: int
    delta: float


class Privacy(NamedTuple):
    """A guarantee, or why there is none.

    Attributes:
      epsilon: with `delta` of the training, or `None`.
      words: what it means, what it rests on, or why there is none.
    """

    epsilon: float | None
    words: str


def privacy(config: JobConfig, training: Training | None) -> Privacy | None:
    """The guarantee of a job's defense over a training; `None` without a defense, for which nobody expects one.

    Raises:
      ValueError: for a training that cannot be, or without the accountant's library.
    """
    chain, parameters = config.defense.chain, config.defense.parameters
    if not chain.names:
        return None
    if chain.names[0] != "dp-sgd":
        try:
            guarantee(chain, parameters, sampling_rate=1.0, num_steps=1, delta=0.5)
        except ValueError as error:
            return Privacy(None, str(error))
    if training is None:
        return Privacy(None, "an epsilon is about the whole training: give its sampling rate and number of steps")
    found = guarantee(chain, parameters, **training._asdict())
    words = (
        f"epsilon {found.epsilon:.3g} with delta {found.delta:g}, over {training.num_steps:,} steps, sampling rate "
        f"{training.sampling_rate:g}; it {found.assumption}"
    )
    return Privacy(found.epsilon, words)


class Allowed(NamedTuple):
    """What differential privacy allows at most, beside what the attackers reached in the same game.

    The game is to pick one image of a client out among the candidates that the attacker cannot rule out: all, or
    those of its class where labels are granted. The bounds hold against this side knowledge: an attacker who can rule
    out more starts from a higher baseline.

    Attributes:
      attacker: who picked out most.
      trials: of this attacker.
      release: the most that DP-SGD allows as the share of games won, from what was attacked.
      training: the same from all releases of the training, or `None` if that is not known.
      delta: of the next two.
      epsilon: of what was attacked, each image with certainty a part of it: an upper bound.
      shown: the epsilon that the attackers' success shows at least, with 95 % confidence over all of them.
    """

    attacker: str
    trials: Trials
    release: float
    training: float | None
    delta: float
    epsilon: float
    shown: float


def allowed(config: JobConfig, trials: Mapping[str, Trials], training: Training | None) -> Allowed | None:
    """Both bounds of a setting that has an accountant; `None` for others, and if there was no game to win.

    Args:
      config: of any of the attackers.
      trials: by name of the attacker.
      training: whole, if it is known.

    Raises:
      ValueError: as `privacy`.
    """
    if config.defense.chain.names[:1] != ("dp-sgd",) or not all(one.total for one in trials.values()):
        return None
    attacker = max(trials, key=lambda name: trials[name].count / trials[name].baseline)
    multiplier = config.defense.parameters["dp-sgd.multiplier"]
    release = {"sampling_rate": 1.0, "noise_multiplier": multiplier, "num_steps": config.observation.rounds}
    delta, baseline = _DELTA if training is None else training.delta, trials[attacker].baseline
    whole = None
    if training is not None:
        steps = {"sampling_rate": training.sampling_rate, "num_steps": training.num_steps}
        whole = success_bound(noise_multiplier=multiplier, baseline=baseline, **steps)
    return Allowed(
        attacker,
        trials[attacker],
        success_bound(baseline=baseline, **release),
        whole,
        delta,
        tight_epsilon(delta=delta, **release),
        max(
            shown_epsilon(one.count, one.total, baseline=one.baseline, delta=delta, confidence=1 - 0.05 / len(trials))
            for one in trials.values()
        ),
    )
