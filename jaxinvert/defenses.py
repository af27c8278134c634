"""What a client does to its update before it is sent: `(key, update) -> update`, pure; `chain` composes them."""

import jax

from jaxinvert.types import Defense, Key, Scalar, Update


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
        if key is None:
            raise ValueError("a random defense needs a key: gaussian_noise was handed None")
        leaves, structure = jax.tree.flatten(update)
        keys = jax.random.split(key, len(leaves))  # one key per tensor, or their noise would be correlated
        noisy = [
            leaf + (scale * jax.random.normal(leaf_key, leaf.shape, leaf.dtype)).astype(leaf.dtype)
            for leaf_key, leaf in zip(keys, leaves)
        ]
        return jax.tree.unflatten(structure, noisy)

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
