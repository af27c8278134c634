"""Random draws for defenses, with a separate key for every tensor of an update."""

from collections.abc import Callable

import jax

from jaxinvert.nn.draws import drawn
from jaxinvert.types import Array, Key, Update


def with_draws(
    change: Callable[..., Array],
    draw: Callable[..., Array],
    key: Key | None,
    update: Update,
    *rest: Update,
    name: str,
) -> Update:
    """Applies `change(leaf, drawn, *rest)` to every tensor.

    Args:
      change: called as `change(leaf, drawn, *leaves of rest)`; its result is cast to the tensor's dtype.
      draw: `(key, shape, dtype) -> array`, called with a separate key for every tensor.
      key: the defense's key.
      update: the client's update.
      rest: further trees with the same structure.
      name: name of the defense, for the message.

    Raises:
      ValueError: without a key.
    """
    if key is None:
        raise ValueError(f"a random defense needs a key: {name} was handed None")
    leaves, structure = jax.tree.flatten(update)
    keys = jax.random.split(key, len(leaves))  # one key per tensor: with a shared key their noise is correlated
    others = (jax.tree.leaves(tree) for tree in rest)
    changed = [
        change(leaf, drawn(draw, leaf_key, leaf.shape, leaf.dtype), *other).astype(leaf.dtype)
        for leaf_key, leaf, *other in zip(keys, leaves, *others)
    ]
    return jax.tree.unflatten(structure, changed)
