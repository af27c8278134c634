"""Sums and comparisons over trees of arrays."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxinvert.clients import clipped_to_norm
from jaxinvert.trees import explained_share


@pytest.mark.parametrize("scale", [1e-20, 1.0, 1e20])
def test_the_explained_share_does_not_depend_on_scales(scale):
    rng = np.random.default_rng(0)
    tree = {"a": jnp.asarray(rng.normal(size=(30, 20)), jnp.float32), "b": jnp.zeros(4)}
    observed = {"a": tree["a"] * scale, "b": tree["b"]}
    assert float(explained_share(tree, observed)) == pytest.approx(1, abs=1e-6)
    other = {"a": jnp.asarray(rng.normal(size=(30, 20)), jnp.float32), "b": tree["b"]}
    expected = float(jnp.vdot(other["a"], tree["a"]) / (jnp.linalg.norm(other["a"]) * jnp.linalg.norm(tree["a"])))
    assert float(explained_share(other, observed)) == pytest.approx(max(expected, 0) ** 2, abs=1e-6)
    assert float(explained_share({"a": -tree["a"], "b": tree["b"]}, observed)) == 0


@pytest.mark.parametrize("size", [3e-5, 3e-3, 300.0])
def test_updates_in_half_precision_are_clipped_to_the_norm(size):
    """Their squares vanish or overflow in float16, and so may the factor."""
    update = {"w": jnp.full((100,), size, jnp.float16), "b": jnp.zeros(3, jnp.float16)}
    norm = 10 * size / 4  # a quarter of the length
    clipped = clipped_to_norm(update, norm)
    assert clipped["w"].dtype == jnp.float16
    np.testing.assert_allclose(np.asarray(clipped["w"], np.float64), float(update["w"][0]) / 4, rtol=0.02)
    np.testing.assert_array_equal(clipped_to_norm(update, 20 * size)["w"], update["w"])
