"""Reads a model's tensors from a file under the names and layouts of the model's own library."""

from collections.abc import Sequence
from pathlib import Path

import jax.numpy as jnp

from jaxinvert import models
from jaxinvert.readers.trees import load_tree
from jaxinvert.types import ArrayTree


def load_for_model(
    path: Path, model: models.Model, *, what: str = "update", may_lack: Sequence[str] = (), partial: bool = False
) -> ArrayTree:
    """Reads parameters, or an update, of a model.

    Args:
      path: safetensors, npz or Flax msgpack; a PyTorch `state_dict` keeps PyTorch's names and layouts.
      model: the clients' network.
      what: the expected content, for messages.
      may_lack: see `load_tree`.
      partial: see `load_tree`.

    Returns:
      A tree of finite arrays with the structure of `model.init`'s result.

    Raises:
      FileNotFoundError, ValueError: see `load_tree`.
    """
    shapes = models.named_shapes(model)
    order = [tensor.name for tensor in model.tensors] if model.tensors else [*shapes]
    found = load_tree(path, shapes, what=what, may_lack=may_lack, partial=partial, order=order)
    if not partial:
        return models.from_named(model, found)
    # Of tied tensors, which are one leaf, the file may hold any.
    sent = {name: value for name, value in found.items() if bool(jnp.any(value != 0))}
    return models.from_named(model, sent, may_lack=True)
