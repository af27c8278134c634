"""Image priors against values by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxinvert.priors import regularizers

CONSTANT = jnp.full((2, 4, 5, 3), 0.3)


def test_total_variation_of_ramps():
    ramp = jnp.broadcast_to(jnp.linspace(0, 1, 5)[None, None, :, None], (2, 4, 5, 3))
    assert float(regularizers.total_variation(ramp)) == pytest.approx(1 / 4)
    assert float(regularizers.total_variation_l2(ramp)) == pytest.approx(1 / 16)
    diagonal = ramp + jnp.linspace(0, 1, 4)[None, :, None, None] * jnp.ones_like(ramp)
    assert float(regularizers.total_variation(diagonal)) == pytest.approx(1 / 4 + 1 / 3)


def test_total_variation_equals_a_plain_loop():
    x = np.random.default_rng(0).random((2, 3, 4, 2), np.float32)
    along_height = np.mean(
        [
            abs(x[b, i + 1, j, c] - x[b, i, j, c])
            for b in range(2)
            for i in range(2)
            for j in range(4)
            for c in range(2)
        ]
    )
    along_width = np.mean(
        [
            abs(x[b, i, j + 1, c] - x[b, i, j, c])
            for b in range(2)
            for i in range(3)
            for j in range(3)
            for c in range(2)
        ]
    )
    assert float(regularizers.total_variation(x)) == pytest.approx(along_height + along_width, rel=1e-5)


def test_total_variation_of_lines_and_of_what_is_no_image():
    line = jnp.linspace(0, 1, 5).reshape(1, 1, 5, 1)
    assert float(regularizers.total_variation(line)) == pytest.approx(1 / 4)
    assert float(regularizers.total_variation(jnp.ones((1, 1, 1, 1)))) == 0
    with pytest.raises(ValueError, match=r"needs images \[B, H, W, C\], got shape \(2, 5\)"):
        regularizers.total_variation(jnp.ones((2, 5)))


def test_box_and_norm_by_hand():
    assert float(regularizers.box(jnp.array([-0.5, 0.5, 3.0]).reshape(1, 1, 3, 1))) == pytest.approx(0.25 + 4)
    assert float(regularizers.l2_norm(jnp.array([3.0, 4.0]).reshape(1, 1, 2, 1))) == pytest.approx(5)


@pytest.mark.parametrize("name", regularizers.REGISTRY)
def test_gradients_are_finite_on_flat_and_on_black_images(name):
    for image in (CONSTANT, jnp.zeros_like(CONSTANT)):
        assert bool(jnp.all(jnp.isfinite(jax.grad(regularizers.REGISTRY[name])(image))))


def test_weights_may_be_traced():
    total = jax.jit(lambda weight: regularizers.weighted((weight, regularizers.l2_norm))(CONSTANT))
    assert float(total(2.0)) == pytest.approx(2 * 0.3 * np.sqrt(CONSTANT.size), rel=1e-5)
