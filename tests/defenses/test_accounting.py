"""The accountant: against the exact curve of the Gaussian mechanism, published figures, and what it must refuse."""

import sys
import time

import numpy as np
import pytest
from scipy import optimize, stats

from jaxinvert.defenses import accounting, registry

STANDARD = {"sampling_rate": 0.01, "noise_multiplier": 1.1, "num_steps": 1000, "delta": 1e-5}


def gaussian_epsilon(sigma, delta):
    """Balle and Wang 2018: delta = Phi(1 / 2s - eps s) - exp(eps) Phi(-1 / 2s - eps s), solved for epsilon."""

    def excess(epsilon):
        upper, lower = 1 / (2 * sigma) - epsilon * sigma, -1 / (2 * sigma) - epsilon * sigma
        return stats.norm.cdf(upper) - np.exp(epsilon + stats.norm.logcdf(lower)) - delta

    return optimize.brentq(excess, 0, 100)


@pytest.mark.parametrize(("sigma", "num_steps"), [(0.7, 1), (1.1, 1), (4.0, 9)])
def test_without_sampling_it_is_the_gaussian_mechanism(sigma, num_steps):
    """Without sampling T steps with sigma are one with sigma / sqrt T."""
    exact = gaussian_epsilon(sigma / np.sqrt(num_steps), 1e-5)
    setting = {"sampling_rate": 1.0, "noise_multiplier": sigma, "num_steps": num_steps, "delta": 1e-5}
    tight = accounting.tight_epsilon(**setting)
    assert exact - 1e-6 <= tight <= exact * 1.001
    assert exact <= accounting.renyi_epsilon(**setting) <= exact * 1.3


def test_sampled_steps_have_the_published_epsilon():
    assert accounting.renyi_epsilon(**STANDARD) == pytest.approx(1.712, abs=1e-3)
    assert accounting.tight_epsilon(**STANDARD) == pytest.approx(1.515, abs=1e-3)


def test_what_follows_dp_sgd_keeps_its_guarantee():
    how = {name: STANDARD[name] for name in ("sampling_rate", "num_steps", "delta")}
    for chain in map(registry.parse, ("dp-sgd", "dp-sgd+top-k")):
        found = accounting.guarantee(chain, chain.parameters({"multiplier": 1.1}), **how)
        assert found.epsilon == pytest.approx(1.515, abs=1e-3)
        assert found.delta == 1e-5
        assert "Poisson" in found.assumption


@pytest.mark.parametrize("name", [*sorted(set(registry.REGISTRY) - {"dp-sgd"}), registry.NONE, "gaussian+clip"])
def test_there_is_no_epsilon_for_what_is_not_private(name):
    chain = registry.parse(name)
    with pytest.raises(ValueError, match="is not differentially private, so there is no epsilon") as refused:
        accounting.guarantee(chain, chain.parameters({}), sampling_rate=0.01, num_steps=1, delta=1e-5)
    assert len(str(refused.value)) > len(name) + 80


@pytest.mark.parametrize(
    "wrong",
    [{"sampling_rate": 0.0}, {"sampling_rate": 1.5}, {"noise_multiplier": 0.0}, {"num_steps": 0}, {"delta": 1.0}],
)
def test_numbers_out_of_range_are_named(wrong):
    ((name, value),) = wrong.items()
    with pytest.raises(ValueError, match=f"{name} is {value}, expected"):
        accounting.renyi_epsilon(**{**STANDARD, **wrong})


def test_without_the_library_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "dp_accounting", None)
    with pytest.raises(ValueError, match=r"pip install 'jaxinvert\[privacy\]'"):
        accounting.renyi_epsilon(**STANDARD)


def test_success_is_bounded_as_for_normal_noise():
    """Two steps that every example takes part in are one of `sqrt(2) / sigma`, see `success_bound`."""
    setting = {"sampling_rate": 1.0, "noise_multiplier": 1.1, "baseline": 0.01}
    one = accounting.success_bound(num_steps=1, **setting)
    assert one == pytest.approx(stats.norm.cdf(stats.norm.ppf(0.01) + 1 / 1.1))
    two = stats.norm.cdf(stats.norm.ppf(0.01) + np.sqrt(2) / 1.1)
    assert two <= accounting.success_bound(num_steps=2, **setting) <= 1.002 * two
    sampled = accounting.success_bound(**{**setting, "sampling_rate": 0.01, "num_steps": 100})
    assert 0.01 < sampled < one


def test_no_attack_on_normal_noise_beats_the_bound():
    """The best attack there is on `N(0, sigma^2)` against a shift of 1, played: it reaches the bound, and no more."""
    generator, sigma, kappa = np.random.default_rng(0), 0.8, 0.05
    seen = generator.normal(1.0, sigma, 200_000)
    won = np.mean(seen > sigma * stats.norm.ppf(1 - kappa))
    bound = accounting.success_bound(sampling_rate=1, noise_multiplier=sigma, num_steps=1, baseline=kappa)
    assert won == pytest.approx(bound, abs=0.004)
    shown = accounting.shown_epsilon(int(1000 * won), 1000, baseline=kappa, delta=1e-5)
    allowed = accounting.tight_epsilon(sampling_rate=1, noise_multiplier=sigma, num_steps=1, delta=1e-5)
    assert 1 < shown < allowed


def test_a_shown_epsilon_is_wrong_as_rarely_as_it_says():
    """Of attacks that win with probability exp(1) kappa, 5 % at most may show more than an epsilon of 1."""
    generator = np.random.default_rng(1)
    counts = generator.binomial(60, np.e * 0.1, 2000)
    wrong = np.mean([accounting.shown_epsilon(int(n), 60, baseline=0.1, delta=1e-9) > 1 for n in counts])
    assert 0.01 < wrong <= 0.06


def test_little_noise_is_accounted_for_in_seconds():
    """At a multiplier of 0.05 the library's own grid takes 90 s and 7 GB; epsilon by a fine grid is 5091.37."""
    begin = time.process_time()
    epsilon = accounting.tight_epsilon(sampling_rate=0.01, noise_multiplier=0.05, num_steps=1000, delta=1e-5)
    assert time.process_time() - begin < 10
    assert 5091.36 < epsilon < 5093


@pytest.mark.parametrize("baseline", [0.0, -1.0, 1.5])
def test_a_baseline_that_is_no_chance_is_refused(baseline):
    with pytest.raises(ValueError, match="baseline is"):
        accounting.success_bound(sampling_rate=1, noise_multiplier=1, num_steps=1, baseline=baseline)
