"""Rates, excesses and verdicts: known intervals, honest levels, and words that follow the numbers."""

import numpy as np
import pytest

from jaxinvert.audit import chance_of_any, excess, identified, judge, rate
from jaxinvert.audit.verdict import SIGNIFICANCE


def test_nothing_of_n_bounds_the_rate_by_the_rule_of_clopper_and_pearson():
    found = rate(0, 10, chance=0.1)
    assert found.low == 0
    assert found.high == pytest.approx(1 - 0.025**0.1)
    assert found.p_value == 1
    everything = rate(10, 10, chance=0.1)
    assert everything.low == pytest.approx(0.025**0.1)
    assert everything.p_value == pytest.approx(1e-10)
    assert everything.least_p_value == pytest.approx(1e-10)


@pytest.mark.parametrize(("count", "total"), [(-1, 3), (4, 3), (0, 0)])
def test_a_rate_of_no_clients_is_refused(count, total):
    with pytest.raises(ValueError, match="expected 0"):
        rate(count, total, chance=0.5)


def test_the_p_value_of_an_excess_counts_signs_and_ranks():
    """Five gains are one of 2^5 assignments of signs; if the smallest is a loss, two are as extreme."""
    assert excess([1.0, 2, 3, 4, 5], np.zeros(5)).p_value == pytest.approx(1 / 32)
    assert excess([-1.0, 2, 3, 4, 5], np.zeros(5)).p_value == pytest.approx(2 / 32)
    assert excess([1.0, 2, 3, 4, 5], np.zeros(5)).least_p_value == pytest.approx(1 / 32)


def test_an_excess_interval_covers_the_mean_as_often_as_it_says():
    generator = np.random.default_rng(0)
    covered = 0
    for seed in range(60):
        found = excess(generator.normal(1.0, 1.0, 30), np.zeros(30), seed=seed)
        covered += found.low <= 1.0 <= found.high
    assert 50 <= covered <= 60  # 57 expected, 50 has a probability of 1e-3
    assert covered < 60 or found.high - found.low < 1.2


@pytest.mark.parametrize("value", [0.0, 2.5])
def test_equal_differences_have_no_spread(value):
    found = excess(np.full(4, value), np.zeros(4))
    assert (found.mean, found.low, found.high) == (value, value, value)
    assert found.p_value == (1 if value == 0 else pytest.approx(1 / 16))


def test_scores_that_are_not_finite_are_refused():
    with pytest.raises(ValueError, match="non-finite"):
        excess([1.0, np.nan], [0.0, 0.0])
    with pytest.raises(ValueError, match="two equal"):
        excess([1.0], [0.0, 0.0])


def test_chance_is_that_of_drawing_without_replacement():
    assert chance_of_any(2, 4) == pytest.approx(1 - 1 / 6)  # one of six pairs misses both
    assert chance_of_any(1, 50) == pytest.approx(0.02)


@pytest.fixture(scope="module")
def pool():
    return np.random.default_rng(0).random((20, 6, 6, 3))


def test_a_noisy_reconstruction_picks_out_its_image_in_any_order_brightness_and_contrast(pool):
    generator = np.random.default_rng(1)
    private = np.array([3, 7, 11])
    found = pool[private] + 0.2 * generator.normal(size=(3, 6, 6, 3))
    assert identified(found, pool, private).all()
    assert identified(found[::-1], pool, private).all()
    assert identified(0.3 + 0.2 * pool[private], pool, private).all()


def test_a_collapsed_batch_identifies_one_image_at_most(pool):
    found = np.repeat(pool[3:4], 3, axis=0)
    assert identified(found, pool, np.array([3, 7, 11])).tolist()[0]
    assert identified(found, pool[[3, 7, 11, 4, 5, 6, 8, 9, 10, 12]], np.array([0, 1, 2])).sum() <= 2


def test_flat_and_broken_pictures_point_to_nobody(pool):
    broken = np.full((1, 6, 6, 3), np.nan)
    flat = np.full((1, 6, 6, 3), 0.4)
    for found in (broken, flat):
        assert not identified(found, pool, np.array([0])).any()
    assert identified(np.concatenate([broken, pool[2:3]]), pool, np.array([1, 2])).tolist() == [False, True]
    with pytest.raises(ValueError, match="20 candidates for 21"):
        identified(np.zeros((21, 6, 6, 3)), pool, np.array([0]))


def test_noise_identifies_as_often_as_chance_says(pool):
    generator = np.random.default_rng(2)
    hits = [identified(generator.random((2, 6, 6, 3)), pool, generator.permutation(20)[:2]).any() for _ in range(600)]
    chance = chance_of_any(2, 20)
    assert abs(np.mean(hits) - chance) < 4 * np.sqrt(chance * (1 - chance) / 600)


def test_verdicts_follow_the_evidence():
    def verdict(hits, differences, *, candidates=100):
        found = rate(hits, len(differences), chance=1 / candidates)
        gained = excess(differences, np.zeros(len(differences)))
        return judge(found, gained, num_candidates=candidates, strongest="mean image")

    up, mixed = np.linspace(1, 2, 10), np.array([1.0, -2, 3, -4, 5, -6, 0.7, -0.8, 0.9, -1.1])
    assert verdict(10, up).level == "leaks"
    assert verdict(10, mixed).level == "leaks"
    assert "need not be close" in verdict(10, mixed).certainty
    assert verdict(0, up).level == "traces"
    assert verdict(0, mixed).level == "none"
    assert "30.8 %" in verdict(0, mixed).certainty  # 0 of 10 does not mean never
    assert verdict(1, up[:1], candidates=10).level == "inconclusive"


def test_where_nothing_leaks_evidence_is_as_rare_as_promised():
    """Attack and controls alike: 400 audits of 10 clients, of which at most 1 % may find anything."""
    generator = np.random.default_rng(3)
    levels = []
    for seed in range(400):
        found = rate(int(generator.binomial(10, 0.02)), 10, chance=0.02)
        gained = excess(generator.normal(size=10), generator.normal(size=10), seed=seed)
        levels.append(judge(found, gained, num_candidates=50, strongest="prior only").level)
    false_alarms = sum(level in ("leaks", "traces") for level in levels)
    assert false_alarms <= 11  # Poisson of mean 4: more has a probability of 1e-3
    assert SIGNIFICANCE == 0.01
    assert "inconclusive" not in levels
