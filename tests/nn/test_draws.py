"""Draws along one axis are those of any shape."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxinvert.nn import draws

SHAPES = ((), (7,), (2, 3, 4, 5), (1, 0, 2))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("draw", [jax.random.normal, jax.random.uniform, jax.random.laplace])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_numbers_are_those_of_jax(draw, shape, dtype):
    key = jax.random.key(3)
    found = jax.jit(lambda key: draws.drawn(draw, key, shape, dtype))(key)
    assert (found.dtype, found.shape) == (dtype, shape)
    np.testing.assert_array_equal(found, draw(key, shape, dtype))


def test_options_reach_the_draw():
    key = jax.random.key(0)
    found = draws.uniform(key, (50, 2), minval=-3.0, maxval=-2.0)
    np.testing.assert_array_equal(found, jax.random.uniform(key, (50, 2), minval=-3.0, maxval=-2.0))
