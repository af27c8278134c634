"""Defenses that change the *weights* a client sends, `params - update`; their factories take the parameters.

Like all defenses they return an update.

References:
  Zhao, Luo, Ding: Deep leakage from model in federated learning, 2022, arXiv:2206.04887.
"""

import jax
import jax.numpy as jnp

from jaxinvert.defenses.noise import add_normal
from jaxinvert.types import Array, Defense, Key, Params, Scalar, Update


def row_noise(params: Params, scale: Scalar, *, bound: Scalar = 0.2) -> Defense:
    """Adds noise to the weights sent, relative to their largest row (Zhao et al. 2022, DLM, first defense).

    Every weight tensor is divided by `a = max(1, max_row |row| / bound)`, gets noise `N(0, scale^2)`, and is
    multiplied by `a` again. A row holds the weights of one output: all axes but the last are flattened.

    Args:
      params: the parameters the client started from.
      scale: standard deviation of the noise on the weights after the division; the paper tries 1e-5 ... 1.
      bound: bound on the norm of the rows.
    """

    def defend(key: Key | None, update: Update) -> Update:
        sent = jax.tree.map(jnp.subtract, params, update)
        return add_normal(key, update, row_noise_scales(sent, scale, bound=bound), name="row_noise")

    return defend


def row_noise_scales(weights: Params, scale: Scalar, *, bound: Scalar = 0.2) -> Params:
    """The standard deviation `scale a` of the noise that `row_noise` adds to each tensor of the weights sent."""

    def spread(leaf: Array) -> Array:
        rows = leaf.reshape(-1, leaf.shape[-1]) if leaf.ndim > 1 else leaf[None]
        return scale * jnp.maximum(1.0, jnp.sqrt(jnp.max(jnp.sum(jnp.square(rows), axis=0))) / bound)

    return jax.tree.map(spread, weights)


def smallest_weights_zeroed(params: Params, share: Scalar) -> Defense:
    """Sends zeros for the smallest weights of every tensor (Zhao et al. 2022, DLM, second defense).

    Args:
      params: the parameters the client started from; the weights sent are `params - update`.
      share: 0 ... 1, fraction of each tensor's weights, smallest magnitudes first; 0 changes nothing. May be traced.
    """

    def defend(key: Key | None, update: Update) -> Update:
        del key

        def zeroed(start: Array, leaf: Array) -> Array:
            weights = start - leaf
            rank = jnp.argsort(jnp.argsort(jnp.abs(weights).ravel())).reshape(leaf.shape)
            return jnp.where(rank < share * leaf.size, start, leaf).astype(leaf.dtype)

        return jax.tree.map(zeroed, params, update)

    return defend
