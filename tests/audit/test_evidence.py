"""Rates, excesses and verdicts: known intervals, honest levels, and words that follow the numbers."""

import time

import numpy as np
import pytest
from scipy import stats

from experiments import simulated_audits
from jaxinvert.audit import (
    SIGNIFICANCE,
    Evidence,
    chance_of_any,
    excess,
    excess_over_all,
    identified,
    identified_of_all,
    judge,
    mean_interval,
    rate,
    retrieval,
)
from jaxinvert.audit.evidence import clients_needed, identification, permutation_p_value, signed_rank_p_value


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


def test_signed_ranks_are_exact_with_ties_and_zeros():
    """By hand: |1|, |1| share rank 1.5. Of eight assignments of signs to 1.5, 1.5, 3, the sum is 4.5 or more in 5."""
    assert signed_rank_p_value([-1.0, 1, 2, 0]) == pytest.approx(3 / 8)  # sums 4.5, 4.5 and 6
    assert signed_rank_p_value([-1.0, 1, 2]) == pytest.approx(3 / 8)
    assert signed_rank_p_value([1.0, 1, -2]) == pytest.approx(5 / 8)  # 3 or more: 3, 3, 4.5, 4.5, 6
    generator = np.random.default_rng(0)
    for size in (6, 30, 100):  # the last by the normal approximation
        values = generator.normal(0.2, 1, size)
        expected = stats.wilcoxon(values, alternative="greater").pvalue
        assert signed_rank_p_value(values) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("size", [4, 8, 16])
@pytest.mark.parametrize("skewed", [False, True])
def test_an_interval_covers_the_mean_as_often_as_it_says(size, skewed):
    """Normal and exponential values; Student's t alone covers the latter in 88 to 92 of 100."""
    generator = np.random.default_rng(size)
    values = generator.exponential(size=(40_000, size)) - 1 if skewed else generator.normal(size=(40_000, size))
    low, high = mean_interval(values)
    covered = np.mean((low <= 0) & (high >= 0))
    assert 0.927 <= covered <= 0.973  # 0.93 to 0.97 within 2.4 standard errors


def test_an_interval_is_students_where_nothing_is_skewed():
    values = np.array([-3.0, -1, 1, 3])  # s^2 = 20 / 3, t of 3 degrees of freedom: 3.18245
    low, high = mean_interval(values + 10)
    assert high - 10 == pytest.approx(3.18245 * np.sqrt(20 / 3) / 2, rel=1e-5)
    assert 10 - low == pytest.approx(high - 10)
    longer_below, longer_above = np.abs(mean_interval([0.0, 0, 0, 4]) - np.array(1.0))
    assert longer_above > longer_below
    assert [float(end) for end in mean_interval([2.0])] == [-np.inf, np.inf]


@pytest.mark.parametrize("value", [0.0, 2.5])
def test_equal_differences_have_no_spread(value):
    found = excess(np.full(4, value), np.zeros(4))
    assert (found.mean, found.low, found.high) == (value, value, value)
    assert found.p_value == (1 if value == 0 else pytest.approx(1 / 16))


def test_the_largest_p_over_controls_counts():
    """A control that fails now and then has a low mean, and is all the same what the attack cannot be told from."""
    generator = np.random.default_rng(0)
    attack = 12.5 + generator.normal(0, 0.1, 20)
    failing = 12.6 + generator.normal(0, 0.1, 20)
    failing[:3] = 2.0
    steady = np.full(20, 12.0)
    found, strongest, closest = excess_over_all(attack, {"mean image": steady, "random update": failing})
    assert (strongest, closest) == ("mean image", "random update")
    assert found.mean == pytest.approx(np.mean(attack) - 12)
    assert excess(attack, steady).p_value < 1e-5
    assert found.p_value == excess(attack, failing).p_value > 0.05


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


def test_copies_of_an_image_are_one_candidate(pool):
    copied = np.concatenate([pool, pool[3:4], pool[3:4]])
    assert retrieval.pool(copied).same.tolist() == [*range(20), 3, 3]
    for private in (3, 20, 21):
        assert identified(pool[3:4], copied, np.array([private])).all()
    assert not identified(pool[4:5], copied, np.array([20])).any()


def test_many_updates_are_compared_as_each_alone(pool):
    generator = np.random.default_rng(4)
    private = generator.permutation(20)[:12].reshape(4, 3)
    found = pool[private] + 0.8 * generator.normal(size=(4, 3, 6, 6, 3))
    alone = np.stack([identified(one, pool, own) for one, own in zip(found, private)])
    assert np.array_equal(identified_of_all(found, pool, private), alone)
    assert 0 < alone.mean() < 1
    rows = found.clip(0, 1).reshape(12, -1)
    expected = np.corrcoef(rows, pool.reshape(20, -1))[:12, 12:]
    got = np.concatenate([*retrieval.correlations(found, retrieval.pool(pool))])
    np.testing.assert_allclose(got, expected, atol=1e-5)


