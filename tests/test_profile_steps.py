"""Kinds of operations are read off compiled programs, and convolutions that XLA:CPU computes by loops are found."""

import jax
import jax.numpy as jnp
import pytest

from experiments import profile_steps
from jaxinvert.nn import conv_general_dilated

DEPTHWISE = dict(window_strides=(1, 1), padding="SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def second_order(conv, groups):
    """The program of a second derivative through a convolution, compiled."""

    def convolve(x, w):
        return jnp.sin(conv(x, w, **DEPTHWISE, feature_group_count=groups))

    def gradient(x, w):
        return jnp.sum(jax.grad(lambda w: convolve(x, w).sum())(w) ** 2)

    x, w = jnp.ones((1, 16, 16, 8)), jnp.ones((3, 3, 8 // groups, 8))
    return jax.jit(jax.grad(gradient)).lower(x, w).compile().as_text()


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="about programs of XLA:CPU")
def test_only_the_plain_convolution_is_slow():
    slow = profile_steps.slow_convolutions(second_order(jax.lax.conv_general_dilated, 8))
    assert any("feature_group_count=8" in line for line in slow)
    assert not profile_steps.slow_convolutions(second_order(conv_general_dilated, 8))
    assert not profile_steps.slow_convolutions(second_order(conv_general_dilated, 1))


def test_an_operation_has_the_kind_of_what_it_calls():
    text = """
%inner (p: f32[2,2]) -> f32[2,2] {
  %p = f32[2,2]{1,0} parameter(0)
  ROOT %d = f32[2,2]{1,0} dot(%p, %p), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}

ENTRY %main (x: f32[2,2]) -> f32[] {
  %x = f32[2,2]{1,0} parameter(0)
  %fused = f32[2,2]{1,0} fusion(%x), kind=kOutput, calls=%inner
  ROOT %total = f32[] reduce(%fused, %zero), dimensions={0,1}, to_apply=%add
}
"""
    kinds = {name: profile_steps.kind_of(whole) for name, whole in profile_steps.operations(text).items()}
    assert (kinds["fused"], kinds["total"], kinds["x"]) == ("dot", "reduce", "elementwise")
