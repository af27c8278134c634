"""Defenses: noise with the right scale, independent between tensors and targets."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxinvert import defenses
from jaxinvert.observe import observe

UPDATE = {"a": jnp.zeros((40, 50)), "b": jnp.zeros((40, 50))}


def test_identity_changes_nothing():
    assert defenses.identity(None, UPDATE) is UPDATE


def test_gaussian_noise_has_its_scale_and_a_test_would_notice_another():
    noise = np.asarray(defenses.gaussian_noise(0.3)(jax.random.key(0), UPDATE)["a"]).ravel()
    assert stats.kstest(noise / 0.3, "norm").pvalue > 1e-3

    def p_value(scale):  # the sum of squares over scale^2 is chi-squared
        statistic = np.sum((noise / scale) ** 2)
        return 2 * min(stats.chi2.cdf(statistic, noise.size), stats.chi2.sf(statistic, noise.size))

    assert p_value(0.3) > 1e-3
    assert p_value(0.33) < 1e-3
    assert p_value(0.27) < 1e-3


def test_noise_differs_between_tensors_keys_and_targets():
    noisy = defenses.gaussian_noise(1.0)
    first = noisy(jax.random.key(0), UPDATE)
    assert abs(np.corrcoef(first["a"].ravel(), first["b"].ravel())[0, 1]) < 0.1
    again = noisy(jax.random.key(1), UPDATE)
    assert abs(np.corrcoef(first["a"].ravel(), again["a"].ravel())[0, 1]) < 0.1
    targets = jax.vmap(noisy, in_axes=(0, None))(jax.random.split(jax.random.key(0), 2), UPDATE)
    assert abs(np.corrcoef(targets["a"][0].ravel(), targets["a"][1].ravel())[0, 1]) < 0.1


def test_noise_keeps_structure_and_dtype():
    update = {"w": jnp.ones((2, 3), jnp.bfloat16)}
    assert defenses.gaussian_noise(0.1)(jax.random.key(0), update)["w"].dtype == jnp.bfloat16


def test_the_server_sees_the_defended_update(victim):
    def halve(key, update):
        return jax.tree.map(lambda leaf: leaf / 2, update)

    seen = observe(victim.client_update, victim.params, victim.batch, defense=halve)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b / 2, rtol=1e-6), seen.update, victim.observation.update)


def test_a_random_defense_needs_a_key(victim):
    with pytest.raises(ValueError, match="a random defense needs a key"):
        observe(victim.client_update, victim.params, victim.batch, defense=defenses.gaussian_noise(1.0))
