"""How sure one can be: rates and excesses over controls, each with an interval and a test over clients.

The unit is the client. Images of one update are not independent of each other, clients are.

Two questions are asked of every attack, each with a test that holds its level at any number of clients:

- *Does it identify?* Null: a client's pictures do not depend on which candidates are the client's, among those that
  the attacker cannot rule out (`retrieval.Null`). Permuting the clients' places among these candidates gives the law
  of the number of clients identified, with duplicates, favorite candidates and whole batches accounted for. Where the
  controls identify more than that law allows (p < 0.2), chance is no null: then the attack must also identify more
  clients than every control, by Fisher's exact test.
- *Does it come closer?* Null: for at least one control, attack and control could as well be exchanged. Each control
  has its own test of signed ranks, and the largest p counts (a test of a union of nulls by the intersection of the
  rejections, Berger 1982): a control that fails now and then hides no other.

Edge cases:

| case | interval | p |
|---|---|---|
| 0 of n | up to `1 - 0.025^(1 / n)`, not 0 | 1 |
| n of n | down to `0.025^(1 / n)`, not 1 | `chance^n` |
| one difference | none: from `-inf` to `inf` | 1/2 at best |
| all differences equal | their value, which says nothing of other clients | of the signs |
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
from numpy.typing import ArrayLike
from scipy import special, stats

_CONFIDENCE = 0.95
_STRETCH = 11.0
_EXACT_RANKS = 64
_DOUBT = 0.2


class Rate(NamedTuple):
    """A share of clients.

    Attributes:
      count: successes.
      total: clients that could be successes.
      low: lower end of the exact (Clopper-Pearson) interval of 95 %.
      high: its upper end.
      chance: what guessing would reach.
      p_value: of as many successes or more where there is nothing to find.
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
      low: lower end of the interval of 95 % (`mean_interval`).
      high: its upper end.
      p_value: of differences as large or larger if attack and control could as well be exchanged (Wilcoxon's signed
        ranks, one-sided).
      least_p_value: the same if all clients were in favor: what this many clients can show at most.
    """

    mean: float
    low: float
    high: float
    p_value: float
    least_p_value: float


class Trials(NamedTuple):
    """One image of each client, to be picked out: games that are independent of each other.

    Attributes:
      count: games won.
      total: games; 0 where the granted labels alone tell the images.
      baseline: the most that guessing can win on average, 0 ... 1.
    """

    count: int
    total: int
    baseline: float


class Evidence(NamedTuple):
    """What one attacker's scores are worth.

    Attributes:
      identified: clients with at least one image identified.
      in_class: whether images competed with candidates of their own class alone, as the labels were granted.
      excess: of the PSNR in dB over `strongest`; its p is the largest over all controls.
      strongest: the control with the highest mean PSNR.
      closest: the control from which the attack can be told least, whose p counts.
    """

    identified: Rate
    in_class: bool
    excess: Excess
    strongest: str
    closest: str


def rate(count: int, total: int, *, chance: float) -> Rate:
    """A share of clients with its interval, against a chance that is the same for all, independently.

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
    return Rate(count, total, *_exact_interval(count, total), chance, float(test.pvalue), float(chance**total))


def identification(
    hits: np.ndarray,
    null_counts: np.ndarray,
    least_p_value: float,
    *,
    chance: float,
    controls: Sequence[tuple[np.ndarray, np.ndarray]],
) -> Rate:
    """Clients identified, against what the same pictures would identify by chance, and the controls' pictures do.

    Args:
      hits: `[T]` booleans, of the clients that can be hits at all; there may be none.
      null_counts: `[M]` hits of the same pictures after `M` deals.
      least_p_value: of the most hits that there could be.
      chance: expected share of hits by guessing.
      controls: of each, hits `[T]` and `[M]` hits after the same deals.
    """
    total, count = len(hits), int(hits.sum())
    if not total:
        return Rate(0, 0, 0.0, 1.0, 1.0, 1.0, 1.0)
    p_value = permutation_p_value(count, null_counts)
    counts = [int(of_control.sum()) for of_control, _ in controls]
    doubts = [permutation_p_value(of_control, dealt) for of_control, (_, dealt) in zip(counts, controls)]
    if controls:
        doubts.append(permutation_p_value(sum(counts), np.sum([dealt for _, dealt in controls], axis=0)))
    if min(doubts, default=1.0) < _DOUBT:
        p_value = max(p_value, *(_more_often(count, of_control, total) for of_control in counts))
    return Rate(count, total, *_exact_interval(count, total), chance, p_value, least_p_value)


def _more_often(count: int, other: int, total: int) -> float:
    """Fisher's exact p of `count` of `total` against `other` of as many."""
    return float(stats.hypergeom.sf(count - 1, 2 * total, count + other, total))


