"""The statistics of an audit: identification rates and excesses over controls, with intervals and tests over clients.

The statistical unit is the client: images of one update are not independent of each other, clients are.

Every attack is tested for two effects, each with a test that keeps its level for any number of clients:

- *Identification.* Null hypothesis: a client's reconstructions do not depend on which candidates are the client's,
  among those that the attacker cannot rule out (`retrieval.Null`). Permuting the clients' images among these
  candidates gives the null distribution of the number of clients identified, which accounts for duplicates,
  candidates that are picked often, and whole batches. Other candidates may be unlike all clients' images: where there
  are enough clients, permuting the images among the clients alone must be significant, too. If the controls identify
  more than the null distribution allows (p < 0.2), it is not valid: then the attack must also identify more clients
  than every control, by Fisher's exact test. Where not even all clients would be significantly more, more clients are
  needed to tell.
- *Excess over the controls.* Null hypothesis: for at least one control, attack and control are exchangeable. Each
  control has its own signed-rank test, and the largest p-value counts (intersection-union test, Berger 1982), so a
  control that fails for some clients cannot mask another one.

Edge cases:

| case | interval | p |
|---|---|---|
| 0 of n | up to `1 - 0.025^(1 / n)`, not 0 | 1 |
| n of n | down to `0.025^(1 / n)`, not 1 | `chance^n` |
| one difference | none: from `-inf` to `inf` | 1/2 at best |
| all differences equal | their value, which says nothing about other clients | p of the signs |
| all differences zero | 0 | 1 |

References:
  Clopper, Pearson: The use of confidence or fiducial limits illustrated in the case of the binomial.
    Biometrika, 1934.
  Wilcoxon: Individual comparisons by ranking methods. Biometrics Bulletin, 1945.
  Berger: Multiparameter hypothesis testing and acceptance sampling. Technometrics, 1982.
  Johnson: Modified t tests and confidence intervals for asymmetrical populations. Journal of the American Statistical
    Association, 1978.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import scipy  # whose modules are imported when they are used: this takes long
from numpy.typing import ArrayLike

_CONFIDENCE = 0.95
_STRETCH = 11.0
_EXACT_RANKS = 64
_DOUBT = 0.2


class Rate(NamedTuple):
    """A share of clients.

    Attributes:
      count: successes.
      total: clients that could be successes.
      low: lower end of the exact (Clopper-Pearson) 95 % interval.
      high: its upper end.
      chance: expected share by guessing.
      p_value: probability of at least as many successes under the null hypothesis.
      least_p_value: the p-value if all were successes, the smallest that this number of clients can reach.
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
      mean: mean difference, in units of the score.
      low: lower end of the 95 % interval (`mean_interval`).
      high: its upper end.
      p_value: probability of differences at least as large if attack and control are exchangeable (Wilcoxon's
        signed-rank test, one-sided).
      least_p_value: the p-value if all differences were positive, the smallest that this number of clients can reach.
    """

    mean: float
    low: float
    high: float
    p_value: float
    least_p_value: float


class Trials(NamedTuple):
    """Independent identification games: in each, the attacker has to pick out one image of one client.

    Attributes:
      count: games won.
      total: games played; 0 if the granted labels alone identify the images.
      baseline: the largest share that guessing can win on average, 0 ... 1.
    """

    count: int
    total: int
    baseline: float


class Evidence(NamedTuple):
    """The statistical evidence of a leak to one attacker.

    Attributes:
      identified: clients with at least one image identified.
      in_class: whether candidates are limited to the class of the image, because the attacker was granted the labels.
      excess: score above `strongest`, in the unit of the measure; its p-value is the largest over all controls.
      strongest: the control with the highest mean score.
      closest: the control with the largest p-value.
    """

    identified: Rate
    in_class: bool
    excess: Excess
    strongest: str
    closest: str


def rate(count: int, total: int, *, chance: float) -> Rate:
    """A share of clients with its interval, tested against independent guesses of equal probability.

    Args:
      count: successes.
      total: clients, at least 1.
      chance: 0 ... 1, the probability of a success by guessing.

    Raises:
      ValueError: if the counts or the probability are out of range.

    >>> rate(0, 10, chance=0.1).high < 0.31 and rate(0, 10, chance=0.1).p_value
    1.0
    """
    if not 0 <= count <= total or total < 1:
        raise ValueError(f"count is {count} of total {total}, expected 0 ... total, and a total of at least 1")
    test = scipy.stats.binomtest(count, total, chance, alternative="greater")
    return Rate(count, total, *_exact_interval(count, total), chance, float(test.pvalue), float(chance**total))


def identification(
    hits: np.ndarray,
    null_counts: np.ndarray,
    least_p_value: float,
    *,
    swapped_counts: np.ndarray | None = None,
    chance: float,
    controls: Sequence[tuple[np.ndarray, np.ndarray]],
) -> Rate:
    """The rate of clients identified, tested against chance and, if chance is no valid null, against the controls.

    Args:
      hits: `[T]` booleans, whether each client is identified; only clients that can be, possibly none.
      null_counts: `[M]` clients identified by the same reconstructions after each of `M` permutations.
      least_p_value: p-value of the largest possible number of hits, against chance.
      swapped_counts: `[M]` the same after permutations of the private images among the clients alone; `None` if
        there are too few clients for this test.
      chance: expected share of hits by guessing.
      controls: for each control its hits `[T]`, and its counts `[M]` after the same permutations.
    """
    total, count = len(hits), int(hits.sum())
    if not total:
        return Rate(0, 0, 0.0, 1.0, 1.0, 1.0, 1.0)
    p_value = permutation_p_value(count, null_counts)
    if swapped_counts is not None:
        p_value = max(p_value, permutation_p_value(count, swapped_counts))
    counts = [int(of_control.sum()) for of_control, _ in controls]
    doubts = [permutation_p_value(of_control, dealt) for of_control, (_, dealt) in zip(counts, controls)]
    if controls:
        doubts.append(permutation_p_value(sum(counts), np.sum([dealt for _, dealt in controls], axis=0)))
    if min(doubts, default=1.0) < _DOUBT:
        p_value = max(p_value, *(_more_often(count, of_control, total) for of_control in counts))
        least_p_value = max(least_p_value, *(_more_often(total, of_control, total) for of_control in counts))
    return Rate(count, total, *_exact_interval(count, total), chance, p_value, least_p_value)


def _more_often(count: int, other: int, total: int) -> float:
    """One-sided p-value of Fisher's exact test of `count` of `total` against `other` of `total`."""
    return float(scipy.stats.hypergeom.sf(count - 1, 2 * total, count + other, total))


