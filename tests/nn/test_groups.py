"""Grouped and depthwise convolutions: groups are lanes of the three primitives, with lax's values and derivatives."""

import functools
import re

import jax
import jax.numpy as jnp
import pytest
from jax import lax

from jaxinvert.nn import conv_general_dilated, depthwise, lowerings
from jaxinvert.nn.geometry import Geometry
from tests.nn.test_convolution import NCHW, NHWC, assert_equal, attack_loss

DEPTHWISE = dict(x=(2, 7, 6, 9), w=(3, 3, 1, 9), strides=(1, 1), padding="SAME", layout=NHWC, feature_group_count=9)
CASES = {
    "depthwise": DEPTHWISE,
    "strided": DEPTHWISE | dict(strides=(2, 1), padding=((1, 2), (0, 1)), rhs_dilation=(1, 2)),
    "dilated inputs": DEPTHWISE | dict(lhs_dilation=(2, 1), padding=((1, 2), (0, 1))),
    "two features per channel": DEPTHWISE | dict(w=(3, 2, 1, 18), x=(1, 7, 6, 9)),
    "many features per channel": DEPTHWISE | dict(w=(3, 2, 1, 45)),
    "few groups": DEPTHWISE | dict(x=(2, 7, 6, 8), w=(3, 3, 4, 6), feature_group_count=2),
    "channels first": DEPTHWISE | dict(x=(2, 9, 7, 6), w=(9, 1, 3, 2), layout=NCHW),
    "one spatial axis": DEPTHWISE | dict(x=(2, 7, 9), w=(3, 1, 9), strides=(2,), layout=("NWC", "WIO", "NWC")),
    "groups of examples": DEPTHWISE
    | dict(x=(18, 5, 4, 2), w=(3, 3, 2, 9), feature_group_count=1, batch_group_count=9),
}


def operands_of(case, seed):
    """Inputs, kernels, and the convolution as a function of which implementation computes it."""
    case = dict(case)
    keys = jax.random.split(jax.random.key(seed), 2)
    x, w = (jax.random.normal(key, case.pop(name)) for key, name in zip(keys, "xw"))
    strides, padding, layout = case.pop("strides"), case.pop("padding"), case.pop("layout")

    def applied(conv):
        return lambda x, w: conv(x, w, strides, padding, dimension_numbers=layout, **case)

    return x, w, applied(conv_general_dilated), applied(lax.conv_general_dilated)


@pytest.mark.parametrize("name", CASES)
def test_values_and_two_derivatives_equal_lax_under_jit_and_vmap(name):
    x, w, fast, plain = operands_of(CASES[name], 0)
    xs, ws = jnp.stack([x, 1.0 - 0.5 * x]), jnp.stack([w, -0.7 * w])

    @functools.partial(jax.jit, static_argnums=0)
    def everything(conv):
        second = jax.grad(attack_loss(conv), (0, 1))
        found = {"value": conv(x, w), "second": second(x, w)}
        if name in ("depthwise", "few groups", "groups of examples"):
            found |= {
                "x mapped": jax.vmap(second, (0, None))(xs, w),
                "w mapped": jax.vmap(second, (None, 0))(x, ws),
                "both mapped": jax.vmap(second)(xs, ws),
                "jvp of grad": jax.jvp(second, (x, w), (jnp.cos(x), jnp.sin(w)))[1],
            }
        return found

    assert_equal(everything(fast), everything(plain), 2e-5)


@pytest.mark.parametrize("name", ["depthwise", "few groups"])
def test_no_grouped_convolution_is_compiled(name):
    x, w, fast, plain = operands_of(CASES[name], 1)

    def compiled(conv):
        one = jax.grad(attack_loss(conv), (0, 1))
        return jax.jit(jax.vmap(one)).lower(x[None], w[None]).compile().as_text()

    grouped = re.compile(r"(feature|batch)_group_count=(?!1\b)")
    assert grouped.search(compiled(plain))
    if jax.default_backend() == "cpu":
        text = compiled(fast)
        assert not grouped.search(text)
        assert " convolution(" not in text


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("features", [1, 2])
def test_shifted_products_compute_what_other_backends_compile(channels, features):
    geometry = Geometry((9, 8), (3, 2), (5, 9), (2, 1), ((1, 1), (2, 1)), (1, 1), (1, 2), None)
    shapes = (5, 2, 9, 8, channels), (5, 3, 2, channels, features), (5, 2, 5, 9, features)
    x, w, y = (jax.random.normal(jax.random.key(2), shape) for shape in shapes)

    @functools.partial(jax.jit, static_argnums=(0, 1, 2))
    def all_three(convolve, input_transpose, kernel_gradient):
        return [
            convolve(x, w, geometry=geometry),
            input_transpose(y, w, geometry=geometry),
            kernel_gradient(x, y, geometry=geometry),
        ]

    shifted = depthwise.convolve, depthwise.input_transpose, depthwise.kernel_gradient
    elsewhere = lowerings.xla_convolve, lowerings.xla_input_transpose, lowerings.xla_kernel_gradient
    assert_equal(all_three(*shifted), all_three(*elsewhere))