@pytest.mark.slow
def test_retrieval_of_6400_candidates_takes_seconds():
    """100 clients of 64 images among 6,400 candidates at 32 px: one product, and one assignment for each client."""
    candidates = np.random.default_rng(0).random((6400, 32, 32, 3), np.float32)
    private = np.arange(6400).reshape(100, 64)
    begin = time.process_time()
    assert identified_of_all(candidates[private], candidates, private).all()
    assert time.process_time() - begin < 60  # of two cores; 5 s on an idle one


def dealt(labels, private, *, in_class):
    return retrieval.null(np.asarray(private), np.asarray(labels), np.arange(len(labels)), in_class=in_class)


def test_clients_are_dealt_among_what_the_attacker_cannot_rule_out():
    labels = np.arange(30) % 3
    private = np.array([[0, 3], [1, 2]])
    for in_class in (True, False):
        deals = dealt(labels, private, in_class=in_class).dealt
        assert all(len(set(deal.ravel())) == 4 for deal in deals)  # each image once
        assert np.array_equal(np.unique(deals[:, 0, 0]), np.arange(0, 30, 3) if in_class else np.arange(30))
    # Ten of a class: 1 - 8 choose 2 / 10 choose 2 = 17 / 45 for two of one class, 1 - 0.9^2 for one of each of two.
    assert dealt(labels, private, in_class=True).chance == pytest.approx((17 / 45 + 0.19) / 2)
    assert dealt(labels, private, in_class=False).chance == pytest.approx(chance_of_any(2, 30))


def test_picking_clients_apart_from_strangers_is_no_identification():
    """Picks that are some client's image, whose ever: far more hits than among all candidates, but not of the own."""
    generator, private = np.random.default_rng(1), np.arange(32)[:, None]
    deals = dealt(np.zeros(320, int), private, in_class=False)
    assert all(set(swap.ravel()) == set(range(32)) for swap in deals.swapped)
    p_values = []
    for _ in range(200):
        picks = generator.integers(0, 32, (32, 1))
        hits = int(deals.hits(picks).sum())
        p_values.append(
            [permutation_p_value(hits, counts) for counts in (deals.counts(picks), deals.counts_swapped(picks))]
        )
    strangers, clients = np.array(p_values).T
    assert np.mean(strangers < 0.01) > 0.05  # hits are Poisson(1), not Poisson(0.1): 2 and more in .26
    assert np.mean(clients < 0.05) <= 0.1
    own = deals.counts_swapped(private)
    assert permutation_p_value(32, own) == 1e-3


def test_an_image_without_rivals_of_its_class_tells_nothing():
    deals = dealt([0, 1, 1], [[0], [1]], in_class=True)
    assert deals.clients.tolist() == [False, True]
    assert deals.hits(np.array([[0], [1]])).tolist() == [False, True]
    assert dealt([0, 1], [[0], [1]], in_class=True).clients.sum() == 0


def test_a_favorite_candidate_is_no_evidence():
    """All clients' pictures show candidate 0, a client's: one hit, as often as a client is dealt that candidate."""
    deals = dealt(np.zeros(40, int), np.arange(20)[:, None], in_class=False)
    picks = np.zeros((20, 1), int)
    assert deals.hits(picks).sum() == 1
    assert set(deals.counts(picks)) == {0, 1}
    assert permutation_p_value(1, deals.counts(picks)) == pytest.approx(0.5, abs=0.06)


def test_controls_that_identify_set_the_bar():
    """Nine of nine are nothing new if a control has eight; with controls at chance they are all there is to see."""
    deals = dealt(np.zeros(100, int), np.arange(9)[:, None], in_class=False)
    right, wrong = np.arange(9)[:, None], np.full((9, 1), 99)
    almost = np.where(np.arange(9)[:, None] < 8, right, wrong)

    def of(picks):
        return deals.hits(picks), deals.counts(picks)

    for control, expected in ((wrong, 1 / 1000), (almost, 0.5)):
        found = identification(*of(right), 1 / 1000, chance=0.01, controls=[of(wrong), of(control)])
        assert found.p_value == pytest.approx(expected)
        assert (found.count, found.total) == (9, 9)


