"""Lists the tensors of a safetensors file and reads its metadata; a header is checked before the library parses it.

The format: https://huggingface.co/docs/safetensors: eight bytes of length, a JSON header, then the tensors.
"""

import contextlib
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import safetensors

from jaxinvert.readers.json_files import parse_json
from jaxinvert.readers.limits import MAX_HEADER_BYTES, MAX_TENSORS
from jaxinvert.readers.stored import Stored

_TYPES = {
    **{"F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64", "BOOL": "bool"},
    **{f"I{bits}": f"int{bits}" for bits in (8, 16, 32, 64)},
    **{f"U{bits}": f"uint{bits}" for bits in (8, 16, 32, 64)},
}
_METADATA = "__metadata__"


def list_safetensors(path: Path, file: BinaryIO, stack: contextlib.ExitStack) -> dict[str, Stored]:
    """Lists the tensors of a safetensors file by name.

    Args:
      path: the file.
      file: the same, open, at its start.
      stack: closes what is opened here.

    Raises:
      ValueError: if the header is too long, no JSON, or names a tensor twice; the library's own exception passes
        through.
    """
    if len(header := read_header(file)) - (_METADATA in header) > MAX_TENSORS:
        raise ValueError(f"it holds {len(header):,} tensors, the limit is {MAX_TENSORS:,}")
    archive: Any = stack.enter_context(safetensors.safe_open(path, framework="numpy"))

    def stored(name: str) -> Stored:
        found = archive.get_slice(name)
        dtype = str(found.get_dtype())
        begin, end = header[name]["data_offsets"]
        read = partial(archive.get_tensor, name)
        return Stored(_TYPES.get(dtype, dtype), tuple(found.get_shape()), end - begin, read)

    return {name: stored(name) for name in archive.keys()}  # noqa: SIM118  no mapping


def read_header(file: BinaryIO) -> dict[str, Any]:
    """The JSON header of an open safetensors file: entries by tensor, and the metadata as `__metadata__`.

    Raises:
      ValueError: if it is too long, no JSON object, or has a name twice.
    """
    length = int.from_bytes(file.read(8), "little")
    if length > MAX_HEADER_BYTES:
        raise ValueError(f"its header claims {length:,} bytes, the limit is {MAX_HEADER_BYTES:,}")
    header = parse_json(file.read(length))
    if not isinstance(header, dict):
        raise ValueError("its header is no JSON object")
    return header


def read_metadata(file: BinaryIO) -> dict[str, str]:
    """The metadata in the header of an open safetensors file, text by name; empty if it has none.

    Raises:
      ValueError: see `read_header`; also if the metadata are something else.
    """
    found = read_header(file).get(_METADATA) or {}
    if not isinstance(found, dict) or not all(isinstance(text, str) for text in found.values()):
        raise ValueError("its metadata are no texts by name")
    return found
