"""What differential privacy DP-SGD gives: (epsilon, delta) by composition, and for what nothing can be promised.

DP-SGD takes `T` steps; every example takes part in a step with probability `q`, independently (Poisson sampling), its
gradient is clipped to norm `C`, and `N(0, (sigma C)^2)` is added to the sum. How much that hides is computed by
the library dp-accounting (`pip install 'jaxinvert[privacy]'`), from Renyi divergences or, tighter, from the
distribution of the privacy loss. Neighboring data sets differ in one example, added or removed.

References:
  Abadi et al.: Deep learning with differential privacy. CCS 2016, arXiv:1607.00133.
  Mironov, Talwar, Zhang: Renyi differential privacy of the sampled Gaussian mechanism, 2019, arXiv:1908.10530.
  Koskela, Jalko, Honkela: Computing tight differential privacy guarantees using FFT. AISTATS 2020, arXiv:1906.03049.
"""

import importlib
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from jaxinvert.defenses.registry import NONE, Chain

ASSUMPTION = (
    "holds if every example took part in every step with the stated probability, drawn independently (Poisson "
    "sampling), and if data sets that differ by one example count as neighbors; clients that shuffle and cut into "
    "batches have not sampled like that"
)
"""What an epsilon of this module rests on, for people: it belongs beside every one that is shown."""


class Guarantee(NamedTuple):
    """A promise of differential privacy.

    Attributes:
      epsilon: of a release; at least 0, `inf` if there is none.
      delta: the probability with which it may fail.
      assumption: what it rests on, in words.
    """

    epsilon: float
    delta: float
    assumption: str = ASSUMPTION


def guarantee(
    chain: Chain, parameters: Mapping[str, float], *, sampling_rate: float, num_steps: int, delta: float
) -> Guarantee:
    """What a defense guarantees, by the tight accountant; refuses where that is nothing.

    After DP-SGD every further defense that reads the update alone leaves the guarantee as it is.

    Args:
      chain: the defenses, see `defenses.registry.parse`.
      parameters: all of them under their full names, see `Chain.parameters`.
      sampling_rate: `q`, in (0, 1].
      num_steps: `T`, at least 1: all releases of the whole training, not those that were attacked.
      delta: in (0, 1), well below one over the number of examples.

    Raises:
      ValueError: for anything but a chain that begins with "dp-sgd", and says why; else as `tight_epsilon`.
    """
    if chain.names[:1] != ("dp-sgd",):
        named = zip(chain.names, chain.recipes)
        reasons = "; ".join(f"{name}: {recipe.no_epsilon}" for name, recipe in named) or "it changes nothing"
        defense = "+".join(chain.names) or NONE
        raise ValueError(f"defense {defense!r} is not differentially private, so there is no epsilon ({reasons})")
    epsilon = tight_epsilon(
        sampling_rate=sampling_rate,
        noise_multiplier=parameters["dp-sgd.multiplier"],
        num_steps=num_steps,
        delta=delta,
    )
    return Guarantee(epsilon, delta)


def renyi_epsilon(*, sampling_rate: float, noise_multiplier: float, num_steps: int, delta: float) -> float:
    """Epsilon of DP-SGD by composing Renyi divergences: an upper bound, fast.

    Args:
      sampling_rate: `q`, in (0, 1].
      noise_multiplier: `sigma`, the noise on the *sum* of clipped gradients in units of their bound; positive.
      num_steps: `T`, at least 1.
      delta: in (0, 1).

    Raises:
      ValueError: for a number out of its range, or without the library dp-accounting.
    """
    event = _training(sampling_rate, noise_multiplier, num_steps, delta)
    return _epsilon(_library("dp_accounting.rdp").RdpAccountant(), event, delta)


def tight_epsilon(*, sampling_rate: float, noise_multiplier: float, num_steps: int, delta: float) -> float:
    """Epsilon of DP-SGD by composing the distribution of the privacy loss: tighter than `renyi_epsilon`, slower.

    Args:
      sampling_rate: as in `renyi_epsilon`, and so are the other arguments.
      noise_multiplier: `sigma`.
      num_steps: `T`.
      delta: in (0, 1).

    Raises:
      ValueError: as `renyi_epsilon`.
    """
    event = _training(sampling_rate, noise_multiplier, num_steps, delta)
    return _epsilon(_library("dp_accounting.pld").PLDAccountant(), event, delta)


def _training(sampling_rate: float, noise_multiplier: float, num_steps: int, delta: float) -> Any:
    """All of the training as the library's event."""
    if not 0 < sampling_rate <= 1:
        raise ValueError(f"sampling_rate is {sampling_rate}, expected more than 0 and at most 1")
    if not 0 < noise_multiplier < math.inf:
        raise ValueError(
            f"noise_multiplier is {noise_multiplier}, expected a positive number: there is no epsilon else"
        )
    if num_steps < 1:
        raise ValueError(f"num_steps is {num_steps}, expected at least 1")
    if not 0 < delta < 1:
        raise ValueError(f"delta is {delta}, expected more than 0 and less than 1")
    events = _library("dp_accounting")
    step = events.PoissonSampledDpEvent(sampling_rate, events.GaussianDpEvent(noise_multiplier))
    return events.SelfComposedDpEvent(step, num_steps)


def _epsilon(accountant: Any, event: Any, delta: float) -> float:
    accountant.compose(event)
    return float(accountant.get_epsilon(delta))


def _library(name: str) -> Any:
    """A part of dp-accounting, which only this module needs."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise ValueError("an epsilon needs the library dp-accounting: pip install 'jaxinvert[privacy]'") from error
