"""Checks of a network's gradients on a handful of examples: which of them a dense layer's units react to.

A unit behind ReLU has a gradient from those examples only that it is active on. In a crafted network these sets of
examples are ordered, so that the difference of two units' gradients is one example's, or hold one example each.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxinvert.inspection.layers import is_table
from jaxinvert.models.model import Model
from jaxinvert.models.roles import matches
from jaxinvert.trees import is_float, leaves_by_path, tree_norm
from jaxinvert.types import Array, Batch, Params

_ACTIVE = 1e-4
_RARE = 0.05
_SILENT = 1e-3
_MAX_UNITS = 2048


class Responses(NamedTuple):
    """What each example does to the gradient.

    Attributes:
      units: for every dense layer but the head, by path, `[B, U]` the largest gradient of each unit's weights.
      norms: `[B]` norms of the gradients of all parameters but the head's.
      head_norms: `[B]` norms of the gradient of the head's weights; zero for an example all of whose features are.
    """

    units: dict[str, Array]
    norms: Array
    head_norms: Array


def responses(model: Model, params: Params, batch: Batch) -> Responses:
    """The responses to a batch, one example after the other; traceable.

    Args:
      model: the network; its layers must not couple examples, as BatchNorm in train mode does.
      params: its parameters.
      batch: inputs `[B, H, W, C]` in [0, 1] and labels `[B]`.
    """
    leaves, structure = jax.tree.flatten(params)
    trained = [is_float(leaf) for leaf in leaves]

    def loss(floats: list[Array], example: Batch) -> Array:
        given = iter(floats)
        filled = [next(given) if is_trained else leaf for leaf, is_trained in zip(leaves, trained)]
        return model.loss(structure.unflatten(filled), example)

    def one(example: Batch) -> Responses:
        single = jax.tree.map(lambda leaf: leaf[None], example)
        grads = iter(jax.grad(loss)([leaf for leaf, ok in zip(leaves, trained) if ok], single))
        tree = structure.unflatten([next(grads) if ok else jnp.zeros(()) for ok in trained])
        grads = leaves_by_path(tree)
        body = {path: g for path, g in grads.items() if not matches(path, (model.head,))}
        head = {path: g for path, g in grads.items() if path not in body and g.ndim > 1}
        units = {
            path: jnp.max(jnp.abs(g), axis=0)
            for path, g in body.items()
            if g.ndim == 2 and not is_table(path) and (model.head or g.shape[1] != model.num_classes)
        }
        return Responses(units, tree_norm(body), tree_norm(head))

    return jax.lax.map(one, batch)


def active(units: np.ndarray) -> np.ndarray:
    """`[B, U]` whether each example changes each unit's weights, relative to other units and to other examples."""
    relative = units / np.maximum(units.max(axis=1, keepdims=True), np.finfo(np.float32).tiny)
    return relative > _ACTIVE * np.maximum(relative.max(axis=0, keepdims=True), np.finfo(np.float32).tiny)


def longest_chain(is_active: np.ndarray) -> int:
    """How many units at most are active on sets of examples each of which holds the one before: of `[B, U]`.

    Of random sets only few do; thresholds along one direction make chains as long as there are examples or bins.
    Units without an active example do not count.
    """
    sets = np.unique(is_active.T, axis=0)
    sets = sets[sets.any(axis=1)]
    sets = sets[np.argsort(sets.sum(axis=1), kind="stable")].astype(np.float32)
    if not len(sets):
        return 0
    if len(sets) > _MAX_UNITS:  # of all sizes, as a chain has them
        sets = sets[np.linspace(0, len(sets) - 1, _MAX_UNITS).astype(int)]
    within = sets @ (1 - sets).T == 0
    longest = np.ones(len(sets), int)
    for larger in range(len(sets)):
        if (smaller := within[:larger, larger]).any():
            longest[larger] += longest[:larger][smaller].max()
    return int(longest.max())


def rare_share(is_active: np.ndarray) -> float:
    """Share of units that are active on 5 % of the examples at most, but on some: of `[B, U]`.

    Dead units, of which honest networks may have many, count among the others.
    """
    share = is_active.mean(axis=0)
    return float(np.mean((share > 0) & (share <= _RARE)))


def isolated_share(is_active: np.ndarray) -> float:
    """Share of examples that alone activate some unit, which its gradient gives away: of `[B, U]`."""
    return float(is_active[:, is_active.sum(axis=0) == 1].any(axis=1).mean())


def silent_share(norms: np.ndarray, head_norms: np.ndarray) -> float:
    """Share of examples whose gradient ends in the head: both of `[B]`, see `Responses`.

    It is less than a thousandth of the largest one in the body, but not in the head. Examples that no unit reacts to,
    as in a network that is all but dead, have no gradient in the head either; nor have those that are classified
    well.
    """
    norms, head_norms = np.asarray(norms, np.float64), np.asarray(head_norms, np.float64)
    return float(np.mean((norms < _SILENT * norms.max()) & (head_norms > _SILENT * head_norms.max())))
