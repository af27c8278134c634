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


def test_percentile_noise_is_in_units_of_each_tensor():
    """|update| of 0 ... 100 has its 95th percentile at 95."""
    update = {"a": jnp.arange(101.0), "b": 10 * jnp.arange(101.0)}
    many = jax.vmap(defenses.percentile_noise(0.1), in_axes=(0, None))(
        jax.random.split(jax.random.key(0), 400), update
    )
    for name, percentile in (("a", 95.0), ("b", 950.0)):
        noise = (np.asarray(many[name]) - np.asarray(update[name])).ravel() / (0.1 * percentile)
        assert stats.kstest(noise, "norm").pvalue > 1e-3
        assert stats.kstest(noise / 1.05, "norm").pvalue < 1e-3
    np.testing.assert_array_equal(defenses.percentile_noise(0.0)(jax.random.key(0), update)["a"], update["a"])


def test_row_noise_is_relative_to_the_largest_row_of_the_weights_sent():
    """Weights whose rows, what feeds one output, have norms 3 and 5: a = 5 / 0.2 = 25; small ones: a = 1.

    The update alone moved them there; a bias is one row, and a kernel has one for each of its last axis.
    """
    column = jnp.zeros(5000).at[0].set(1.0)
    sent = {
        "dense": jnp.stack([3 * column, 5 * column], axis=1),
        "small": jnp.full((5000, 2), 1e-4),
        "bias": column * 2,
        "kernel": jnp.stack([3 * column, 4 * column], axis=1).reshape(5, 5, 200, 2),
    }
    params = jax.tree.map(jnp.zeros_like, sent)
    update = jax.tree.map(jnp.negative, sent)
    noisy = defenses.row_noise(params, 0.01)(jax.random.key(0), update)
    for name, scale in (("dense", 0.25), ("small", 0.01), ("bias", 0.1), ("kernel", 0.2)):
        noise = np.asarray(noisy[name] - update[name]).ravel()
        assert stats.kstest(noise / scale, "norm").pvalue > 1e-3
        assert stats.kstest(noise / scale / 1.2, "norm").pvalue < 1e-3


def test_the_smallest_weights_are_sent_as_zeros():
    params = {"w": jnp.array([[0.1, -2.0], [3.0, -0.2]])}
    update = {"w": jnp.array([[0.05, 0.5], [0.5, 0.1]])}  # the weights sent are 0.05, -2.5, 2.5 and -0.3
    sent = params["w"] - defenses.smallest_weights_zeroed(params, 0.5)(None, update)["w"]
    np.testing.assert_allclose(sent, [[0.0, -2.5], [2.5, 0.0]], atol=1e-6)
    np.testing.assert_array_equal(defenses.smallest_weights_zeroed(params, 0.0)(None, update)["w"], update["w"])
