"""The accountant: against the exact curve of the Gaussian mechanism, published figures, and what it must refuse."""

import sys

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
