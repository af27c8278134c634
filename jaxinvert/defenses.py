"""What a client does to its update before it is sent: `(key, update) -> update`, pure; `chain` composes them.

Some change the *weights* that a client sends, which are `params - update`; those take the parameters when they are
made, and what they return is again an update.
"""

import jax
import jax.numpy as jnp

from jaxinvert.types import Array, Defense, Key, Params, Scalar, Update


def identity(key: Key | None, update: Update) -> Update:
    """No defense."""
    del key
    return update


def gaussian_noise(scale: Scalar) -> Defense:
    """Adds independent `N(0, scale^2)` to every entry of every tensor.

    Without clipping this is *not* differentially private, whatever the scale.

    Args:
      scale: standard deviation, in units of the update; may be traced.
    """

    def defend(key: Key | None, update: Update) -> Update:
        return _with_noise(key, update, jax.tree.map(lambda leaf: jnp.asarray(scale), update), "gaussian_noise")

    return defend


def percentile_noise(scale: Scalar, *, percentile: float = 95.0) -> Defense:
    """Adds `N(0, (scale P)^2)` to every tensor, `P` a percentile of its absolute values (Hatamizadeh et al. 2022).

    Not differentially private: the scale depends on the data.

    Args:
      scale: their `sigma_0`; 0 changes nothing; may be traced.
      percentile: 0 ... 100, of the absolute values of each tensor.
    """

    def defend(key: Key | None, update: Update) -> Update:
        scales = jax.tree.map(lambda leaf: scale * jnp.percentile(jnp.abs(leaf), percentile), update)
        return _with_noise(key, update, scales, "percentile_noise")

    return defend


def row_noise(params: Params, scale: Scalar, *, bound: float = 0.2) -> Defense:
    """Noise on the weights sent, relative to their largest row (Zhao et al. 2022, DLM, first defense).

    Every weight tensor is divided by `a = max(1, max_row |row| / bound)`, gets `N(0, scale^2)`, and is multiplied by
    `a` again. A row is what feeds one output: all axes but the last are flattened.

    Args:
      params: the parameters the client started from.
      scale: standard deviation of the noise on the weights after the division; the paper tries 1e-5 ... 1.
      bound: on the norm of the rows.
    """

    def defend(key: Key | None, update: Update) -> Update:
        def spread(weights: Array) -> Array:
            rows = weights.reshape(-1, weights.shape[-1]) if weights.ndim > 1 else weights[None]
            return scale * jnp.maximum(1.0, jnp.sqrt(jnp.max(jnp.sum(jnp.square(rows), axis=0))) / bound)

        scales = jax.tree.map(lambda w, u: spread(w - u), params, update)
        return _with_noise(key, update, scales, "row_noise")

    return defend


def smallest_weights_zeroed(params: Params, share: Scalar) -> Defense:
    """Sends zeros for the smallest weights of every tensor (Zhao et al. 2022, DLM, second defense).

    Args:
      params: the parameters the client started from; the weights sent are `params - update`.
      share: 0 ... 1, of the weights by absolute value; 0 changes nothing. May be traced.
    """

    def defend(key: Key | None, update: Update) -> Update:
        del key

        def zeroed(start: Array, leaf: Array) -> Array:
            weights = start - leaf
            rank = jnp.argsort(jnp.argsort(jnp.abs(weights).ravel())).reshape(leaf.shape)
            return jnp.where(rank < share * leaf.size, start, leaf)

        return jax.tree.map(zeroed, params, update)

    return defend


def chain(*defenses: Defense) -> Defense:
    """Applies `defenses` from first to last, each with a key of its own.

    >>> import jax.numpy as jnp
    >>> halve = lambda key, update: jax.tree.map(lambda leaf: leaf / 2, update)
    >>> float(chain(halve, identity, halve)(jax.random.key(0), jnp.array(8.0)))
    2.0
    """

    def defend(key: Key | None, update: Update) -> Update:
        keys = [None] * len(defenses) if key is None else jax.random.split(key, len(defenses))
        for step_key, defense in zip(keys, defenses):
            update = defense(step_key, update)
        return update

    return defend


def _with_noise(key: Key | None, update: Update, scales: Update, name: str) -> Update:
    """Independent normal noise on every tensor; `scales` holds its standard deviations, one for each tensor."""
    if key is None:
        raise ValueError(f"a random defense needs a key: {name} was handed None")
    leaves, structure = jax.tree.flatten(update)
    keys = jax.random.split(key, len(leaves))  # one key per tensor, or their noise would be correlated
    noisy = [
        leaf + (scale * jax.random.normal(leaf_key, leaf.shape, leaf.dtype)).astype(leaf.dtype)
        for leaf_key, leaf, scale in zip(keys, leaves, jax.tree.leaves(scales))
    ]
    return jax.tree.unflatten(structure, noisy)
