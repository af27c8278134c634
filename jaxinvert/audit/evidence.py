"""How sure one can be: rates with exact intervals, and excesses over a control with intervals and tests over clients.

The unit is the client. Images of one update are not independent of each other, clients are.

Edge cases:

| case | interval | p |
|---|---|---|
| 0 of n | up to `1 - 0.025^(1 / n)`, not 0 | 1 |
| n of n | down to `0.025^(1 / n)`, not 1 | `chance^n` |
| all differences equal | their value, which says nothing of other clients | of the signs |
| all differences zero | 0 | 1 |

References:
  Clopper, Pearson: The use of confidence or fiducial limits illustrated in the case of the binomial.
    Biometrika, 1934.
  Wilcoxon: Individual comparisons by ranking methods. Biometrics Bulletin, 1945.
  Efron: Better bootstrap confidence intervals. Journal of the American Statistical Association, 1987.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

_CONFIDENCE = 0.95
_RESAMPLES = 9999


class Rate(NamedTuple):
    """A share of clients.

    Attributes:
      count: successes.
      total: clients.
      low: lower end of the exact (Clopper-Pearson) interval of 95 %.
      high: its upper end.
      chance: what guessing would reach.
      p_value: of as many successes or more by guessing.
      least_p_value: the same if all were successes: what this many clients can show at most.
    """

    count: int
    total: int
    low: float
    high: float
    chance: float
    p_value: float
    least_p_value: float


class Excess(NamedTuple):
    """By how much the attack's score exceeds a control's, over clients.

    Attributes:
      mean: of the differences, in units of the score.
      low: lower end of the bootstrap interval of 95 % (BCa, clients resampled).
      high: its upper end.
      p_value: of differences as large or larger if their distribution were symmetric around 0 (Wilcoxon's signed
        ranks, one-sided): attack and control could as well be exchanged.
      least_p_value: the same if all clients were in favor: what this many clients can show at most.
    """

    mean: float
    low: float
    high: float
    p_value: float
    least_p_value: float


def rate(count: int, total: int, *, chance: float) -> Rate:
    """A share of clients with its interval, against chance.

    Args:
      count: successes.
      total: clients, at least 1.
      chance: 0 ... 1, the probability of a success by guessing.

    Raises:
      ValueError: if these are no counts or no probability.

    >>> rate(0, 10, chance=0.1).high < 0.31 and rate(0, 10, chance=0.1).p_value
    1.0
    """
    if not 0 <= count <= total or total < 1:
        raise ValueError(f"count is {count} of {total}, expected 0 ... total and at least one")
    test = stats.binomtest(count, total, chance, alternative="greater")
    interval = stats.binomtest(count, total).proportion_ci(_CONFIDENCE, method="exact")
    return Rate(
        count, total, float(interval.low), float(interval.high), chance, float(test.pvalue), float(chance**total)
    )


def excess(scores: ArrayLike, controls: ArrayLike, *, seed: int = 0) -> Excess:
    """By how much `scores` exceed `controls`, paired by client.

    Args:
      scores: `[T]` of the attack, one for each client; more is more leakage.
      controls: `[T]` of the control.
      seed: of the bootstrap.

    Raises:
      ValueError: if they are not two equal `[T]` of finite numbers.
    """
    attack, control = np.asarray(scores, np.float64), np.asarray(controls, np.float64)
    if attack.ndim != 1 or attack.shape != control.shape or not attack.size:
        raise ValueError(f"scores have shape {attack.shape}, controls {control.shape}, expected two equal [T]")
    differences = attack - control
    if not np.all(np.isfinite(differences)):
        raise ValueError("scores and controls hold non-finite values")
    mean, total = float(differences.mean()), len(differences)
    low = high = mean
    if np.ptp(differences) > 0:
        found = stats.bootstrap(
            (differences,), np.mean, n_resamples=_RESAMPLES, confidence_level=_CONFIDENCE,
            rng=np.random.default_rng(seed),
        )  # fmt: skip
        low, high = map(float, found.confidence_interval)
    ranks: Any = stats.wilcoxon(differences, alternative="greater") if np.any(differences) else None
    p_value = 1.0 if ranks is None else float(ranks.pvalue)
    return Excess(mean, low, high, p_value, 0.5**total)
