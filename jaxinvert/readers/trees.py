"""Reads a tree of tensors (parameters or an update) from a file, with the structure and dtypes of a template."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from jaxinvert.readers.positional import by_position, is_positional
from jaxinvert.readers.stored import DTYPES, Stored, convert
from jaxinvert.readers.tensor_files import FORMATS, open_tensors
from jaxinvert.trees import first_few, path_name
from jaxinvert.types import ArrayTree

_COLLECTION = "params/"


def load_tree(
    path: Path,
    like: ArrayTree,
    *,
    what: str = "update",
    may_lack: Sequence[str] = (),
    partial: bool = False,
    order: Sequence[str] | None = None,
    formats: Sequence[str] = FORMATS,
) -> ArrayTree:
    """Reads a safetensors, npz or Flax msgpack file into a tree with the structure, shapes and dtypes of `like`.

    The format is detected from the content. A tensor is named by its path, `params/conv1/kernel`; "." may replace
    "/", and the prefix `params/` may be missing. All headers are checked against `like` before any tensor is read, so
    that a file needs no more memory than two trees like `like`, one of them in float64, plus its table of contents,
    whose length is limited.

    | in the file | becomes |
    | --- | --- |
    | float16, bfloat16, float32, float64 | the float dtype of `like`, rounded; rejected if out of range |
    | bfloat16 in npz | the same: NumPy writes it as two-byte void, which is read as bfloat16 |
    | integers, for an integer leaf of `like` | that integer dtype; rejected if out of range |
    | NaN, inf; booleans, complex numbers, text, objects; integers for floats | rejected |

    A transposed square matrix cannot be detected. Tensors without names (`arr_0`, `arr_1` ... of `np.savez`) are
    matched by order and shape, see `positional`.

    Args:
      path: the file.
      like: arrays or `jax.ShapeDtypeStruct`, such as `jax.eval_shape(model.init, key)`.
      what: the expected content, for messages.
      may_lack: top-level keys of `like`, such as "batch_stats", that the file may omit entirely; they become zeros.
      partial: whether any tensor may be missing, as in the update of a client that trains or sends some layers only;
        they become zeros.
      order: the paths in the order in which their library lists them, for tensors without names; by default that of
        the tree alone.
      formats: those of `tensor_files.FORMATS` that are accepted.

    Returns:
      A tree of finite arrays with the structure of `like`.

    Raises:
      FileNotFoundError: if the file does not exist.
      ValueError: if the file is damaged, has another format, or does not hold this tree; the message names the file,
        the first faulty tensors, their form and the expected one.
    """
    expected = {
        path_name(key_path): jax.ShapeDtypeStruct(leaf.shape, jax.dtypes.canonicalize_dtype(leaf.dtype))
        for key_path, leaf in jax.tree_util.tree_leaves_with_path(like)
    }
    with open_tensors(path, what=what, formats=formats) as tensors:
        stored = _by_leaf(tensors, expected) if not is_positional(tensors) else _in_order(tensors, expected, order)
        absent = {
            name
            for name in expected.keys() - stored.keys()
            if (partial and stored)
            or ((top := name.split("/")[0]) in may_lack and not any(found.startswith(f"{top}/") for found in stored))
        }
        if missing := sorted(expected.keys() - stored.keys() - absent):
            others = f"it has {first_few(sorted(tensors))}" if tensors else "it is empty"
            raise ValueError(f"it lacks {first_few(missing)}: {others}; name tensors by their path in the variables")
        _refuse({name: _wrong_shape(tensor.shape, expected[name].shape) for name, tensor in stored.items()})
        _refuse({name: _wrong_type(tensor.dtype, expected[name].dtype) for name, tensor in stored.items()})
        values = {name: np.zeros(expected[name].shape, expected[name].dtype) for name in absent}
        faults: dict[str, str | None] = {}
        for name, tensor in stored.items():
            content = tensor.read()
            try:
                values[name] = convert(content, expected[name].dtype)
            except ValueError as error:
                faults[name] = str(error)
        _refuse(faults)
    return jax.tree_util.tree_map_with_path(lambda key_path, _: jnp.asarray(values[path_name(key_path)]), like)


def _in_order(
    tensors: Mapping[str, Stored], expected: Mapping[str, jax.ShapeDtypeStruct], order: Sequence[str] | None
) -> dict[str, Stored]:
    """Gives tensors without names to the leaves; names like "0" may also be those of the leaves themselves."""
    if tensors.keys() == expected.keys():
        return dict(tensors)
    orders = {"the order of the library": order} if order is not None else {}
    orders["the alphabetical order of the names"] = [*expected]
    shapes = {name: tuple(leaf.shape) for name, leaf in expected.items()}
    return {leaf: tensors[name] for leaf, name in by_position(tensors, shapes, orders).items()}


def _by_leaf(tensors: Mapping[str, Stored], leaves: Iterable[str]) -> dict[str, Stored]:
    """Renames the tensors to the leaves they belong to.

    Raises:
      ValueError: if a tensor matches no leaf, or two tensors match one leaf.
    """
    spelled = {spelling: leaf for leaf in leaves for spelling in _other_spellings(leaf)}
    spelled |= {leaf: leaf for leaf in leaves}
    if extra := sorted(tensors.keys() - spelled.keys()):
        torch = any(name.endswith((".weight", "/weight")) for name in extra)
        hint = "; PyTorch's names and layouts must be converted first, see the README" if torch else ""
        raise ValueError(f"it has {first_few(extra)}, expected only {first_few(sorted(leaves))}{hint}")
    by_leaf: dict[str, str] = {}
    for name in tensors:
        if (other := by_leaf.setdefault(spelled[name], name)) != name:
            raise ValueError(f"it has both {other} and {name}, which are one tensor of the model")
    return {leaf: tensors[name] for leaf, name in by_leaf.items()}


def _other_spellings(leaf: str) -> set[str]:
    """Alternative names of a leaf in a file."""
    shorter = leaf.removeprefix(_COLLECTION)
    return {shorter, leaf.replace("/", "."), shorter.replace("/", ".")}


def _wrong_shape(found: tuple[int, ...], expected: tuple[int, ...]) -> str | None:
    if found == expected:
        return None
    permuted = len(found) > 1 and sorted(found) == sorted(expected)
    hint = ": its axes are permuted (dense kernels are [out, in] and convolutions OIHW in PyTorch, [in, out] and HWIO"
    return f"has shape {_shape(found)}, expected {_shape(expected)}{hint + ' here)' if permuted else ''}"


def _shape(shape: tuple[int, ...]) -> str:
    """Formats a shape briefly: a forged one may have any number of axes."""
    return str(shape) if len(shape) <= 8 else f"of {len(shape)} axes"


def _wrong_type(found: str, expected: np.dtype) -> str | None:
    floating = jnp.issubdtype(expected, jnp.floating)
    is_right = found in DTYPES and jnp.issubdtype(DTYPES[found], jnp.floating if floating else jnp.integer)
    if is_right and (floating or jnp.issubdtype(expected, jnp.integer)):
        return None
    kind = "a float type" if floating else "an integer type"
    return f"is {found}, expected {expected} or {kind} to cast from"


def _refuse(faults: Mapping[str, str | None]) -> None:
    """Raises ValueError if any tensor has a fault: names the first ones and the number of others."""
    if found := [f"{name} {fault}" for name, fault in sorted(faults.items()) if fault]:
        raise ValueError(first_few(found, separator="; "))
