"""What of the clients' updates the server sees: without layers that they keep, and as a mean over clients."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from jaxinvert.clients.local_training import AnyClientUpdateFn
from jaxinvert.models.roles import sent_leaves
from jaxinvert.types import Array, Batch, Key, Params, Update


def aggregate(updates: Update, weights: Array) -> Update:
    """Weighted mean of `N` clients' updates: what the server sees under secure aggregation.

    `sum_n weights_n update_n / sum_n weights_n`; McMahan et al. weight by the clients' numbers of examples.

    Args:
      updates: tree with leaves `[N, ...]`, such as results of `jax.vmap(client_update, (None, 0))`.
      weights: `[N]`, non-negative, not all zero.

    Returns:
      Tree with leaves `[...]`.

    Raises:
      ValueError: if `weights` is not `[N]`, or a leaf has another leading axis.
    """
    weights = jnp.asarray(weights)
    if weights.ndim != 1:
        raise ValueError(f"weights must be [N], one per client, got shape {weights.shape}")
    shares = weights / jnp.sum(weights)

    def mean(leaf: Array) -> Array:
        if leaf.shape[:1] != weights.shape:
            raise ValueError(f"updates must have a leading axis of {weights.size} clients, got a leaf {leaf.shape}")
        per_client = shares.reshape(-1, *[1] * (leaf.ndim - 1)).astype(leaf.dtype)
        return jnp.sum(per_client * leaf, axis=0)

    return jax.tree.map(mean, updates)


def securely_aggregated(client_update: AnyClientUpdateFn, *, num_clients: int) -> AnyClientUpdateFn:
    """The mean update of `N` clients that train separately, as the server sees it under secure aggregation.

    Args:
      client_update: each client's `(params, batch) -> update`; or `(params, batch, key) -> update` if it is random.
      num_clients: `N`.

    Returns:
      `(params, batch) -> update` of a batch with the clients' examples in consecutive, equal blocks. An optional key
      as third argument is split into one key per client. Raises ValueError when traced with a batch whose size is no
      multiple of `num_clients`.

    Raises:
      ValueError: for fewer than one client.
    """
    if num_clients < 1:
        raise ValueError(f"num_clients must be at least 1, got {num_clients}")

    def update_of_all(params: Params, batch: Batch, key: Key | None = None) -> Update:
        num_examples = batch.inputs.shape[0]
        if num_examples % num_clients:
            raise ValueError(f"num_clients must divide the {num_examples} examples of all clients, got {num_clients}")
        apart = jax.tree.map(lambda leaf: jnp.asarray(leaf).reshape(num_clients, -1, *leaf.shape[1:]), batch)
        keys = () if key is None else (jax.random.split(key, num_clients),)
        updates = jax.vmap(client_update, in_axes=(None, 0, *[0] * len(keys)))(params, apart, *keys)
        return aggregate(updates, jnp.ones(num_clients))

    return update_of_all


def sending(
    client_update: AnyClientUpdateFn, *, frozen: Sequence[str] = (), personal: Sequence[str] = ()
) -> AnyClientUpdateFn:
    """The client that keeps some of its layers: their update is zero, as if it was not sent.

    Args:
      client_update: the client's training, `(params, batch) -> update`, or with a key as third argument.
      frozen: paths of leaves or layers that are not trained, `Model.frozen`.
      personal: paths of leaves or layers that are trained but not sent, `Model.personal`.
    """
    if not personal and not frozen:
        return client_update

    def sent_update(params: Params, batch: Batch, *key: Key | None) -> Update:
        sent = sent_leaves(params, frozen, personal)
        return jax.tree.map(lambda u, s: u if s else jnp.zeros_like(u), client_update(params, batch, *key), sent)

    return sent_update
