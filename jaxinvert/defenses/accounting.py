"""Privacy accounting: the (epsilon, delta) guarantee of DP-SGD by composition, and an error for other defenses.

DP-SGD takes `T` steps. In each step, every example participates independently with probability `q` (Poisson
sampling), its gradient is clipped to norm `C`, and `N(0, (sigma C)^2)` is added to the sum. The library dp-accounting
(`pip install 'jaxinvert[privacy]'`) computes epsilon from Renyi divergences or, tighter, from the distribution of the
privacy loss. Neighboring data sets differ in one example, added or removed.

References:
  Abadi et al.: Deep learning with differential privacy. CCS 2016, arXiv:1607.00133.
  Mironov, Talwar, Zhang: Renyi differential privacy of the sampled Gaussian mechanism, 2019, arXiv:1908.10530.
  Koskela, Jalko, Honkela: Computing tight differential privacy guarantees using FFT. AISTATS 2020, arXiv:1906.03049.
"""

import importlib
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import scipy  # whose modules are imported when they are used: this takes long

from jaxinvert.defenses.registry import NONE, Chain

ASSUMPTION = (
    "assumes that every example participates in every step independently with the stated probability (Poisson "
    "sampling), and that neighboring data sets differ by one added or removed example; clients that shuffle their "
    "examples and split them into batches do not sample like that"
)
"""The assumptions of every epsilon of this module, in words; to be shown with each epsilon."""

_GRID = 1e-4
"""Of privacy losses, for noise multipliers of 1 and more."""


class Guarantee(NamedTuple):
    """A guarantee of (epsilon, delta)-differential privacy.

    Attributes:
      epsilon: the privacy loss; at least 0, `inf` if there is no guarantee.
      delta: the probability with which the guarantee may fail.
      assumption: the assumptions of the guarantee, in words.
    """

    epsilon: float
    delta: float
    assumption: str = ASSUMPTION


