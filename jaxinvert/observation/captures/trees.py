"""A tree of tensors from a file, in the structure, shapes and types of a known one: parameters, or an update."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from jaxinvert.observation.captures.files import open_tensors
from jaxinvert.observation.captures.stored import DTYPES, Stored, convert
from jaxinvert.trees import path_name
from jaxinvert.types import ArrayTree

_COLLECTION = "params/"
_MANY, _MAX_SHOWN = 4, 240


def load_tree(path: Path, like: ArrayTree, *, what: str = "update", may_lack: Sequence[str] = ()) -> ArrayTree:
    """Reads the tensors of a safetensors, npz or Flax msgpack file into the tree, shapes and types of `like`.

    The format is told by the content. A tensor is named by its path, `params/conv1/kernel`; "." may stand for "/",
    and `params/` in front may be missing. Shapes and types are those of the headers until all of them fit `like`, so
    that a file costs no more memory than two trees like `like`, one of them in float64, beside its table of contents,
    whose length is limited.

    | in the file | becomes |
    | --- | --- |
    | float16, bfloat16, float32, float64 | the float type of `like`, rounded; refused if too large for it |
    | bfloat16 in npz | the same: NumPy writes it as void of two bytes, and these are taken for it |
    | integers, for an integer leaf of `like` | that integer type; refused if it cannot hold them |
    | NaN, inf; booleans, complex numbers, text, objects; integers for floats | refused |

    A square matrix in the wrong orientation cannot be told from one in the right one.

    Args:
      path: the file.
      like: arrays or `jax.ShapeDtypeStruct`, such as `jax.eval_shape(model.init, key)`.
      what: the file should hold, for messages.
      may_lack: top-level keys of `like`, such as "batch_stats", that the file may leave out as a whole: zeros then.

    Returns:
      A tree like `like` of finite arrays.

    Raises:
      FileNotFoundError: if there is no such file.
      ValueError: if it is damaged, of another format, or does not hold this tree; the message names the file, the
        first tensors concerned, what they are and what was expected.
    """
    expected = {
        path_name(key_path): jax.ShapeDtypeStruct(leaf.shape, jax.dtypes.canonicalize_dtype(leaf.dtype))
        for key_path, leaf in jax.tree_util.tree_leaves_with_path(like)
    }
    with open_tensors(path, what=what) as tensors:
        stored = _by_leaf(tensors, expected)
        absent = {
            name
            for name in expected.keys() - stored.keys()
            if (top := name.split("/")[0]) in may_lack and not any(found.startswith(f"{top}/") for found in stored)
        }
        if missing := sorted(expected.keys() - stored.keys() - absent):
            others = f"it has {_some(sorted(tensors))}" if tensors else "it is empty"
            raise ValueError(f"it lacks {_some(missing)}: {others}; name tensors by their path in the variables")
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


def _by_leaf(tensors: Mapping[str, Stored], leaves: Iterable[str]) -> dict[str, Stored]:
    """The tensors under the names of the leaves that they are meant for.

    Raises:
      ValueError: if there are none such for some of them, or two for one leaf.
    """
    spelled = {spelling: leaf for leaf in leaves for spelling in _other_spellings(leaf)}
    spelled |= {leaf: leaf for leaf in leaves}
    if extra := sorted(tensors.keys() - spelled.keys()):
        torch = any(name.endswith((".weight", "/weight")) for name in extra)
        hint = "; PyTorch's names and layouts must be converted first, see the README" if torch else ""
        raise ValueError(f"it has {_some(extra)}, expected only {_some(sorted(leaves))}{hint}")
    by_leaf: dict[str, str] = {}
    for name in tensors:
        if (other := by_leaf.setdefault(spelled[name], name)) != name:
            raise ValueError(f"it has both {other} and {name}, which are one tensor of the model")
    return {leaf: tensors[name] for leaf, name in by_leaf.items()}


def _other_spellings(leaf: str) -> set[str]:
    """Names that a leaf may have in a file beside its own."""
    shorter = leaf.removeprefix(_COLLECTION)
    return {shorter, leaf.replace("/", "."), shorter.replace("/", ".")}


def _wrong_shape(found: tuple[int, ...], expected: tuple[int, ...]) -> str | None:
    if found == expected:
        return None
    permuted = len(found) > 1 and sorted(found) == sorted(expected)
    hint = ": its axes are permuted (dense kernels are [out, in] and convolutions OIHW in PyTorch, [in, out] and HWIO"
    return f"has shape {_shape(found)}, expected {_shape(expected)}{hint + ' here)' if permuted else ''}"


def _shape(shape: tuple[int, ...]) -> str:
    """A shape as text; a forged one may have any number of axes."""
    return str(shape) if len(shape) <= 8 else f"of {len(shape)} axes"


def _wrong_type(found: str, expected: np.dtype) -> str | None:
    floating = jnp.issubdtype(expected, jnp.floating)
    is_right = found in DTYPES and jnp.issubdtype(DTYPES[found], jnp.floating if floating else jnp.integer)
    if is_right and (floating or jnp.issubdtype(expected, jnp.integer)):
        return None
    kind = "a float type" if floating else "an integer type"
    return f"is {found}, expected {expected} or {kind} to cast from"


def _refuse(faults: Mapping[str, str | None]) -> None:
    """Raises ValueError with the first tensors that have a fault, and how many more do."""
    if found := [f"{name} {fault}" for name, fault in sorted(faults.items()) if fault]:
        raise ValueError(_some(found, separator="; "))


def _some(items: Sequence[str], *, separator: str = ", ") -> str:
    """The first few, cut to a readable length, and how many more."""
    shown = [item if len(item) <= _MAX_SHOWN else f"{item[:_MAX_SHOWN]}..." for item in items[:_MANY]]
    return separator.join(shown) + (f" and {len(items) - _MANY} more" if len(items) > _MANY else "")
