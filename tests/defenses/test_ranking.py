"""Ranks found bit by bit are those of a sort."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxinvert.defenses.ranking import among_largest, order_statistic, percentile

SIZES = np.abs(np.random.default_rng(0).normal(size=37))


@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "float64"])
def test_order_statistics_are_those_of_a_sort(dtype):
    with jax.enable_x64(dtype == "float64"):
        sizes = jnp.asarray(np.concatenate([SIZES, [0.0, 0.0, 1e-30, np.inf], SIZES[:5]]), dtype)
        found = jax.jit(jax.vmap(order_statistic, in_axes=(None, 0)))(sizes, jnp.arange(sizes.size))
        np.testing.assert_array_equal(found, np.sort(np.asarray(sizes, np.float64)))


def test_percentiles_are_numpys():
    shares = np.array([0.0, 10.0, 33.3, 50.0, 95.0, 100.0])
    with jax.enable_x64(True):
        found = jax.jit(jax.vmap(percentile, in_axes=(None, 0)))(jnp.asarray(SIZES), jnp.asarray(shares))
    np.testing.assert_allclose(found, np.percentile(SIZES, shares), rtol=1e-13)


def test_of_equal_entries_the_first_are_kept():
    sizes = jnp.array([1.0, 2.0, 0.0, 2.0, 2.0, 3.0, 0.0, 0.0, 1.0, 2.0])
    kept = jax.jit(jax.vmap(among_largest, in_axes=(None, 0)))(sizes, jnp.array([0.01, 0.3, 0.5, 0.7, 1.0]))
    expected = [{5}, {1, 3, 5}, {1, 3, 4, 5, 9}, {0, 1, 3, 4, 5, 8, 9}, set(range(10))]
    assert [set(np.flatnonzero(row)) for row in kept] == expected
