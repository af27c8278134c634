"""Aggregation of clients, weighted and secure, against NumPy and the gradient of all examples."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxinvert import clients
from jaxinvert.types import Batch
from tests.clients.conftest import GRADIENT, LOSS, RNG, assert_trees_close, single


def test_aggregate_is_the_weighted_mean():
    updates = {"a": RNG.normal(size=(3, 2, 4)), "b": {"c": RNG.normal(size=3)}}
    weights = np.array([1, 5, 2])
    mean = clients.aggregate(jax.tree.map(jnp.asarray, updates), weights)
    expected = jax.tree.map(lambda leaf: np.average(leaf, axis=0, weights=weights), updates)
    assert_trees_close(mean, expected, rtol=1e-5, atol=1e-6)


def test_aggregate_of_clients_is_the_gradient_of_all_their_examples():
    """For FedSGD and clients weighted by their examples: why secure aggregation is one large batch to an attacker."""
    params, batch = single()
    split = jax.tree.map(lambda leaf: leaf.reshape(3, 2, *leaf.shape[1:]), batch)
    client = clients.fedsgd(LOSS)
    mean = clients.aggregate(jax.vmap(client, (None, 0))(params, split), jnp.full(3, 2))
    assert_trees_close(mean, client(params, batch), rtol=1e-4, atol=1e-6)


def test_aggregate_refuses_other_shapes():
    with pytest.raises(ValueError, match=r"weights must be \[N\], one per client, got shape \(\)"):
        clients.aggregate(jnp.ones((3, 2)), 1.0)
    with pytest.raises(ValueError, match=r"leading axis of 2 clients, got a leaf \(3, 2\)"):
        clients.aggregate(jnp.ones((3, 2)), jnp.ones(2))


def test_secure_aggregation_shows_the_mean_of_clients_that_train_apart(double):
    params, batch = double
    client = clients.fedavg(LOSS, optimizer=optax.sgd(0.3), num_epochs=3)
    found = clients.securely_aggregated(client, num_clients=2)(params, batch)
    first, second = (
        client(params, Batch(batch.inputs[half], batch.labels[half])) for half in (slice(3), slice(3, 6))
    )
    assert_trees_close(found, jax.tree.map(lambda a, b: (a + b) / 2, first, second), rtol=1e-12, atol=1e-15)


def test_secure_aggregation_of_fedsgd_is_the_gradient_of_all_examples(double):
    params, batch = double
    found = clients.securely_aggregated(clients.fedsgd(LOSS), num_clients=3)(params, batch)
    assert_trees_close(found, GRADIENT(params, batch), rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize(("num_clients", "message"), [(4, "must divide the 6 examples"), (0, "at least 1, got 0")])
def test_secure_aggregation_refuses_clients_of_unequal_size(num_clients, message):
    params, batch = single()
    with pytest.raises(ValueError, match=message):
        clients.securely_aggregated(clients.fedsgd(LOSS), num_clients=num_clients)(params, batch)
