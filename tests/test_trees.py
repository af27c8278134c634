"""Sums and comparisons over trees of arrays."""

import jax.numpy as jnp
import numpy as np
import pytest

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
