"""Opens safetensors, npz and Flax msgpack files; the format is detected from the first bytes, not the file name."""

import contextlib
import struct
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
import safetensors

from jaxinvert.readers.json_files import printable
from jaxinvert.readers.msgpack_files import list_msgpack
from jaxinvert.readers.npz_files import list_npz
from jaxinvert.readers.safetensors_files import list_safetensors, read_metadata
from jaxinvert.readers.stored import DTYPES, Stored, convert

FORMATS = ("safetensors", "npz", "Flax msgpack")
_DAMAGE = (
    *(ValueError, EOFError, MemoryError, NotImplementedError, OSError, OverflowError, struct.error),
    *(zipfile.BadZipFile, zipfile.LargeZipFile, zlib.error, safetensors.SafetensorError),
)
"""Exceptions that the readers raise on damaged input."""


@contextlib.contextmanager
def open_tensors(
    path: Path, *, what: str, formats: Sequence[str] = FORMATS, max_bytes: int | None = None
) -> Iterator[dict[str, Stored]]:
    """Opens a safetensors, npz or Flax msgpack file and lists its tensors by name, without reading them.

    Args:
      path: the file.
      what: the expected content, for messages.
      formats: those of `FORMATS` that are accepted.
      max_bytes: limit on the bytes of all tensors together, compressed or not.

    Raises:
      FileNotFoundError: if the file does not exist.
      ValueError: if the file has another format, is damaged, or cannot be listed in bounded memory; also if the body
        of the `with` statement raises one. All messages name `what` and the file.
    """
    with _opened(path, what) as file, contextlib.ExitStack() as stack:
        tensors = _list(Path(path), file, stack, formats)
        total = sum(tensor.num_bytes for tensor in tensors.values())
        if max_bytes is not None and total > max_bytes:
            raise ValueError(f"it expands to {total:,} bytes, the limit is {max_bytes:,}")
        yield tensors


def safetensors_metadata(path: Path, *, what: str) -> dict[str, str]:
    """The metadata of a safetensors file, text by name; empty if it has none.

    Raises:
      FileNotFoundError, ValueError: see `open_tensors`.
    """
    with open_tensors(path, what=what, formats=("safetensors",)):
        pass  # the whole file is checked
    with _opened(path, what) as file:
        return read_metadata(file)


def read_arrays(path: Path, *, what: str, max_bytes: int) -> dict[str, np.ndarray]:
    """Reads all arrays of an npz file of numbers, booleans and text; never unpickles.

    Raises:
      FileNotFoundError, ValueError: see `open_tensors`.
    """
    with open_tensors(path, what=what, formats=("npz",), max_bytes=max_bytes) as tensors:
        return {name: tensor.read() for name, tensor in tensors.items()}


def read_floats(path: Path, *, what: str, max_bytes: int) -> dict[str, np.ndarray]:
    """Reads all float tensors of a file of any format, by name, as float32; integers, booleans and text are left out.

    Raises:
      FileNotFoundError, ValueError: see `open_tensors`; also for values that are not finite, and for a file without a
        float tensor.
    """
    found = {}
    with open_tensors(path, what=what, max_bytes=max_bytes) as tensors:
        for name, tensor in tensors.items():
            if tensor.dtype in DTYPES and DTYPES[tensor.dtype].kind in "fV":
                try:
                    found[name] = convert(tensor.read(), np.float32)
                except ValueError as error:
                    raise ValueError(f"{printable(name)} {error}") from error
        if not found:
            raise ValueError("it holds no tensor of floats")
    return found


@contextlib.contextmanager
def _opened(path: Path, what: str) -> Iterator[BinaryIO]:
    """Opens a regular file; what damage raises becomes a ValueError that names `what` and the file."""
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"no {what} at {path}")
    try:
        if not path.is_file():
            raise ValueError("it is not a regular file")
        with open(path, "rb") as file:
            yield file
    except _DAMAGE as error:
        raise ValueError(f"cannot read the {what} {path}: {printable(str(error))}") from error


def _list(path: Path, file: BinaryIO, stack: contextlib.ExitStack, formats: Sequence[str]) -> dict[str, Stored]:
    start = file.read(9)
    file.seek(0)
    expected = ", ".join(formats[:-1]) + " or " * (len(formats) > 1) + formats[-1]
    header = start[8:] == b"{" and "safetensors" in formats
    if header and not any(start[4:8]):  # first: the length of this header may begin like any other format
        return list_safetensors(path, file, stack)
    if start[:1] == b"\x80" and start[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        raise ValueError(f"it is a pickle, which would run code; write {expected}")
    if start[:4] in (b"PK\x03\x04", b"PK\x05\x06") and "npz" in formats:
        return list_npz(file)
    if header:  # of a length that is not possible
        return list_safetensors(path, file, stack)
    if start and (start[0] & 0xF0 == 0x80 or start[0] in (0xDE, 0xDF)) and "Flax msgpack" in formats:
        return list_msgpack(file)
    raise ValueError(f"it is no {expected} file: it begins with {start!r}")
