"""The rewrite finds every convolution of a user's program and changes nothing else."""

import functools

import flax.linen as linen
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxinvert.nn import fast_convolutions


class ConvNet(linen.Module):
    @linen.compact
    def __call__(self, inputs, train=False):
        x = linen.Conv(4, (3, 3), strides=2)(inputs)
        x = jax.nn.silu(linen.BatchNorm(use_running_average=not train)(x))
        x = linen.remat(linen.Conv)(5, (3, 3))(x)
        x = linen.max_pool(linen.relu(x), (2, 2), (2, 2))
        return linen.Dense(3)(x.reshape(x.shape[0], -1))


def attack_gradient(apply, params):
    def loss(params, x):
        return -jax.nn.log_softmax(apply(params, x))[:, 1].mean()

    def distance(params, x):
        return sum(jnp.sum(jnp.sin(5.0 * leaf)) for leaf in jax.tree.leaves(jax.grad(loss)(params, x)["params"]))

    return jax.grad(functools.partial(distance, params))


def count(program, *args):
    return str(jax.make_jaxpr(program)(*args)).count("conv_general_dilated")


def test_a_flax_model_under_grad_of_grad_keeps_its_results_and_loses_its_plain_convolutions():
    x = jax.random.normal(jax.random.key(0), (2, 8, 8, 3))
    model = ConvNet()
    params = jax.jit(model.init)(jax.random.key(1), x)
    plain = attack_gradient(model.apply, params)
    fast = attack_gradient(fast_convolutions(model.apply), params)
    assert count(plain, x) > 0
    assert count(fast, x) == 0
    assert count(jax.vmap(jax.jit(fast)), x[None]) == 0
    expected = jax.jit(plain)(x)
    np.testing.assert_allclose(jax.jit(fast)(x), expected, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(jax.jit(jax.vmap(fast))(x[None])[0], expected, rtol=1e-4, atol=1e-6)


def conv(x, w):
    return lax.conv_general_dilated(x, w, (1,), "SAME")


@jax.custom_jvp
def with_jvp(x, w):
    return conv(x, w)


@with_jvp.defjvp
def _(primals, tangents):
    (x, w), (dx, dw) = primals, tangents
    return conv(x, w), 2.0 * (conv(dx, w) + conv(x, dw))


@jax.custom_vjp
def with_vjp(x, w):
    return conv(x, w)


with_vjp.defvjp(lambda x, w: (conv(x, w), (x, w)), lambda saved, y: (3.0 * y, jnp.zeros_like(saved[1])))

PROGRAMS = {
    "jit": lambda x, w: jax.jit(conv)(x, w),
    "cond": lambda x, w: lax.cond(x[0, 0, 0] > 0, conv, lambda x, w: -conv(x, w), x, w),
    "scan": lambda x, w: lax.scan(lambda x, v: (jnp.sin(conv(x, w)) + v, x[0]), x, jnp.arange(3.0)),
    "while": lambda x, w: lax.fori_loop(0, 2, lambda i, x: conv(x, w), x),
    "remat": lambda x, w: jax.checkpoint(conv)(x, w),
    "groups": lambda x, w: lax.conv_general_dilated(x, w[:, :1], (1,), "SAME", feature_group_count=2),
    "vmap": lambda x, w: jax.vmap(conv, (None, 0))(x, jnp.stack([w, -w])),
    "custom_jvp": with_jvp,
    "custom_vjp": with_vjp,
    "constant": lambda x, w: conv(x, np.ones((2, 2, 3), np.float32)) + w.sum(),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_convolutions_are_found_in_every_construct(name):
    program = PROGRAMS[name]
    x = jax.random.normal(jax.random.key(2), (1, 2, 5))
    w = jax.random.normal(jax.random.key(3), (2, 2, 3))
    fast = fast_convolutions(program)
    assert count(program, x, w) > 0
    assert count(fast, x, w) == 0
    close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5)
    jax.tree.map(close, jax.jit(fast)(x, w), jax.jit(program)(x, w))

    def slope(program):
        return jax.grad(lambda x, w: sum(jnp.sum(jnp.sin(y)) for y in jax.tree.leaves(program(x, w))), (0, 1))

    assert count(slope(fast), x, w) == 0
    jax.tree.map(close, jax.jit(slope(fast))(x, w), jax.jit(slope(program))(x, w))


def test_what_is_not_known_stays_as_it_was():
    def whole_numbers(x, w):
        return {"y": lax.conv_general_dilated(x, w, (1,), "SAME"), "z": None}

    x, w = jnp.ones((1, 2, 5), int), jnp.ones((2, 2, 3), int)
    assert count(fast_convolutions(whole_numbers), x, w) == 1
    result = fast_convolutions(whole_numbers)(x, w)
    np.testing.assert_array_equal(result["y"], whole_numbers(x, w)["y"])
    assert result["z"] is None


def test_arguments_that_are_not_arrays_and_the_signature_are_kept():
    @fast_convolutions
    def scaled(x, *, mode, factor=2):
        """Documented."""
        return x * factor if mode == "up" and isinstance(factor, int) else x

    assert scaled(jnp.ones(2), mode="up", factor=3).tolist() == [3.0, 3.0]
    assert scaled.__doc__ == "Documented."


def test_closed_over_tracers_are_differentiated():
    x, w = jnp.ones((1, 2, 5)), jnp.ones((2, 2, 3))

    def loss(w):
        return jnp.sum(fast_convolutions(lambda x: conv(x, w))(x) ** 2)

    np.testing.assert_allclose(jax.grad(loss)(w), jax.grad(lambda w: jnp.sum(conv(x, w) ** 2))(w), rtol=1e-5)
