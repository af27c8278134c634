"""Lists the tensors of a Flax msgpack file (`flax.serialization.to_bytes`) with a parser for maps and arrays only.

A general msgpack reader allocates an object for every encoded byte and lists of any claimed length, so a small
hostile file can exhaust memory. Parameters are nested maps of arrays; this reader accepts nothing else:

    tree  = map { string or integer: tree | array }
    array = ext(1 or 3) [ [size, ...], dtype name, bytes ]

The format: https://github.com/msgpack/msgpack/blob/master/spec.md; the arrays in it: `flax.serialization`.
"""

import math
from collections.abc import Iterator
from typing import BinaryIO

import numpy as np

from jaxinvert.readers.limits import MAX_TENSORS
from jaxinvert.readers.stored import DTYPES, Stored

_MAX_DEPTH = 32
_MAX_AXES = 16
_MAX_NAME_BYTES = 512
_FIXED_EXT = {0xD4 + i: 1 << i for i in range(5)}
_SIZED = {
    **{0xC4: ("bytes", 1), 0xC5: ("bytes", 2), 0xC6: ("bytes", 4)},
    **{0xC7: ("ext", 1), 0xC8: ("ext", 2), 0xC9: ("ext", 4)},
    **{0xCC: ("integer", 1), 0xCD: ("integer", 2), 0xCE: ("integer", 4), 0xCF: ("integer", 8)},
    **{0xD9: ("string", 1), 0xDA: ("string", 2), 0xDB: ("string", 4)},
    **{0xDC: ("list", 2), 0xDD: ("list", 4), 0xDE: ("map", 2), 0xDF: ("map", 4)},
}
"""First byte -> kind, and the number of bytes that hold its length (for an integer, its value)."""


def list_msgpack(file: BinaryIO) -> dict[str, Stored]:
    """Lists the arrays of an open Flax msgpack file under their paths, joined by "/".

    Raises:
      ValueError: if the file holds anything but nested maps of arrays.
    """
    size = file.seek(0, 2)
    file.seek(0)
    kind, length = _head(file)
    if kind != "map":
        raise ValueError(f"it holds one {kind}, expected a map of names to arrays")
    tensors: dict[str, Stored] = {}
    seen: set[str] = set()
    # Open maps: the prefix of their names and the number of entries still to read.
    pending = [("", length)]
    for _ in range(MAX_TENSORS):
        while pending and pending[-1][1] == 0:
            pending.pop()
        if not pending:
            break
        prefix, left = pending.pop()
        pending.append((prefix, left - 1))
        name = prefix + _name(file)
        if len(name) > _MAX_NAME_BYTES:  # many tensors can share one long prefix, which the file stores once
            raise ValueError(f"{name!r} is longer than {_MAX_NAME_BYTES} characters")
        if name in seen:  # Flax would keep the last one
            raise ValueError(f"it holds {name!r} twice")
        seen.add(name)
        kind, length = _head(file)
        if kind == "map":
            if len(pending) == _MAX_DEPTH:
                raise ValueError(f"its maps are nested deeper than {_MAX_DEPTH}")
            pending.append((f"{name}/", length))
        elif kind == "ext":
            tensors[name] = _stored(file, name, length, size)
        else:
            raise ValueError(
                f"{name!r} is a {kind}, expected a map or an array: write the variables alone, with "
                "flax.serialization.to_bytes"
            )
    else:
        raise ValueError(f"it holds more than {MAX_TENSORS:,} maps and arrays")
    if file.tell() != size:
        raise ValueError(f"it has {size - file.tell():,} bytes after its end")
    return tensors


def _head(file: BinaryIO) -> tuple[str, int]:
    """Reads the kind and the length of the next value; for an integer, its kind and value."""
    first = _take(file, 1)[0]
    if first <= 0x7F:
        return "integer", first
    if first <= 0x8F:
        return "map", first & 0x0F
    if first <= 0x9F:
        return "list", first & 0x0F
    if first <= 0xBF:
        return "string", first & 0x1F
    if first in _FIXED_EXT:
        return "ext", _FIXED_EXT[first]
    if first not in _SIZED:
        return f"value of msgpack type 0x{first:02x}", 0
    kind, num_bytes = _SIZED[first]
    return kind, int.from_bytes(_take(file, num_bytes), "big")


def _name(file: BinaryIO) -> str:
    """The key of a map: text, or an integer of at least 0, as Flax NNX numbers the layers of a list."""
    start = file.tell()
    kind, value = _head(file)
    if kind == "integer":
        return str(value)
    file.seek(start)
    return _text(file, "a name")


def _text(file: BinaryIO, what: str) -> str:
    kind, length = _head(file)
    if kind not in ("string", "bytes") or length > _MAX_NAME_BYTES:
        raise ValueError(f"{what} is a {kind} of length {length:,}, expected text of at most {_MAX_NAME_BYTES} bytes")
    data = _take(file, length)
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"{what} is not UTF-8: {data[:20]!r}") from error


def _stored(file: BinaryIO, name: str, length: int, file_size: int) -> Stored:
    """Reads an array's header, checks its sizes, and moves the file position to the end of the array."""
    kind = _take(file, 1)[0]
    start, end = file.tell(), file.tell() + length
    if kind not in (1, 3):
        raise ValueError(f"{name!r} is of extension type {kind}, expected an array (1) or a scalar (3)")
    if end > file_size:
        raise ValueError(f"{name!r} claims {length:,} bytes, but the file has {file_size - start:,} left")
    fields, num_fields = _head(file)
    if (fields, num_fields) != ("list", 3):
        raise ValueError(f"{name!r} is no array of flax.serialization")
    shape = tuple(_shape(file, name))
    dtype = _text(file, f"the type of {name!r}")
    content, num_bytes = _head(file)
    offset = file.tell()
    if content != "bytes" or offset + num_bytes != end:
        raise ValueError(f"{name!r} is no array of flax.serialization: its data and its header disagree on its end")
    if dtype in DTYPES and DTYPES[dtype].itemsize * math.prod(shape) != num_bytes:
        raise ValueError(f"{name!r} claims {dtype} {shape}, but has {num_bytes:,} bytes of data")
    file.seek(end)

    def read() -> np.ndarray:
        file.seek(offset)
        return np.frombuffer(_take(file, num_bytes), DTYPES[dtype]).reshape(shape)

    return Stored(dtype, shape, num_bytes, read)


def _shape(file: BinaryIO, name: str) -> Iterator[int]:
    kind, num_axes = _head(file)
    if kind != "list" or num_axes > _MAX_AXES:
        raise ValueError(f"the shape of {name!r} is a {kind} of length {num_axes:,}")
    for _ in range(num_axes):
        kind, size = _head(file)
        if kind != "integer":
            raise ValueError(f"the shape of {name!r} holds a {kind}")
        yield size


def _take(file: BinaryIO, count: int) -> bytes:
    """Reads the next `count` bytes; callers bound `count` or check it against the file's size."""
    if len(data := file.read(count)) < count:
        raise ValueError("it ends in the middle of a value")
    return data