def permutation_p_value(count: int, null_counts: np.ndarray) -> float:
    """The exact p of a Monte Carlo test: what was seen is one of the permutations, so it is never 0."""
    return float((1 + np.sum(null_counts >= count)) / (1 + len(null_counts)))


def excess(scores: ArrayLike, controls: ArrayLike) -> Excess:
    """By how much `scores` exceed `controls`, paired by client.

    Args:
      scores: `[T]` of the attack, one for each client; more is more leakage.
      controls: `[T]` of the control.

    Raises:
      ValueError: if they are not two equal `[T]` of finite numbers.
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
    """The excess over the strongest control, with the largest p over all of them.

    Args:
      scores: `[T]` of the attack.
      controls: `[T]` by name of the control, at least one.

    Returns:
      The excess over the control with the highest mean, its name, and the name of the control with the largest p.

    Raises:
      ValueError: as `excess`.
    """
    over = {name: excess(scores, of_control) for name, of_control in controls.items()}
    strongest = min(over, key=lambda name: over[name].mean)
    closest = max(over, key=lambda name: (over[name].p_value, -over[name].mean))
    return over[strongest]._replace(p_value=over[closest].p_value), strongest, closest


def mean_interval(values: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """The interval of 95 % of a mean: Student's t, longer on the side of the longer tail.

    With `s` the standard deviation and `g` the skewness of the values, the upper end is `mean + t s / sqrt(n) (1 +
    11 max(g, 0) / n)`, the lower one the same with `-g`. Student's t alone misses the mean of a skewed distribution
    on the side of its tail (the exponential one: covered in 88, 89, 92 % at n = 4, 8, 16), because a sample without
    values of the tail has a mean and a spread that are both too small. The stretch, which fades as 1 / n, covers
    96 to 97 % of normal and 93 to 97 % of exponential means at these n (`experiments.audit_verdicts`).

    Args:
      values: `[..., n]`, of independent units; of a comparison, the paired differences.

    Returns:
      Lower and upper ends `[...]`: infinite for n = 1, and the value itself where all are equal.
    """
    values = np.asarray(values, np.float64)
    size, mean = values.shape[-1], values.mean(axis=-1)
    if size == 1:
        return np.full_like(mean, -np.inf), np.full_like(mean, np.inf)
    centered = values - mean[..., None]
    spread = np.sqrt(np.mean(np.square(centered), axis=-1))
    relative = centered / np.where(spread > 0, spread, 1.0)[..., None]
    skewness = np.mean(relative**3, axis=-1)
    half = special.stdtrit(size - 1, 0.5 + _CONFIDENCE / 2) * spread / np.sqrt(size - 1)
    lower, upper = (1 + _STRETCH / size * np.maximum(side, 0) for side in (-skewness, skewness))
    return np.where(np.ptp(values, axis=-1) > 0, mean - half * lower, mean), np.where(
        np.ptp(values, axis=-1) > 0, mean + half * upper, mean
    )


def signed_rank_p_value(differences: ArrayLike) -> float:
    """Wilcoxon's signed ranks, one-sided: that values are so far above 0 if each could as well have the other sign.

    Exact up to 64 values, ties and zeros included (zeros are left out, ties share their mean rank).

    Args:
      differences: `[n]`.
    """
    values = np.asarray(differences, np.float64)
    values = values[values != 0]
    if not values.size:
        return 1.0
    if values.size > _EXACT_RANKS:
        found: Any = stats.wilcoxon(values, alternative="greater", method="approx")
        return float(found.pvalue)
    ranks = np.rint(2 * stats.rankdata(np.abs(values))).astype(int)  # doubled, so that shared ranks are integers
    chances = np.zeros(ranks.sum() + 1)  # of every sum of the ranks with a positive sign
    chances[0] = 1.0
    for rank in ranks:
        chances *= 0.5
        chances[rank:] += chances[: len(chances) - rank].copy()
    return float(min(1.0, chances[ranks[values > 0].sum() :].sum()))


def clients_needed(level: float) -> int:
    """The fewest clients whose differences can all be in favor with a p below `level`.

    >>> clients_needed(0.01 / 4)
    9
    """
    return int(np.floor(-np.log2(level))) + 1


def _exact_interval(count: int, total: int) -> tuple[float, float]:
    """Clopper and Pearson's: quantiles of beta distributions."""
    tail = (1 - _CONFIDENCE) / 2
    low = float(special.betaincinv(count, total - count + 1, tail)) if count else 0.0
    high = float(special.betaincinv(count + 1, total - count, 1 - tail)) if count < total else 1.0
    return low, high
