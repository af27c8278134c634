"""Checkpoints: saves and loads a model's parameters as a safetensors file.

Tensors are named by their path, `params/head/kernel`. Metadata ("facts") hold, for example, the model's name and the
normalization it was trained with. An untrusted file is checked before a tensor is read: names, shapes and types
against the model's own, then every value for finiteness.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
from safetensors import numpy as safetensors_numpy

from jaxinvert.files import write_atomically
from jaxinvert.trees import first_few, leaves_by_path, path_name
from jaxinvert.types import ArrayTree

_FACTS = "jaxinvert"


def save_checkpoint(path: Path, tree: ArrayTree, facts: Mapping[str, Any]) -> None:
    """Writes `tree` and `facts` atomically.

    Args:
      path: such as `lenet.safetensors`.
      tree: nested dictionaries of arrays, such as a model's parameters.
      facts: JSON-serializable metadata.
    """
    tensors = {name: np.array(leaf, order="C") for name, leaf in leaves_by_path(tree).items()}
    content = safetensors_numpy.save(tensors, metadata={_FACTS: json.dumps(dict(facts))})
    write_atomically(path, lambda file: file.write(content))


def load_checkpoint(path: Path, like: ArrayTree) -> ArrayTree:
    """Reads a checkpoint into a tree with the structure, shapes and dtypes of `like`.

    Args:
      path: the file.
      like: arrays or `jax.ShapeDtypeStruct`, such as `jax.eval_shape(model.init, key)`.

    Raises:
      ValueError: if the file is no complete safetensors file, holds other tensors than `like`, another shape,
        integers for floats, or a value that is not finite; the message names the tensor.
      FileNotFoundError: if the file does not exist.
    """
    expected = leaves_by_path(like)
    with _open(path) as file:
        found = set(file.keys())
        if missing := sorted(expected.keys() - found):
            raise ValueError(f"{path} does not hold this model: it lacks {first_few(missing)}")
        if unknown := sorted(found - expected.keys()):
            raise ValueError(f"{path} does not hold this model: it also has {first_few(unknown)}")
        for name, leaf in expected.items():
            if (shape := tuple(file.get_slice(name).get_shape())) != leaf.shape:
                raise ValueError(f"{path} does not hold this model: {name} has shape {shape}, expected {leaf.shape}")
        tensors = {name: _checked(path, name, file.get_tensor(name), leaf.dtype) for name, leaf in expected.items()}
    leaves = jax.tree_util.tree_map_with_path(lambda key_path, leaf: tensors[path_name(key_path)], like)
    return jax.tree.map(jnp.asarray, leaves)


def read_facts(path: Path) -> dict[str, Any]:
    """Reads the facts that `save_checkpoint` wrote; `{}` for other safetensors files.

    Some facts have a fixed type: `model` is a string, `num_classes` an integer, `mean` and `std` are lists of
    numbers.

    Raises:
      ValueError: if the file is no complete safetensors file, or a fact has the wrong type.
      FileNotFoundError: if the file does not exist.
    """
    with _open(path) as file:
        text = (file.metadata() or {}).get(_FACTS, "{}")
    try:
        facts = json.loads(text)
    except json.JSONDecodeError:
        facts = None
    if not isinstance(facts, dict):
        raise ValueError(f"{path} is damaged: its facts are no JSON object")
    for name, is_right in _KINDS.items():
        if name in facts and not is_right(facts[name]):
            raise ValueError(f"{path} is damaged: its fact {name} is {facts[name]!r}")
    return facts


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


_KINDS: dict[str, Callable[[Any], bool]] = {
    "model": lambda value: isinstance(value, str),
    "num_classes": lambda value: isinstance(value, int) and not isinstance(value, bool),
    "mean": lambda value: isinstance(value, list) and all(map(_is_number, value)),
    "std": lambda value: isinstance(value, list) and all(map(_is_number, value)),
}


def _open(path: Path) -> Any:
    if not Path(path).is_file():
        raise FileNotFoundError(f"no checkpoint at {path}")
    try:
        return safetensors.safe_open(path, framework="numpy")
    except (safetensors.SafetensorError, OSError) as error:
        raise ValueError(f"{path} is not a whole safetensors file: {error}") from error


def _checked(path: Path, name: str, tensor: np.ndarray, dtype: np.dtype) -> np.ndarray:
    kinds = "fV" if jnp.issubdtype(dtype, jnp.floating) else "iu"  # NumPy gives bfloat16 the kind V
    if tensor.dtype.kind not in kinds:
        raise ValueError(f"{path}: {name} is {tensor.dtype}, expected {dtype}")
    with np.errstate(over="ignore"):
        tensor = tensor.astype(dtype)
    if not np.all(np.isfinite(tensor)):
        raise ValueError(f"{path}: {name} holds values that are not finite")
    return tensor
