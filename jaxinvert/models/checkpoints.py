"""Checkpoints: saves and loads a model's parameters as a safetensors file.

Tensors are named by their path, `params/head/kernel`. Metadata ("facts") hold, for example, the model's name and the
normalization it was trained with. An untrusted file is checked before a tensor is read: names, shapes and types
against the model's own, then every value for finiteness.
"""

import json
import reprlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import numpy as safetensors_numpy

from jaxinvert.files import plain, write_atomically
from jaxinvert.models.model import MAX_NORMALIZATION
from jaxinvert.readers.json_files import parse_json, printable
from jaxinvert.readers.limits import MAX_CLASSES
from jaxinvert.readers.tensor_files import safetensors_metadata
from jaxinvert.readers.trees import load_tree
from jaxinvert.trees import leaves_by_path
from jaxinvert.types import ArrayTree

_FACTS = "jaxinvert"


def save_checkpoint(path: Path, tree: ArrayTree, facts: Mapping[str, Any]) -> None:
    """Writes `tree` and `facts` atomically.

    Args:
      path: such as `lenet.safetensors`.
      tree: nested dictionaries of arrays, such as a model's parameters.
      facts: JSON-serializable metadata; non-finite numbers become `null`.
    """
    tensors = {name: np.array(leaf, order="C") for name, leaf in leaves_by_path(tree).items()}
    content = safetensors_numpy.save(tensors, metadata={_FACTS: json.dumps(plain(facts), allow_nan=False)})
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
    return load_tree(path, like, what="checkpoint", formats=("safetensors",))


def read_facts(path: Path) -> dict[str, Any]:
    """Reads the facts that `save_checkpoint` wrote; `{}` for other safetensors files.

    Some facts have a fixed type: `model` is a string, `num_classes` an integer, `mean` and `std` are lists of
    numbers, of pixels in [0, 1].

    Raises:
      ValueError: if the file is no complete safetensors file, or a fact has the wrong type or range.
      FileNotFoundError: if the file does not exist.
    """
    text = safetensors_metadata(path, what="checkpoint").get(_FACTS, "{}")
    try:
        facts = parse_json(text)
    except ValueError as error:
        raise ValueError(f"{path} is damaged: its facts cannot be read: {printable(str(error))}") from error
    if not isinstance(facts, dict):
        raise ValueError(f"{path} is damaged: its facts are no JSON object")
    for name, (is_right, expected) in _KINDS.items():
        if name in facts and not is_right(facts[name]):
            shown = printable(reprlib.repr(facts[name]))
            raise ValueError(f"{path} is damaged: its fact {name} is {shown}, expected {expected}")
    return facts


def _are_numbers(value: Any, within: Callable[[float], bool]) -> bool:
    return isinstance(value, list) and all(type(each) in (int, float) and within(each) for each in value)


_KINDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "model": (lambda value: isinstance(value, str), "text"),
    "num_classes": (
        lambda value: type(value) is int and 1 <= value <= MAX_CLASSES,
        f"a whole number from 1 to {MAX_CLASSES:,}",
    ),
    "mean": (
        lambda value: _are_numbers(value, lambda mean: abs(mean) <= MAX_NORMALIZATION),
        f"a list of numbers of at most {MAX_NORMALIZATION:g}",
    ),
    "std": (
        lambda value: _are_numbers(value, lambda std: 1 / MAX_NORMALIZATION <= std <= MAX_NORMALIZATION),
        f"a list of numbers from {1 / MAX_NORMALIZATION:g} to {MAX_NORMALIZATION:g}",
    ),
}
"""Fact -> whether a value is right, and what is expected."""
