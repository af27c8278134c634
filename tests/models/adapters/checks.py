"""Comparison of an imported network with its own library: gradients, second derivatives, jit, vmap, statistics."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxinvert import Batch, clients, models
from jaxinvert.trees import tree_inner

LABELS = np.array([1, 2, 0])
IMAGES = np.random.default_rng(0).uniform(size=(3, 8, 8, 3)).astype(np.float32)


def gradient(model, images=IMAGES, params=None):
    """The library's names -> the gradient of the mean cross-entropy in its layout."""
    params = model.init(jax.random.key(0)) if params is None else params
    batch = Batch(jnp.asarray(images), jnp.asarray(LABELS))
    return models.to_named(model, jax.jit(clients.fedsgd(model.loss))(params, batch))


def second_derivative(model, direction, images=IMAGES):
    """`d/d images` of the inner product of the gradient with `direction`, a tree like the parameters by name."""
    params, along = model.init(jax.random.key(0)), models.from_named(model, direction, may_lack=True)
    client = clients.fedsgd(model.loss)

    def inner(images):
        return tree_inner(client(params, Batch(images, jnp.asarray(LABELS))), along)

    return np.asarray(jax.jit(jax.grad(inner))(jnp.asarray(images)))


def relative_error(found, expected):
    """Largest error of any tensor, relative to the norm of all."""
    size = np.sqrt(sum(np.sum(np.square(value)) for value in expected.values()))
    return max(np.linalg.norm(found[name] - value) for name, value in expected.items()) / size


def check_examples_are_apart(model):
    """Under vmap over examples, the logits are those of the batch."""
    params = model.init(jax.random.key(0))
    together = model.apply(params, jnp.asarray(IMAGES))
    apart = jax.vmap(model.apply, (None, 0))(params, jnp.asarray(IMAGES)[:, None])[:, 0]
    np.testing.assert_allclose(apart, together, atol=1e-5)


def check_round_trip(model):
    """Names and layouts of the files are a bijection of the tree."""
    params = model.init(jax.random.key(0))
    jax.tree.map(np.testing.assert_array_equal, models.from_named(model, models.to_named(model, params)), params)
