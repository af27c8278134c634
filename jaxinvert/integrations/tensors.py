"""Tensors of any library as NumPy arrays by name."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

Arrays = Mapping[str, Any] | Sequence[Any]
"""Tensors by name, nested or not, or a list in the order of the library; arrays of NumPy, JAX or PyTorch."""


def named(arrays: Arrays, *, what: str) -> dict[str, np.ndarray]:
    """Tensors by path: nested mappings, such as Flax's, are joined by "/"; a list is named `arr_0`, `arr_1` ...

    Args:
      arrays: the tensors.
      what: they are, for messages.

    Raises:
      ValueError: for tensors of other than numbers.
    """
    by_name = arrays if isinstance(arrays, Mapping) else {f"arr_{i}": each for i, each in enumerate(arrays)}
    tensors = {key: as_numpy(value) for key, value in _flat(by_name).items()}
    if strange := [key for key, value in tensors.items() if value.dtype.kind not in "biufV"]:
        raise ValueError(f"{what}: {strange[0]} holds {tensors[strange[0]].dtype}, expected numbers")
    return tensors


def as_numpy(value: Any) -> np.ndarray:
    """An array of any library as a contiguous NumPy array; bfloat16 of PyTorch, which NumPy lacks, as float32."""
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        value = (value.float() if str(value.dtype) == "torch.bfloat16" else value).numpy()
    return np.array(value, order="C")


def _flat(by_name: Mapping[Any, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in by_name.items():
        found |= _flat(value, f"{prefix}{key}/") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return found
