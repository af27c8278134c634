"""Directions under noise: trusted as far as they are the signal's, and as before where there is no noise."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxinvert.attacks.noisy_span import noisy_span, outside

RNG = np.random.default_rng(0)
SPAN = jax.jit(noisy_span, static_argnums=1)


def of_rank(rank, rows=33, columns=96):
    inputs = RNG.normal(size=(rank, rows))
    return inputs, inputs.T @ RNG.normal(size=(rank, columns))


@pytest.mark.parametrize("scale", [1.0, 1e-6, 1e4])
@pytest.mark.parametrize("rank", [1, 8, 24])
def test_without_noise_inputs_are_inside_and_others_are_not(rank, scale):
    inputs, gradient = of_rank(rank)
    span = SPAN(jnp.float32(gradient * scale), 24)
    np.testing.assert_allclose(np.sort(span.trust)[-rank:], 1, atol=1e-3)
    assert np.sum(span.trust) == pytest.approx(rank, abs=1e-2)
    assert np.max(outside(span, jnp.float32(inputs))) < 1e-3
    others = outside(span, jnp.float32(RNG.normal(size=(500, 33))))
    assert np.mean(others) == pytest.approx(1 - rank / 33, abs=0.03)


def test_of_noise_alone_little_is_trusted():
    trust = [np.sum(SPAN(jnp.float32(RNG.normal(size=(33, 96))), 8).trust) for _ in range(20)]
    assert np.mean(trust) < 1.5  # of 33


@pytest.mark.parametrize(("rows", "columns"), [(200, 400), (400, 200), (300, 300)])
def test_the_trust_is_the_squared_cosine_with_the_signal(rows, columns):
    """Of signals around and above the smallest that can be told from noise, `x = (D / m)^(1/4)`."""
    for strength in (1.3, 2.0, 4.0):
        expected, true = [], []
        for _ in range(4):
            left, right = RNG.normal(size=rows), RNG.normal(size=columns)
            left, right = left / np.linalg.norm(left), right / np.linalg.norm(right)
            size = strength * (rows / columns) ** 0.25 * np.sqrt(columns)
            span = noisy_span(jnp.float32(size * np.outer(left, right) + RNG.normal(size=(rows, columns))), 4)
            expected.append(span.trust[0])
            true.append(np.square(span.basis[:, 0] @ left))
        assert np.mean(expected) == pytest.approx(np.mean(true), abs=0.12)


def test_where_inputs_fill_the_gradient_no_noise_is_assumed():
    inputs, gradient = of_rank(8, rows=32, columns=8)
    span = SPAN(jnp.float32(gradient), 8)
    np.testing.assert_allclose(span.trust, 1, atol=1e-3)
    assert np.max(outside(span, jnp.float32(inputs))) < 1e-3


def test_what_is_not_finite_or_zero_is_not_trusted():
    for gradient in (jnp.zeros((9, 12)), jnp.full((9, 12), jnp.nan)):
        span = SPAN(gradient, 4)
        assert not np.any(span.trust)
        np.testing.assert_array_equal(outside(span, jnp.ones((3, 9))), 1)
    assert np.all(
        np.isfinite(jax.grad(lambda rows: jnp.sum(outside(SPAN(jnp.zeros((9, 12)), 4), rows)))(jnp.zeros((3, 9))))
    )
