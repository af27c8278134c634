"""Lists the tensors of an npz file, a zip archive of npy files, without evaluating headers or unpickling.

NumPy's own reader is unsafe for hostile files: it decompresses an npy header before it checks its length, and
`zipfile` decompresses bzip2 and LZMA members without bound.

The format: https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html.
"""

import math
import re
import sys
import zipfile
from typing import BinaryIO

import numpy as np

from jaxinvert.readers.limits import MAX_HEADER_BYTES, MAX_TENSORS
from jaxinvert.readers.stored import DTYPES, Stored

_MAGIC = b"\x93NUMPY"
_MAX_NPY_HEADER = 4096
_HEADER = re.compile(
    rb"\{'descr': '(?P<dtype>[<>|=]?[biufcmMOSUV]\d{0,4})', 'fortran_order': (?P<fortran>True|False), "
    rb"'shape': \((?P<shape>|\d+,|\d+(?:, \d+)+,?)\),? *\}\s*"
)
_PIECE = 1 << 20
_ENCRYPTED = 1


def list_npz(file: BinaryIO) -> dict[str, Stored]:
    """Lists the arrays of an open npz file by name.

    Raises:
      ValueError: if the file is no zip archive of plain arrays, or cannot be listed in bounded memory; `zipfile`'s
        own exceptions pass through.
    """
    # zipfile needs little more than `read` and `seek`.
    archive = zipfile.ZipFile(_ReadsOfBoundedSize(file))  # type: ignore[reportArgumentType]
    entries = archive.infolist()
    if len(entries) > MAX_TENSORS:
        raise ValueError(f"it holds {len(entries):,} arrays, the limit is {MAX_TENSORS:,}")
    if any(entry.filename.endswith("/data.pkl") for entry in entries):
        raise ValueError(
            "it is a PyTorch file, whose pickle would run code; load it where you trust it, and write the "
            "tensors with safetensors.torch.save_file"
        )
    tensors = {entry.filename.removesuffix(".npy"): _stored(archive, entry) for entry in entries}
    if len(tensors) < len(entries):
        raise ValueError("it holds two arrays of the same name")
    return tensors


class _ReadsOfBoundedSize:
    """A file whose single reads are limited: only a forged table of contents asks for more."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.seek, self.tell, self.seekable = file.seek, file.tell, file.seekable

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(MAX_HEADER_BYTES + 1 if size < 0 else min(size, MAX_HEADER_BYTES + 1))
        if len(data) > MAX_HEADER_BYTES:
            raise ValueError(f"its table of contents claims {size:,} bytes, the limit is {MAX_HEADER_BYTES:,}")
        return data


def _stored(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> Stored:
    """Reads an entry's header and checks it against the entry's size."""
    name = entry.filename
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) or entry.flag_bits & _ENCRYPTED:
        raise ValueError(f"{name} is encrypted or compressed in a way that numpy.savez does not use")
    with archive.open(entry) as member:
        start = member.read(12)
        if start[:6] != _MAGIC or start[6:8] not in (b"\x01\x00", b"\x02\x00"):
            raise ValueError(f"{name} is no npy array; write the file with numpy.savez")
        num_bytes = 2 if start[6] == 1 else 4
        length = int.from_bytes(start[8 : 8 + num_bytes], "little")
        if length > _MAX_NPY_HEADER:
            raise ValueError(f"the header of {name} claims {length:,} bytes, the limit is {_MAX_NPY_HEADER:,}")
        header_end = 8 + num_bytes + length
        header = start[8 + num_bytes :] + member.read(header_end - len(start))
    if (found := _HEADER.fullmatch(header)) is None:
        raise ValueError(f"the header of {name} is not that of a plain array: {header[:80].decode('latin-1')!r}")
    try:
        dtype = np.dtype(found["dtype"].decode())
    except TypeError as error:
        raise ValueError(f"{name} has the unknown type {found['dtype'].decode()!r}") from error
    # NumPy has no bfloat16 and writes its two bytes as void.
    dtype = DTYPES["bfloat16"] if dtype == np.dtype("V2") else dtype
    shape = tuple(int(size) for size in found["shape"].split(b",") if size)
    if not dtype.hasobject and header_end + dtype.itemsize * math.prod(shape) != entry.file_size:
        raise ValueError(
            f"{name} claims {dtype} {shape}, but has {max(0, entry.file_size - header_end):,} bytes of data"
        )

    def read() -> np.ndarray:
        if dtype.hasobject:
            raise ValueError(f"{name} holds Python objects, which are not unpickled")
        flat = np.empty(dtype.itemsize * math.prod(shape), np.uint8)
        filled = 0
        with archive.open(entry) as member:
            member.read(header_end)
            while piece := member.read(_PIECE):
                flat[filled : filled + len(piece)] = np.frombuffer(piece, np.uint8)
                filled += len(piece)
        if filled < flat.size:
            raise ValueError(f"{name} ends after {filled:,} of {flat.size:,} bytes")
        if dtype.kind == "U" and np.any(
            flat.view(np.dtype(np.uint32).newbyteorder(dtype.byteorder)) > sys.maxunicode
        ):
            raise ValueError(f"{name} holds what is no text")
        return flat.view(dtype).reshape(shape, order="F" if found["fortran"] == b"True" else "C")

    return Stored(dtype.name, shape, dtype.itemsize * math.prod(shape), read)
