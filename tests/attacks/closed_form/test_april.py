"""One image behind a Vision Transformer: exact and certified, or a reason why not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxinvert import clients, models
from jaxinvert.attacks import Problem
from jaxinvert.attacks.closed_form.april import april, patch_embedding
from jaxinvert.attacks.closed_form.certificate import WORDS, Status
from jaxinvert.observation.observe import observe
from jaxinvert.types import Batch, Observation

SHAPE = (1, 8, 8, 3)


def client_of(name):
    model = models.create(name, input_shape=SHAPE[1:], num_classes=5, mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.3))
    return model, jax.jit(clients.fedsgd(models.cross_entropy(model.apply)))


PLAIN, PLAIN_CLIENT = client_of("vit-plain-2-32-1")
PRE_NORM, PRE_NORM_CLIENT = client_of("vit-pre-norm-2-32-1")


def a_batch(seed=1):
    return Batch(jax.random.uniform(jax.random.key(seed), SHAPE), jnp.array([seed % 5]))


@pytest.fixture(scope="module")
def solve():
    return jax.jit(april(Problem(PLAIN_CLIENT, PLAIN, 1)))


@pytest.fixture(scope="module")
def params():
    return PLAIN.init(jax.random.key(0))


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
def test_the_image_is_exact_certified_and_labeled(solve, params, seed):
    batch = a_batch(seed)
    found = solve(jax.random.key(0), observe(PLAIN_CLIENT, params, batch))
    np.testing.assert_allclose(found.inputs, batch.inputs, atol=1e-3)  # 60 dB
    assert found.labels.tolist() == batch.labels.tolist()
    assert bool(found.info["certified"])
    assert int(found.info["rank"]) == 16
    assert found.inputs.dtype == jnp.float32


def test_the_layer_of_patches_needs_no_plain_attention():
    solve = jax.jit(patch_embedding(Problem(PRE_NORM_CLIENT, PRE_NORM, 1)))
    batch = a_batch()
    found = solve(jax.random.key(0), observe(PRE_NORM_CLIENT, PRE_NORM.init(jax.random.key(0)), batch))
    np.testing.assert_allclose(found.inputs, batch.inputs, atol=1e-3)
    assert bool(found.info["certified"])


def noisy(params):
    update = PLAIN_CLIENT(params, a_batch())
    noise = jax.random.normal(jax.random.key(3), update["params"]["head"]["kernel"].shape)
    update["params"]["head"]["kernel"] += 1e-3 * noise
    return update


def of_two(params):
    return jax.tree.map(lambda *leaves: sum(leaves) / 2, *(PLAIN_CLIENT(params, a_batch(seed)) for seed in (1, 2)))


def equal_tokens(params):
    """An image of equal patches without positions: all tokens are one, and so is their gradient."""
    params = jax.tree.map(lambda leaf: leaf, params)
    params["params"]["positions"] *= 0
    return PLAIN_CLIENT(params, Batch(jnp.full(SHAPE, 0.3), jnp.array([1])))


@pytest.mark.parametrize(
    ("update_of", "status"),
    [
        (lambda params: jax.tree.map(lambda leaf: leaf.at[0].set(jnp.nan), params), Status.NOT_FINITE),
        (lambda params: jax.tree.map(jnp.zeros_like, params), Status.ZERO),
        (equal_tokens, Status.UNDETERMINED),
        (noisy, Status.DIFFERENT),
        (of_two, Status.DIFFERENT),
    ],
)
def test_what_cannot_be_exact_gets_a_status_and_no_certificate(solve, params, update_of, status):
    found = solve(jax.random.key(0), Observation(params, update_of(params)))
    assert int(found.info["status"]) == status
    assert not bool(found.info["certified"])
    assert WORDS[status].startswith("not certified")
    assert np.all(np.isfinite(found.inputs))


def test_what_does_not_fit_is_refused(params):
    def refused(model, match, attack=april, shape=SHAPE[1:]):
        params = jax.eval_shape(model.init, jax.random.key(0))
        problem = Problem(PLAIN_CLIENT, model._replace(input_shape=shape), 1)
        with pytest.raises(ValueError, match=match):
            attack(problem)(jax.random.key(0), Observation(params, params))

    with pytest.raises(ValueError, match=r"april inverts updates of one example; this problem has 2"):
        april(Problem(PLAIN_CLIENT, PLAIN, 2))
    refused(PRE_NORM, "enter self-attention unnormalized.*params/attention_norm_0")
    refused(models.create("mlp", features=(4,)), r"Vision Transformer.*lacks.*params/positions")
    narrow = models.create("vit-plain-2-8-1", input_shape=SHAPE[1:])
    refused(narrow, "at least as wide as the number of patches, 16; got 8", attack=patch_embedding)
    wide_patches = models.create("vit-plain-4-32-1", input_shape=SHAPE[1:])
    refused(wide_patches, "as wide as the number of values in a patch, 48; got 32")
    refused(PLAIN, r"16 patches of 12 values.*do not form an image of shape \(4, 8, 3\)", shape=(4, 8, 3))
