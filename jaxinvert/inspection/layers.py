"""The layers of a network as units: a weight vector and, where there is one, a threshold for each.

The weights of a unit are a column of a kernel `[..., in, out]` (Flax), or a row of a weight `[out, in, ...]`
(PyTorch). Of a file without a network only names and shapes tell which it is; where they do not, both are read.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from jaxinvert.trees import is_float


class Layer(NamedTuple):
    """One layer.

    Attributes:
      name: path of its weights.
      rows: `[U, D]` float32, the weights of each of `U` units; a convolution's taps and channels are its inputs.
      bias: `[U]`, or `None`.
      is_dense: whether it is no convolution.
    """

    name: str
    rows: np.ndarray
    bias: np.ndarray | None
    is_dense: bool


def layers_of(arrays: Mapping[str, np.ndarray]) -> list[Layer]:
    """All layers with at least two units among tensors by name.

    A bias is the tensor called "bias" beside "kernel" or "weight". Other tensors are layers only if a tensor with one
    axis follows them, or goes before them, that has an entry for each unit (`arr_0`, `arr_1` ...). The bias says
    which axis is that of the units, should that not be the usual one.
    """
    floats = {name: np.asarray(one, np.float32) for name, one in arrays.items() if is_float(one)}
    layers = []
    for name, values in floats.items():
        if values.ndim < 2 or not values.size or is_table(name):
            continue
        kind = _kind(name)
        bias = floats.get(f"{name[: -len(kind)]}bias") if kind else _neighbor(name, floats)
        if bias is None and kind is None:
            continue
        usual = kind == "kernel"
        for last in (usual, not usual):
            rows = _rows(values, last)
            if len(rows) > 1 and (bias is None or bias.shape == (len(rows),)):
                layers.append(Layer(name, rows, bias, values.ndim == 2))
                if kind is not None:
                    break
    return layers


def is_table(name: str) -> bool:
    """Whether a tensor belongs to a layer of embeddings by its own name: rows of a table are no units.

    >>> [is_table(name) for name in ("embed.weight", "patch_embed.proj.weight", "embed/fc/kernel")]
    [True, False, False]
    """
    parts = name.replace(".", "/").split("/")
    return "embed" in (parts[-1] if _kind(name) is None or len(parts) == 1 else parts[-2]).lower()


def _kind(name: str) -> str | None:
    """What the last part of a name says: "kernel", "weight", or nothing."""
    last = name.replace(".", "/").rpartition("/")[2]
    return last if last in ("kernel", "weight") else None


def _rows(values: np.ndarray, last: bool) -> np.ndarray:
    """The weights of each unit, whose axis is the last or the first one."""
    return values.reshape(-1, values.shape[-1]).T if last else values.reshape(len(values), -1)


def _neighbor(name: str, arrays: Mapping[str, np.ndarray]) -> np.ndarray | None:
    """The tensor with one axis right after or right before this one that fits one of its outer axes."""
    names = [*arrays]
    at, shape = names.index(name), arrays[name].shape
    for other in names[at + 1 : at + 2] + names[max(at - 1, 0) : at]:
        if arrays[other].ndim == 1 and len(arrays[other]) in (shape[0], shape[-1]):
            return arrays[other]
    return None
