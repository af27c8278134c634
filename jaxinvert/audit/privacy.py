"""What differential privacy promises of a setting, beside what its attackers reached."""

from typing import NamedTuple

from jaxinvert.defenses.accounting import guarantee
from jaxinvert.jobs import JobConfig


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
