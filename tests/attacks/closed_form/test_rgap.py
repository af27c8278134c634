"""R-GAP through a small LeNet: exact for one image, and honest where the update says nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxinvert import clients, models
from jaxinvert.attacks import Problem
from jaxinvert.attacks.closed_form.rgap import LENET, Convolution, num_equations, rgap
from jaxinvert.observation.observe import observe
from jaxinvert.types import Batch, Observation

MODEL = models.create("lenet", input_shape=(12, 12, 3), num_classes=5, mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.3))
CLIENT = clients.fedsgd(models.cross_entropy(MODEL.apply))
SHAPE = (1, 12, 12, 3)


@pytest.fixture(scope="module")
def solve():
    return jax.jit(jax.vmap(rgap(Problem(CLIENT, MODEL, 1)), (None, Observation(None, 0))))


@pytest.mark.slow
def test_images_are_exact_and_an_empty_update_is_no_image(solve):
    params = MODEL.init(jax.random.key(0))
    images = jax.random.uniform(jax.random.key(1), (2, *SHAPE))
    updates = [observe(CLIENT, params, Batch(image, jnp.array([3]))).update for image in images]
    updates.append(jax.tree.map(jnp.zeros_like, params))
    updates.append(jax.tree.map(lambda leaf: jnp.full_like(leaf, jnp.nan), params))
    found = [
        jax.tree.map(
            lambda leaf: leaf[0],
            solve(jax.random.key(0), Observation(params, jax.tree.map(lambda u: u[None], update))),
        )
        for update in updates
    ]
    for image, one in zip(images, found):
        np.testing.assert_allclose(one.inputs, image, atol=1e-3)  # 60 dB
        assert float(one.attack_loss) < 1e-4
        assert one.info["determined"].tolist() == [True, True, True]
    for nothing in found[2:]:
        assert float(nothing.attack_loss) == np.inf
        assert np.all(np.isfinite(nothing.inputs))


@pytest.mark.slow
def test_a_head_that_is_not_of_one_example_ends_it(solve):
    """Noise as large as the head's gradient: no layer below is solved for, and the gray answer says so."""
    params = MODEL.init(jax.random.key(0))
    image = jax.random.uniform(jax.random.key(1), SHAPE)
    update = observe(CLIENT, params, Batch(image, jnp.array([3]))).update
    noise = jax.tree.map(lambda leaf: jnp.std(leaf) * jax.random.normal(jax.random.key(2), leaf.shape), update)
    (found,) = [solve(jax.random.key(0), Observation(params, jax.tree.map(lambda u: u[None], noise)))]
    assert 0.3 < float(found.attack_loss[0]) <= 1.001
    np.testing.assert_array_equal(found.info["residuals"][0], np.full(3, found.attack_loss[0]))
    assert not found.info["determined"].any()
    np.testing.assert_allclose(found.inputs[0, 0], np.broadcast_to(MODEL.mean, SHAPE[1:]), atol=1e-6)


def test_equations_are_counted_against_unknowns():
    """LeNet at 32 px: 16 x 16 x 12 outputs and 5 x 5 x 3 x 12 weights for 32 x 32 x 3 pixels, and so on upward."""
    assert num_equations(LENET[0], (5, 5, 3, 12), (32, 32, 3)) == (3072 + 900, 3072)
    assert num_equations(LENET[1], (5, 5, 12, 12), (16, 16, 12)) == (768 + 3600, 3072)
    assert num_equations(LENET[2], (5, 5, 12, 12), (8, 8, 12)) == (768 + 3600, 768)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="rgap inverts updates of one example; this problem has 2"):
        rgap(Problem(CLIENT, MODEL, 2))
    with pytest.raises(ValueError, match="a chain of convolutions with sigmoids, lenet; this model is mlp"):
        rgap(Problem(CLIENT, models.create("mlp"), 1))
    params = MODEL.init(jax.random.key(0))
    with pytest.raises(ValueError, match=r"rgap needs \['params/top/kernel', 'params/top/bias'\]"):
        rgap(Problem(CLIENT, MODEL, 1), layers=[Convolution("params/top", 1, 0)])(
            jax.random.key(0), Observation(params, params)
        )
