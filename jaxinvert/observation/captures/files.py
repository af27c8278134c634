"""Opens safetensors, npz and Flax msgpack files; the format is detected from the first bytes, not the file name."""

import contextlib
import zipfile
import zlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import safetensors

from jaxinvert.observation.captures.msgpack_files import list_msgpack
from jaxinvert.observation.captures.npz_files import list_npz
from jaxinvert.observation.captures.stored import MAX_HEADER_BYTES, MAX_TENSORS, Stored

_DAMAGE = (
    *(ValueError, EOFError, MemoryError, NotImplementedError, OSError),
    *(zipfile.BadZipFile, zipfile.LargeZipFile, zlib.error, safetensors.SafetensorError),
)
"""Exceptions that the readers raise on damaged input."""


@contextlib.contextmanager
def open_tensors(path: Path, *, what: str) -> Iterator[dict[str, Stored]]:
    """Opens a safetensors, npz or Flax msgpack file and lists its tensors by name, without reading them.

    Args:
      path: the file.
      what: the expected content, for messages.

    Raises:
      FileNotFoundError: if the file does not exist.
      ValueError: if the file has another format, is damaged, or cannot be listed in bounded memory; also if the body
        of the `with` statement raises one. All messages name `what` and the file.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"no {what} at {path}")
    try:
        if not path.is_file():
            raise ValueError("it is not a regular file")
        with contextlib.ExitStack() as stack:
            yield _list(path, stack.enter_context(open(path, "rb")), stack)
    except _DAMAGE as error:
        raise ValueError(f"cannot read the {what} {path}: {_printable(str(error))}") from error


_MAX_MESSAGE = 1500


def _printable(message: str) -> str:
    """Escapes control characters in a message and limits its length: names in a hostile file may hold anything."""
    cut = message if len(message) <= _MAX_MESSAGE else f"{message[:_MAX_MESSAGE]}..."
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in cut)


def _list(path: Path, file: BinaryIO, stack: contextlib.ExitStack) -> dict[str, Stored]:
    start = file.read(9)
    file.seek(0)
    if start[:4] in (b"PK\x03\x04", b"PK\x05\x06"):
        return list_npz(file)
    if start[8:] == b"{":
        return _list_safetensors(path, int.from_bytes(start[:8], "little"), stack)
    if start[:1] == b"\x80" and start[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        raise ValueError("it is a pickle, which would run code; write safetensors, npz or Flax msgpack")
    if start and (start[0] & 0xF0 == 0x80 or start[0] in (0xDE, 0xDF)):
        return list_msgpack(file)
    raise ValueError(f"it is no safetensors, npz or Flax msgpack file: it begins with {start!r}")


_SAFETENSORS_TYPES = {
    **{"F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64", "BOOL": "bool"},
    **{f"I{bits}": f"int{bits}" for bits in (8, 16, 32, 64)},
    **{f"U{bits}": f"uint{bits}" for bits in (8, 16, 32, 64)},
}


def _list_safetensors(path: Path, header_bytes: int, stack: contextlib.ExitStack) -> dict[str, Stored]:
    if header_bytes > MAX_HEADER_BYTES:
        raise ValueError(f"its header claims {header_bytes:,} bytes, the limit is {MAX_HEADER_BYTES:,}")
    archive: Any = stack.enter_context(safetensors.safe_open(path, framework="numpy"))
    if len(names := archive.keys()) > MAX_TENSORS:
        raise ValueError(f"it holds {len(names):,} tensors, the limit is {MAX_TENSORS:,}")

    def stored(name: str) -> Stored:
        header = archive.get_slice(name)
        dtype = str(header.get_dtype())
        read = partial(archive.get_tensor, name)
        return Stored(_SAFETENSORS_TYPES.get(dtype, dtype), tuple(header.get_shape()), read)

    return {name: stored(name) for name in names}
