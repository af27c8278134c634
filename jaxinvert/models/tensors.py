"""Names and layouts: the tensors of another library's files, and the leaves of our tree that hold the same values.

In memory, all networks have Flax's layout, because the speed of attacks depends on it: dense kernels `[M, K]`,
convolution kernels `[*spatial, I, O]`, and dense layers that read flattened pixels have rows in the order (h, w, c).
Files keep the library's own names and layouts, for example those of a PyTorch `state_dict`. `to_named` and
`from_named` convert between the two; both are exact.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxinvert.models.model import Model
from jaxinvert.trees import first_few, leaves_by_path, path_name
from jaxinvert.types import ArrayTree

Layout = Literal["same", "dense", "conv", "pixels"]
"""How a file lays out a tensor: as we do; `[K, M]`; `[O, I, *spatial]`; `[K, C * H * W]`, a dense layer on pixels."""


class Tensor(NamedTuple):
    """One tensor of a library's file, and the leaf that holds its values.

    Attributes:
      name: in the file, such as "conv1.weight".
      path: of the leaf, such as "params/conv1/kernel"; tied tensors have one leaf under several names.
      layout: of the tensor in the file.
      pixels: `(H, W, C)` of the flattened images that the layer reads, for layout "pixels".
    """

    name: str
    path: str
    layout: Layout = "same"
    pixels: tuple[int, int, int] | None = None


def to_leaf(tensor: Tensor, value: Any) -> Any:
    """Converts a tensor in the file's layout to ours; `value` is a NumPy or JAX array."""
    if tensor.layout == "dense":
        return value.T
    if tensor.layout == "conv":
        return value.transpose(*range(2, value.ndim), 1, 0)
    if tensor.layout == "pixels" and tensor.pixels is not None:
        height, width, channels = tensor.pixels
        return value.reshape(-1, channels, height, width).transpose(2, 3, 1, 0).reshape(-1, value.shape[0])
    return value


def to_tensor(tensor: Tensor, leaf: Any) -> Any:
    """Converts a leaf in our layout to the file's: the inverse of `to_leaf`."""
    if tensor.layout == "dense":
        return leaf.T
    if tensor.layout == "conv":
        return leaf.transpose(leaf.ndim - 1, leaf.ndim - 2, *range(leaf.ndim - 2))
    if tensor.layout == "pixels" and tensor.pixels is not None:
        return leaf.reshape(*tensor.pixels, -1).transpose(3, 2, 0, 1).reshape(leaf.shape[-1], -1)
    return leaf


def nested(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """Nested dictionaries from leaves by path, the inverse of `leaves_by_path` for string keys.

    >>> nested({"params/head/bias": 1, "params/head/kernel": 2})
    {'params': {'head': {'bias': 1, 'kernel': 2}}}
    """
    tree: dict[str, Any] = {}
    for path, leaf in leaves.items():
        *parents, last = path.split("/")
        node = tree
        for key in parents:
            node = node.setdefault(key, {})
        node[last] = leaf
    return tree


def leaves_from(tensors: Sequence[Tensor], values: Mapping[str, Any]) -> dict[str, Any]:
    """The leaves by path, from tensors by name; of tied tensors the first."""
    leaves: dict[str, Any] = {}
    for tensor in tensors:
        if tensor.name in values and tensor.path not in leaves:
            leaves[tensor.path] = to_leaf(tensor, values[tensor.name])
    return leaves


def tensors_from(tensors: Sequence[Tensor], tree: ArrayTree) -> dict[str, Any]:
    """The tensors by name, from a tree."""
    leaves = leaves_by_path(tree)
    return {tensor.name: to_tensor(tensor, leaves[tensor.path]) for tensor in tensors}


def to_named(model: Model, tree: ArrayTree) -> dict[str, np.ndarray]:
    """The tensors of a tree under the names and in the layouts of the model's library.

    Args:
      model: the network.
      tree: its parameters, or an update.

    Returns:
      Arrays by name: for PyTorch the `state_dict`; for Flax modules and functions the leaves by path.
    """
    if model.tensors is None:
        return {name: np.asarray(leaf) for name, leaf in leaves_by_path(tree).items()}
    return {name: np.asarray(value) for name, value in tensors_from(model.tensors, tree).items()}


def named_shapes(model: Model) -> dict[str, Any]:
    """Shape and dtype of every tensor in a file of the model's parameters, by name; computes nothing."""
    like = jax.eval_shape(model.init, jax.random.key(0))
    if model.tensors is None:
        return leaves_by_path(like)
    tensors = model.tensors
    return jax.eval_shape(lambda tree: tensors_from(tensors, tree), like)


def from_named(
    model: Model, arrays: Mapping[str, Any], *, like: ArrayTree | None = None, may_lack: bool = False
) -> ArrayTree:
    """The tree from tensors under the names and in the layouts of the model's library: the inverse of `to_named`.

    Args:
      model: the network.
      arrays: NumPy or JAX arrays by name.
      like: a tree with the structure, shapes and dtypes of the result; by default that of the model's parameters.
      may_lack: whether tensors may be missing, as in an update of a client that trains some layers only; their leaves
        become zeros.

    Returns:
      The tree. The leaves of integers are read as integers.

    Raises:
      ValueError: for a tensor that the model does not have, that is missing, or that has another shape.
    """
    like = jax.eval_shape(model.init, jax.random.key(0)) if like is None else like
    tensors = model.tensors or tuple(Tensor(path, path) for path in leaves_by_path(like))
    known = {tensor.name for tensor in tensors}
    if extra := sorted(arrays.keys() - known):
        raise ValueError(f"model {model.name} has no tensor {extra[0]!r}; it has {first_few(sorted(known))}")
    for name, wanted in jax.eval_shape(lambda tree: tensors_from(tensors, tree), like).items():
        if name in arrays and tuple(arrays[name].shape) != wanted.shape:
            raise ValueError(f"tensor {name!r} has shape {arrays[name].shape}, expected {wanted.shape}")
    leaves = leaves_from(tensors, arrays)
    if (missing := sorted(tensor.name for tensor in tensors if tensor.path not in leaves)) and not may_lack:
        raise ValueError(f"model {model.name} also has the tensors {first_few(missing)}, which are missing")

    def leaf_of(key_path: tuple, leaf: Any) -> Any:
        path = path_name(key_path)
        return jnp.asarray(leaves[path], leaf.dtype) if path in leaves else jnp.zeros(leaf.shape, leaf.dtype)

    return jax.tree_util.tree_map_with_path(leaf_of, like)