def permutation_p_value(count: int, null_counts: np.ndarray) -> float:
    """Exact p-value of a Monte Carlo permutation test; never 0, as the observation counts as a permutation."""
    return float((1 + np.sum(null_counts >= count)) / (1 + len(null_counts)))


def excess(scores: ArrayLike, controls: ArrayLike) -> Excess:
    """By how much `scores` exceed `controls`, paired by client.

    Args:
      scores: `[T]` scores of the attack, one for each client; a higher score is more leakage.
      controls: `[T]` scores of the control.

    Raises:
      ValueError: if the shapes are not two equal `[T]`, or a score is not finite.
    """
    attack, control = np.asarray(scores, np.float64), np.asarray(controls, np.float64)
    if attack.ndim != 1 or attack.shape != control.shape or not attack.size:
        raise ValueError(f"scores have shape {attack.shape}, controls {control.shape}, expected two equal [T]")
    differences = attack - control
    if not np.all(np.isfinite(differences)):
        raise ValueError("scores and controls hold non-finite values")
    low, high = map(float, mean_interval(differences))
    return Excess(float(differences.mean()), low, high, signed_rank_p_value(differences), 0.5 ** len(differences))


def excess_over_all(scores: ArrayLike, controls: Mapping[str, ArrayLike]) -> tuple[Excess, str, str]:
    """The excess over the strongest control, with the largest p-value over all controls.

    Args:
      scores: `[T]` scores of the attack.
      controls: scores `[T]` by name of the control, at least one.

    Returns:
      The excess over the control with the highest mean, its name, and the name of the control with the largest p.

    Raises:
      ValueError: see `excess`.
    """
    over = {name: excess(scores, of_control) for name, of_control in controls.items()}
    strongest = min(over, key=lambda name: over[name].mean)
    closest = max(over, key=lambda name: (over[name].p_value, -over[name].mean))
    return over[strongest]._replace(p_value=over[closest].p_value), strongest, closest


