"""Reads a model's tensors from a file under the names and layouts of the model's own library."""

from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np

from jaxinvert import models
from jaxinvert.observation.captures.trees import load_tree
from jaxinvert.trees import leaves_by_path, path_name
from jaxinvert.types import ArrayTree


def load_for_model(
    path: Path, model: models.Model, *, what: str = "update", may_lack: Sequence[str] = ()
) -> ArrayTree:
    """Reads parameters, or an update, of a model.

    Args:
      path: safetensors, npz or Flax msgpack; a PyTorch `state_dict` keeps PyTorch's names and layouts.
      model: the clients' network.
      what: the expected content, for messages.
      may_lack: see `load_tree`.

    Returns:
      A tree of finite arrays with the structure of `model.init`'s result.

    Raises:
      FileNotFoundError, ValueError: see `load_tree`.
    """
    like = jax.eval_shape(model.init, jax.random.key(0))
    named = to_named(model, like)
    found = load_tree(path, named, what=what, may_lack=may_lack, order=[*named])
    return from_named(model, {name: np.asarray(leaf) for name, leaf in found.items()}, like=like)


def to_named(model: models.Model, tree: ArrayTree) -> dict:
    """The leaves by path."""
    del model
    return leaves_by_path(tree)


def from_named(model: models.Model, arrays: dict[str, np.ndarray], *, like: ArrayTree) -> ArrayTree:
    """The tree of named leaves."""
    del model
    return jax.tree_util.tree_map_with_path(lambda path, _: jax.numpy.asarray(arrays[path_name(path)]), like)
