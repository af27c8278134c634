"""A tensor in a file that is not trusted: what its header claims, and how to read it once that was checked."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

MAX_TENSORS = 20_000
"""A file with more tensors is refused while they are listed."""
MAX_HEADER_BYTES = 4 << 20
"""A table of contents longer than this is refused before it is read."""

_INTEGERS = tuple(f"{sign}int{bits}" for bits in (8, 16, 32, 64) for sign in ("", "u"))
DTYPES: dict[str, np.dtype] = {
    **{name: np.dtype(name) for name in ("float16", "float32", "float64", *_INTEGERS)},
    "bfloat16": np.dtype(jnp.bfloat16),
}
"""The types that can be read, by name; all others are only known by name."""


class Stored(NamedTuple):
    """One tensor of an open file.

    Attributes:
      dtype: its name; one outside of `DTYPES` cannot be read.
      shape: as its header says, `()` to any length.
      read: reads it, as NumPy array of this type and shape; raises ValueError if the file does not hold as much.
    """

    dtype: str
    shape: tuple[int, ...]
    read: Callable[[], np.ndarray]


def convert(values: np.ndarray, dtype: Any) -> np.ndarray:
    """Casts finite floats to a float type that holds them, rounding, or integers to an integer type, exactly.

    Raises:
      ValueError: for values that are not finite, or that `dtype` does not hold; the message begins with "holds".
    """
    if not jnp.issubdtype(dtype, jnp.floating):
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
