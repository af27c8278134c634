"""Reads images from a file: the client's true batch, or candidate images to search for matches."""

import math
from collections.abc import Mapping
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from jaxinvert.observation.observe import check_batch
from jaxinvert.readers.stored import DTYPES, Stored, convert
from jaxinvert.readers.tensor_files import open_tensors
from jaxinvert.types import Array, Batch, Shape

MAX_BYTES = 1 << 30
"""Arrays that need more bytes than this in float32 are rejected before they are read."""


def load_batch(path: Path, input_shape: Shape, num_classes: int, *, task: str | None = None) -> Batch:
    """Reads a client's true examples from the arrays `inputs` and `labels` of an npz file.

    Other arrays are ignored. The other formats of `load_tree` also work.

    Args:
      path: the file.
      input_shape: the model's `(H, W, C)`.
      num_classes: `K`, the number of label values; see `models.num_labels`.
      task: the model's, see `models.tasks`; by default integer classes.

    Returns:
      `inputs [B, H, W, C]` float32 in [0, 1], from floats in [0, 1] or from uint8 divided by 255; `labels [B]` int32
      in [0, K), or float32 in the form of the task.

    Raises:
      FileNotFoundError: if the file does not exist.
      ValueError: if the file is damaged, lacks an array, or an array has the wrong type, shape or range; the message
        names the file.
    """
    with open_tensors(path, what="true images") as tensors:
        stored = _find(tensors, "labels")
        if task is None and not (len(stored.shape) == 1 and _is(stored, jnp.integer)):
            raise ValueError(f"labels are {stored.dtype} {stored.shape}, expected integers (B,)")
        inputs = _inputs(tensors, input_shape)
        if stored.shape[:1] != (len(inputs),):
            raise ValueError(f"there are {stored.shape[0]} labels for {len(inputs)} inputs")
        batch = Batch(jnp.asarray(inputs), jnp.asarray(_labels(stored)))
        check_batch(batch, input_shape=tuple(input_shape), num_classes=num_classes, task=task)
        return batch


def load_labels(path: Path) -> np.ndarray:
    """Reads the labels of a file of true examples, in any form that `models.tasks` knows.

    Raises:
      FileNotFoundError, ValueError: see `load_batch`.
    """
    with open_tensors(path, what="true images") as tensors:
        return _labels(_find(tensors, "labels"))


def _labels(stored: Stored) -> np.ndarray:
    """`[B]` int32, or `[B]` or `[B, K]` float32; integers `[B, K]` are several labels per example."""
    if len(stored.shape) not in (1, 2) or not (_is(stored, jnp.integer) or _is(stored, jnp.floating)):
        raise ValueError(f"labels are {stored.dtype} {stored.shape}, expected integers (B,) or floats (B, K)")
    if (num_bytes := 4 * math.prod(stored.shape)) > MAX_BYTES:
        raise ValueError(f"labels of shape {stored.shape} are {num_bytes:,} bytes, the limit is {MAX_BYTES:,}")
    values = stored.read()
    whole = _is(stored, jnp.integer)
    try:
        if whole and values.ndim == 1:
            return convert(values, np.int32)
        return convert(values.astype(np.float64) if whole else values, np.float32)
    except ValueError as error:
        raise ValueError(f"the array labels {error}") from error


def load_images(path: Path, input_shape: Shape) -> Array:
    """Reads candidate images, which may or may not be in the client's batch, from the array `inputs` of an npz file.

    Args:
      path: the file; other arrays are ignored.
      input_shape: the model's `(H, W, C)`.

    Returns:
      `[N, H, W, C]` float32 in [0, 1], from floats in [0, 1] or from uint8 divided by 255.

    Raises:
      FileNotFoundError: if the file does not exist.
      ValueError: see `load_batch`.
    """
    with open_tensors(path, what="candidate images") as tensors:
        return jnp.asarray(_inputs(tensors, input_shape))


def num_labels(path: Path) -> int:
    """The number of labels in a file of true examples, from its header.

    Raises:
      FileNotFoundError, ValueError: see `load_batch`.
    """
    with open_tensors(path, what="true images") as tensors:
        shape = _find(tensors, "labels").shape
        if not shape or shape[0] < 1:
            raise ValueError(f"labels have shape {shape}, expected one per example")
        return shape[0]


def _inputs(tensors: Mapping[str, Stored], input_shape: Shape) -> np.ndarray:
    stored, shape = _find(tensors, "inputs"), tuple(input_shape)
    if stored.shape[1:] != shape or stored.shape[0] == 0:
        permuted = sorted(stored.shape[1:]) == sorted(shape)
        hint = "; images are [H, W, C] here, with the channel last" if permuted else ""
        raise ValueError(f"inputs have shape {stored.shape}, expected (N, {', '.join(map(str, shape))}){hint}")
    if stored.dtype != "uint8" and not _is(stored, jnp.floating):
        raise ValueError(f"inputs are {stored.dtype}, expected floats in [0, 1] or uint8")
    if (num_bytes := 4 * math.prod(stored.shape)) > MAX_BYTES:
        raise ValueError(f"inputs of shape {stored.shape} are {num_bytes:,} bytes, the limit is {MAX_BYTES:,}")
    values = stored.read()
    if stored.dtype == "uint8":
        return np.divide(values, np.float32(255), dtype=np.float32)
    try:
        inputs = convert(values, np.float32)
    except ValueError as error:
        raise ValueError(f"the array inputs {error}") from error
    if inputs.min() < 0 or inputs.max() > 1:
        raise ValueError(f"inputs range over [{inputs.min():g}, {inputs.max():g}], expected [0, 1]")
    return inputs


def _find(tensors: Mapping[str, Stored], name: str) -> Stored:
    if name not in tensors:
        raise ValueError(f"it has no array {name!r}, only {', '.join(sorted(tensors)[:4]) or 'nothing'}")
    return tensors[name]


def _is(stored: Stored, kind: type) -> bool:
    return stored.dtype in DTYPES and bool(jnp.issubdtype(DTYPES[stored.dtype], kind))
