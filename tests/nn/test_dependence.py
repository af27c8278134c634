"""Attention is found in networks of any library, and nothing else is taken for it."""

import jax
import jax.numpy as jnp
import pytest

from jaxinvert import models
from jaxinvert.nn import fast_convolutions
from jaxinvert.nn.dependence import multiplies_activations


def has_attention(name):
    model = models.create(name, input_shape=(8, 8, 3), num_classes=5)
    params = jax.eval_shape(model.init, jax.random.key(0))
    return multiplies_activations(model.apply, params, jnp.zeros((2, 8, 8, 3)))


@pytest.mark.parametrize("name", ["vit-pre-norm-4-16-1", "vit-pre-norm-fixed-4-16-1", "vit-plain-4-16-1"])
def test_transformers_have_it(name):
    assert has_attention(name)


@pytest.mark.parametrize("name", ["mlp-16", "lenet", "small-convnet", "resnet20-1"])
def test_perceptrons_and_convolutions_do_not(name):
    assert not has_attention(name)


def test_inside_of_scan_jit_and_branches():
    weights, inputs = jnp.ones((3, 4, 4)), jnp.ones((2, 4))

    def mixed(x):
        return x @ (x.T @ x)

    def scanned(weights, inputs):
        return jax.lax.scan(lambda x, w: (jax.checkpoint(mixed)(x @ w), None), inputs, weights)[0]

    def plain(weights, inputs):
        return jax.lax.scan(lambda x, w: (jax.jit(jnp.matmul)(x, w), None), inputs, weights)[0]

    def branched(weights, inputs):
        return jax.lax.cond(weights[0, 0, 0] > 0, mixed, lambda x: x, inputs)

    assert multiplies_activations(scanned, weights, inputs)
    assert multiplies_activations(branched, weights, inputs)
    assert not multiplies_activations(plain, weights, inputs)


def test_fast_convolutions_are_not_attention():
    def apply(kernel, inputs):
        layout = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(inputs, kernel, (1, 1), "SAME", dimension_numbers=layout)

    kernel, inputs = jnp.ones((3, 3, 4, 4)), jnp.ones((1, 8, 8, 4))
    assert not multiplies_activations(fast_convolutions(apply), kernel, inputs)
