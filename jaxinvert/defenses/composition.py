"""The identity defense, and `chain`, which applies several defenses in sequence."""

import jax

from jaxinvert.types import Defense, Key, Update


def identity(key: Key | None, update: Update) -> Update:
    """Returns the update unchanged: no defense."""
    del key
    return update


def chain(*defenses: Defense) -> Defense:
    """Applies `defenses` from first to last, each with its own key.

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