def mean_interval(values: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """The 95 % interval of a mean: Student's t interval, stretched on the side of the longer tail.

    With `s` the standard deviation and `g` the skewness of the values, the upper end is `mean + t s / sqrt(n) (1 +
    11 max(g, 0) / n)`, the lower one the same with `-g`. Student's t alone misses the mean of a skewed distribution
    on the side of its tail (exponential distribution: coverage of 88, 89, 92 % at n = 4, 8, 16), because a sample
    without values from the tail has a mean and a spread that are both too small. With the stretch, which decays as
    1 / n, coverage is 96 to 97 % for normal and 93 to 97 % for exponential values at these n
    (`experiments.audit_verdicts`).

    Args:
      values: `[..., n]` values of independent units; for a comparison, the paired differences.

    Returns:
      Lower and upper ends `[...]`: infinite for n = 1, and the value itself if all are equal.
    """
    values = np.asarray(values, np.float64)
    size, mean = values.shape[-1], values.mean(axis=-1)
    if size == 1:
        return np.full_like(mean, -np.inf), np.full_like(mean, np.inf)
    centered = values - mean[..., None]
    spread = np.sqrt(np.mean(np.square(centered), axis=-1))
    relative = centered / np.where(spread > 0, spread, 1.0)[..., None]
    skewness = np.mean(relative**3, axis=-1)
    half = scipy.special.stdtrit(size - 1, 0.5 + _CONFIDENCE / 2) * spread / np.sqrt(size - 1)
    lower, upper = (1 + _STRETCH / size * np.maximum(side, 0) for side in (-skewness, skewness))
    return np.where(np.ptp(values, axis=-1) > 0, mean - half * lower, mean), np.where(
        np.ptp(values, axis=-1) > 0, mean + half * upper, mean
    )


def signed_rank_p_value(differences: ArrayLike) -> float:
    """One-sided p-value of Wilcoxon's signed-rank test. Null hypothesis: every value has either sign equally often.

    Exact up to 64 values, also with ties and zeros: zeros are left out, ties share their mean rank.

    Args:
      differences: `[n]` paired differences.
    """
    values = np.asarray(differences, np.float64)
    values = values[values != 0]
    if not values.size:
        return 1.0
    if values.size > _EXACT_RANKS:
        found: Any = scipy.stats.wilcoxon(values, alternative="greater", method="approx")
        return float(found.pvalue)
    doubled = 2 * scipy.stats.rankdata(np.abs(values))  # so that shared ranks are integers
    ranks = np.rint(doubled).astype(int)
    chances = np.zeros(ranks.sum() + 1)  # probability of every (doubled) sum of positive ranks
    chances[0] = 1.0
    for rank in ranks:
        chances *= 0.5
        chances[rank:] += chances[: len(chances) - rank].copy()
    return float(min(1.0, chances[ranks[values > 0].sum() :].sum()))


def clients_needed(level: float) -> int:
    """The smallest number of clients for which the signed-rank test can reach a p-value below `level`.

    >>> clients_needed(0.01 / 4)
    9
    """
    return int(np.floor(-np.log2(level))) + 1


def _exact_interval(count: int, total: int) -> tuple[float, float]:
    """The Clopper-Pearson interval, from quantiles of beta distributions."""
    tail = (1 - _CONFIDENCE) / 2
    low = float(scipy.special.betaincinv(count, total - count + 1, tail)) if count else 0.0
    high = float(scipy.special.betaincinv(count + 1, total - count, 1 - tail)) if count < total else 1.0
    return low, high