def guarantee(
    chain: Chain, parameters: Mapping[str, float], *, sampling_rate: float, num_steps: int, delta: float
) -> Guarantee:
    """The guarantee of a chain of defenses, by the tight accountant; raises if there is none.

    Defenses after DP-SGD read only the update, so they do not change the guarantee (post-processing).

    Args:
      chain: the defenses, see `defenses.registry.parse`.
      parameters: all parameters under their full names, see `Chain.parameters`.
      sampling_rate: `q`, in (0, 1].
      num_steps: `T`, at least 1: the number of updates in the whole training, not only the attacked ones.
      delta: in (0, 1), well below one over the number of examples.

    Raises:
      ValueError: for a chain that does not begin with "dp-sgd", with the reasons; otherwise see `tight_epsilon`.
    """
    if chain.names[:1] != ("dp-sgd",):
        named = zip(chain.names, chain.recipes)
        reasons = "; ".join(f"{name}: {recipe.no_epsilon}" for name, recipe in named) or "it does not change updates"
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
    """An upper bound on epsilon of DP-SGD by composition of Renyi divergences; fast.

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
    """Epsilon of DP-SGD by composition of privacy-loss distributions; tighter and slower than `renyi_epsilon`.

    Args:
      sampling_rate: see `renyi_epsilon`, also for the other arguments.
      noise_multiplier: `sigma`.
      num_steps: `T`.
      delta: in (0, 1).

    Raises:
      ValueError: see `renyi_epsilon`.
    """
    event = _training(sampling_rate, noise_multiplier, num_steps, delta)
    return _epsilon(_pld_accountant(noise_multiplier), event, delta)


def success_bound(*, sampling_rate: float, noise_multiplier: float, num_steps: int, baseline: float) -> float:
    """What DP-SGD allows at most as the probability that an attacker picks out an example, from all releases.

    The game: an example is drawn, trained on, and to be picked out among candidates. Who has not seen the training
    succeeds with probability `kappa`, the baseline: one in as many candidates as knowledge of the example leaves. If
    the releases `M(D)` with the example and `M(D')` without are hard to tell apart, success is

        P(success) <= sup {P_M(D)(E): P_M(D')(E) <= kappa} <= min over e >= 0 of exp(e) kappa + delta(e)

    whatever the attacker computes, and whatever else is known of the other examples. Success less `kappa` is the
    *reconstruction advantage*. One step in which the example certainly takes part is the Gaussian mechanism, for
    which the supremum is known: `Phi(Phi^-1(kappa) + 1 / sigma)`. Else `delta` is that of the tight accountant.

    Args:
      sampling_rate: as in `renyi_epsilon`, and so are the next two arguments.
      noise_multiplier: `sigma`.
      num_steps: `T`.
      baseline: `kappa`, in (0, 1].

    Raises:
      ValueError: as `renyi_epsilon`, and for a baseline out of its range.

    References:
      Hayes, Mahloujifar, Balle: Bounding training data reconstruction in DP-SGD. NeurIPS 2023, arXiv:2302.07225.
      Kaissis et al.: Bounding data reconstruction attacks with the hypothesis testing interpretation of differential
        privacy, 2023, arXiv:2307.03928.
    """
    if not 0 < baseline <= 1:
        raise ValueError(f"baseline is {baseline}, expected more than 0 and at most 1")
    event = _training(sampling_rate, noise_multiplier, num_steps, delta=0.5)
    if sampling_rate == 1 and num_steps == 1:
        return float(scipy.special.ndtr(scipy.special.ndtri(baseline) + 1 / noise_multiplier))
    accountant = _pld_accountant(noise_multiplier)
    accountant.compose(event)
    last = -math.log(baseline)  # at which the bound is 1 and more
    if accountant.get_delta(last) > 1 - baseline:  # and before it, too, as delta falls with epsilon
        return 1.0
    bounds = [math.exp(epsilon) * baseline + accountant.get_delta(epsilon) for epsilon in np.linspace(0, last, 64)]
    return float(min(1.0, *bounds))


def shown_epsilon(count: int, total: int, *, baseline: float, delta: float, confidence: float = 0.95) -> float:
    """The least epsilon that is consistent with what an attack picked out: a lower bound, right with `confidence`.

    An (epsilon, delta) promise allows a success rate of `exp(epsilon) kappa + delta` at most, see `success_bound`; if
    the rate is `p` or more with confidence (Clopper-Pearson, one-sided), epsilon is at least `log((p - delta) /
    kappa)`. With `kappa = 1 / N` no more than `log N` can be shown.

    Args:
      count: examples of different clients that were picked out.
      total: examples attacked, independent of each other; at least 1.
      baseline: `kappa`, on average over them, in (0, 1].
      delta: in (0, 1).
      confidence: in (0, 1).

    Raises:
      ValueError: for counts that cannot be.

    >>> shown_epsilon(0, 10, baseline=0.01, delta=1e-5)
    0.0
    """
    if not 0 <= count <= total or total < 1:
        raise ValueError(f"count is {count} of {total}, expected 0 ... total and at least one")
    least = scipy.special.betaincinv(count, total - count + 1, 1 - confidence) if count else 0.0
    return math.log(max(1.0, (least - delta) / baseline))


def _pld_accountant(noise_multiplier: float) -> Any:
    """The tight accountant, its grid no finer than the losses are wide.

    The privacy loss of a step spreads over some `1 / (2 sigma^2) + 10 / sigma`, 400 at `sigma = 0.05`, for which the
    library's grid of 1e-4 takes 7 GB and 90 s. A coarser one is as much an upper bound, as losses are rounded up.
    """
    width = 0.5 / noise_multiplier**2 + 10 / noise_multiplier
    interval = _GRID * max(1.0, width / 10) ** 1.5
    return _library("dp_accounting.pld").PLDAccountant(value_discretization_interval=interval)


def _training(sampling_rate: float, noise_multiplier: float, num_steps: int, delta: float) -> Any:
    """The whole training as an event of dp-accounting."""
    if not 0 < sampling_rate <= 1:
        raise ValueError(f"sampling_rate is {sampling_rate}, expected more than 0 and at most 1")
    if not 0 < noise_multiplier < math.inf:
        raise ValueError(
            f"noise_multiplier is {noise_multiplier}, expected a positive number: otherwise there is no epsilon"
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
    """Imports a module of dp-accounting, which only this module needs."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise ValueError("an epsilon needs the library dp-accounting: pip install 'jaxinvert[privacy]'") from error