def test_all_clients_identified_are_not_no_evidence_where_a_control_was_lucky():
    """Nine of nine against a control with three have a p of .0045: too little for two attackers, but no "none"."""
    deals = dealt(np.zeros(100, int), np.arange(9)[:, None], in_class=False)
    right, wrong = np.arange(9)[:, None], np.full((9, 1), 99)
    lucky = np.where(np.arange(9)[:, None] < 3, right, wrong)
    found = identification(
        deals.hits(right),
        deals.counts(right),
        1 / 1000,
        chance=0.01,
        controls=[(deals.hits(picks), deals.counts(picks)) for picks in (wrong, lucky)],
    )
    assert found.p_value == found.least_p_value == pytest.approx(0.0045, abs=1e-4)
    unsure = evidence(9, MIXED[:9])._replace(identified=found)
    _, judged = verdict(naive=unsure, adaptive=unsure)
    assert (judged.level, judged.clients_needed) == ("inconclusive", 18)
    assert "9 of 9 clients had an image picked out" in judged.headline
    assert verdict(naive=unsure)[1].level == "leaks"  # one attacker's test has .005


def evidence(hits, differences, *, least=1e-4, in_class=False):
    total = len(differences)
    found = rate(hits, total, chance=0.01)._replace(least_p_value=least)
    return Evidence(found, in_class, excess(differences, np.zeros(total)), "mean image", "random update")


UP, MIXED = np.linspace(1, 2, 10), np.array([1.0, -2, 3, -4, 5, -6, 0.7, -0.8, 0.9, -1.1])


def verdict(**attackers):
    return judge(attackers, num_candidates=100)


def test_verdicts_follow_the_evidence():
    def level(*each, **options):
        return verdict(naive=evidence(*each, **options))[1].level

    assert level(10, UP) == "leaks"
    assert level(10, MIXED) == "leaks"
    assert "need not be close" in verdict(naive=evidence(10, MIXED))[1].certainty
    assert level(0, UP) == "traces"
    assert level(0, MIXED) == "none"
    assert "30.8 %" in verdict(naive=evidence(0, MIXED))[1].certainty  # 0 of 10 does not mean never
    assert "random update" in verdict(naive=evidence(0, MIXED))[1].certainty
    assert level(0, UP[:1]) == "inconclusive"


def test_each_level_is_shown_by_whoever_shows_it_best():
    """One lucky pick of one attacker does not hide that another is closer for every client, nor the other way."""
    lucky, closer = evidence(1, MIXED), evidence(0, UP)
    worst, found = verdict(naive=lucky, adaptive=closer)
    assert (worst, found.level) == ("adaptive", "traces")
    worst, found = verdict(naive=evidence(10, MIXED), adaptive=closer)
    assert (worst, found.level) == ("naive", "leaks")


def test_too_few_clients_are_told_from_no_evidence():
    """Eight of eight above every control have a p of 1 / 256: enough for one attacker's .005, not for two's .0025."""
    eight = evidence(0, UP[:8])
    assert verdict(naive=eight)[1].level == "traces"
    _, found = verdict(naive=eight, adaptive=evidence(0, MIXED[:8]))
    assert (found.level, found.clients_needed) == ("inconclusive", 9)
    assert "at least 9 are needed" in found.headline
    nine = evidence(0, UP[:9])
    assert verdict(naive=nine, adaptive=evidence(0, MIXED[:9]))[1].level == "traces"
    assert verdict(naive=evidence(0, MIXED[:9]), adaptive=evidence(0, MIXED[:9]))[1].level == "none"
    assert clients_needed(0.01 / 2) == 8
    hidden = verdict(naive=evidence(0, MIXED, least=0.5, in_class=True))[1]
    assert hidden.level == "none"
    assert "could not have been shown" in hidden.certainty


@pytest.mark.parametrize("truth", simulated_audits.NULLS)
def test_where_nothing_leaks_evidence_is_as_rare_as_promised(truth):
    """60 simulated audits of each null; the experiment has 500 of each in twelve sizes."""
    generator = np.random.default_rng(3)
    draw = simulated_audits.NULLS[truth]
    levels = [
        simulated_audits.simulated_audit(generator, draw, 16, granted, 2, shared=truth == "other candidates")
        for granted in (True, False)
        for _ in range(30)
    ]
    false_alarms = sum(level in ("leaks", "traces") for level in levels)
    assert false_alarms <= 4  # binomial of 60 and 0.01: more has a probability of 4e-4
    assert "inconclusive" not in levels
    assert SIGNIFICANCE == 0.01


@pytest.mark.parametrize(("effect", "expected"), [("10 dB, details", "leaks"), ("10 dB, pixels", "traces")])
@pytest.mark.parametrize("granted", [True, False])
def test_what_leaks_is_found(effect, expected, granted):
    generator = np.random.default_rng(5)
    draw = simulated_audits.EFFECTS[effect]
    levels = [simulated_audits.simulated_audit(generator, draw, 16, granted, 2) for _ in range(10)]
    assert levels.count(expected) >= 9
