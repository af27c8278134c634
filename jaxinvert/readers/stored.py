"""`Stored`, a tensor in an untrusted file: dtype and shape from its header, and a function that reads its values."""

from collections.abc import Callable
from typing import Any, NamedTuple

import ml_dtypes  # a part of JAX that needs NumPy only
import numpy as np

_INTEGERS = tuple(f"{sign}int{bits}" for bits in (8, 16, 32, 64) for sign in ("", "u"))
DTYPES: dict[str, np.dtype] = {
    **{name: np.dtype(name) for name in ("float16", "float32", "float64", *_INTEGERS)},
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}
"""The dtypes that can be read, by name."""


class Stored(NamedTuple):
    """One tensor of an open file.

    Attributes:
      dtype: name of the dtype; a tensor whose dtype is not in `DTYPES` cannot be read.
      shape: shape in the header, with any number of axes.
      num_bytes: size of its values in memory.
      read: returns a NumPy array of this dtype and shape; raises ValueError if the file holds fewer bytes.
    """

    dtype: str
    shape: tuple[int, ...]
    num_bytes: int
    read: Callable[[], np.ndarray]


def convert(values: np.ndarray, dtype: Any) -> np.ndarray:
    """Casts finite floats to a float dtype, with rounding, or integers to an integer dtype, exactly.

    Raises:
      ValueError: for values that are not finite, or outside the range of `dtype`; the message begins with "holds".
    """
    if np.dtype(dtype).kind not in "fV":  # NumPy gives bfloat16 the kind of unknown bytes
        exact = values.astype(dtype)
        if np.any(wrong := exact != values):
            raise ValueError(f"holds {values[wrong][0]}, which {np.dtype(dtype)} cannot hold")
        return exact
    if not np.all(finite := np.isfinite(values)):
        raise ValueError(f"holds {np.sum(~finite):,} values that are not finite, such as {values[~finite][0]}")
    with np.errstate(over="ignore"):
        rounded = values.astype(dtype)
    if not np.all(held := np.isfinite(rounded)):
        raise ValueError(f"holds {float(values[~held][0]):g}, which {np.dtype(dtype)} cannot hold")
    return rounded
