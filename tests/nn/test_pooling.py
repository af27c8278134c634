"""Max-pooling against `flax`, through two derivatives."""

import functools

import flax.linen
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxinvert.nn import max_pool

CASES = [
    ((2, 9, 8, 3), (3, 2), (3, 2), "VALID"),
    ((2, 10, 8, 3), (3, 3), (2, 2), "SAME"),
    ((1, 7, 7, 2), (3, 3), None, ((1, 2), (0, 1))),
    ((6, 5, 3), (2, 2), (2, 1), "VALID"),
    ((2, 9, 4), (3,), (2,), "SAME"),
    ((2, 2, 5, 4, 5, 2), (2, 2, 3), (2, 1, 2), "VALID"),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_value_and_two_derivatives_equal_flax(case):
    shape, window, strides, padding = case
    x = jax.random.permutation(jax.random.key(0), jnp.arange(float(np.prod(shape)))).reshape(shape) / 50.0

    @functools.partial(jax.jit, static_argnums=0)
    def everything(pool):
        def apply(x):
            return pool(x, window, strides, padding)

        def step(x):
            return jnp.sum(jnp.cos(jax.grad(lambda x: jnp.sum(jnp.sin(apply(x))))(x)))

        return apply(x), jax.grad(step)(x), jax.vmap(jax.grad(step))(jnp.stack([x, -x]))

    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6),
        everything(max_pool),
        everything(flax.linen.max_pool),
    )


def test_ties_go_to_the_first_in_row_major_order_as_in_flax():
    # The maximum 1 stands at (0, 1) and (1, 0): in row-major order (0, 1) comes first.
    x = jnp.array([[0.0, 1.0], [1.0, 0.0]]).reshape(1, 2, 2, 1)

    def slope(pool):
        return jax.grad(lambda x: pool(x, (2, 2), (2, 2)).sum())(x)

    np.testing.assert_array_equal(slope(max_pool)[0, :, :, 0], [[0.0, 1.0], [0.0, 0.0]])
    np.testing.assert_array_equal(slope(max_pool), slope(flax.linen.max_pool))


def test_nan_wins_and_padding_never_does():
    x = jnp.array([-2.0, jnp.nan, -3.0, -4.0]).reshape(1, 4, 1)
    np.testing.assert_array_equal(max_pool(x, (2,), (2,), ((1, 1),)).ravel(), [-2.0, jnp.nan, -4.0])


def test_arguments_of_unequal_rank_are_refused():
    with pytest.raises(ValueError, match="strides"):
        max_pool(jnp.ones((1, 4, 4, 1)), (2, 2), (2,))
    with pytest.raises(ValueError, match="spatial axes"):
        max_pool(jnp.ones((4, 1)), (2, 2))
