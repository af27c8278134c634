"""Differential-privacy guarantees of a scenario, compared with the success of its attackers."""

from collections.abc import Mapping
from typing import NamedTuple

from jaxinvert.audit.evidence import Trials
from jaxinvert.defenses.accounting import guarantee, shown_epsilon, success_bound, tight_epsilon
from jaxinvert.jobs import JobConfig
from jaxinvert.jobs.records import RecordsConfig
from jaxinvert.jobs.text import TextConfig

_DELTA = 1e-5
"""Delta of the epsilon of one release, if the delta of the training is not given."""


class Training(NamedTuple):
    """The whole training, to which a guarantee applies and to which the attacked update belongs.

    Attributes:
      sampling_rate: probability that an example takes part in a step.
      num_steps: number of steps of the whole training.
      delta: probability that the guarantee may fail.
    """

    sampling_rate: float
    num_steps: int
    delta: float


class Privacy(NamedTuple):
    """The guarantee of a defense, or the reason why it has none.

    Attributes:
      epsilon: epsilon at the training's `delta`, or `None`.
      words: the guarantee in words with its assumptions, or the reason why there is none.
    """

    epsilon: float | None
    words: str


def privacy(config: JobConfig | RecordsConfig | TextConfig, training: Training | None) -> Privacy | None:
    """The guarantee of a job's defense over a whole training; `None` for a job without a defense.

    Raises:
      ValueError: for an invalid training, or if the accountant's library is not installed.
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
        return Privacy(None, "an epsilon covers the whole training: give its sampling rate and its number of steps")
    found = guarantee(chain, parameters, **training._asdict())
    words = (
        f"epsilon {found.epsilon:.3g} with delta {found.delta:g}, over {training.num_steps:,} steps, sampling rate "
        f"{training.sampling_rate:g}; it {found.assumption}"
    )
    return Privacy(found.epsilon, words)


class Allowed(NamedTuple):
    """Bounds of differential privacy on the success of attacks, compared with the attackers' success in one game.

    The game is to pick one image of a client out of the candidates that the attacker cannot rule out: all of them, or
    those of its class if labels are granted. The bounds hold for this side knowledge: an attacker who can rule out
    more candidates starts from a higher baseline.

    Attributes:
      attacker: the attacker that won the most games, relative to its baseline.
      trials: games of this attacker.
      release: upper bound of DP-SGD on the share of games won, from the attacked release.
      training: upper bound from all releases of the training, or `None` if the training is unknown.
      delta: delta of `epsilon` and `shown`.
      epsilon: upper bound on the epsilon of the attacked release, in which every image takes part with certainty.
      shown: lower bound on epsilon from the success of the attackers, with 95 % confidence over all of them.
    """

    attacker: str
    trials: Trials
    release: float
    training: float | None
    delta: float
    epsilon: float
    shown: float


def allowed(
    config: JobConfig | RecordsConfig | TextConfig, trials: Mapping[str, Trials], training: Training | None
) -> Allowed | None:
    """The bounds for a scenario with DP-SGD; `None` for other defenses, and if an attacker had no game to play.

    Args:
      config: the job of any of the attackers.
      trials: games by name of the attacker.
      training: the whole training, if it is known.

    Raises:
      ValueError: see `privacy`.
    """
    if config.defense.chain.names[:1] != ("dp-sgd",) or not all(one.total for one in trials.values()):
        return None
    attacker = max(trials, key=lambda name: trials[name].count / trials[name].baseline)
    multiplier = config.defense.parameters["dp-sgd.multiplier"]
    num_rounds = config.observation.rounds if isinstance(config, JobConfig) else 1  # a record is in one update
    release = {"sampling_rate": 1.0, "noise_multiplier": multiplier, "num_steps": num_rounds}
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
