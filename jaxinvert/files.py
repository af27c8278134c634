"""Files that are either whole or absent: every write goes to a temporary neighbor first and is then renamed.

Arrays are npz without pickle, everything else is JSON.
"""

import json
import math
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np


def write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Calls `write(file)` on a temporary file beside `path` and renames it into place, or leaves nothing.

    Args:
      path: the final name; its folder is made if need be.
      write: writes the content to the open binary file.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)  # mkstemp makes private files
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def check_writable(folder: Path) -> None:
    """Fails before long work rather than after it, if `folder` cannot be written to; makes nothing.

    Raises:
      OSError: if `folder` or what should become its parent is a file, or not writable.
    """
    existing = folder
    while not existing.exists():
        existing = existing.parent
    if not existing.is_dir():
        raise NotADirectoryError(f"cannot write to {folder}: {existing} is not a folder")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise PermissionError(f"cannot write to {folder}: {existing} is not writable")


def check_writable_file(path: Path) -> None:
    """Fails before long work rather than after it, if a file cannot be written to `path`; makes nothing.

    Raises:
      OSError: if `path` is a folder, or its folder cannot be written to.
    """
    if path.is_dir():
        raise IsADirectoryError(f"cannot write to {path}: it is a folder, expected the name of a file")
    check_writable(path.parent)


def expanded(path: os.PathLike[str] | str) -> Path:
    """The path with `~` and `~user` replaced by home folders.

    Raises:
      ValueError: for a user who has none.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise ValueError(f"{str(path)!r} is in the home folder of a user who does not exist") from error


def save_json(path: Path, content: Mapping[str, Any]) -> None:
    """Writes `content` as indented, strictly standard JSON; non-finite numbers become `null`."""
    text = json.dumps(plain(content), indent=2, allow_nan=False) + "\n"
    write_atomically(path, lambda file: file.write(text.encode()))


def save_arrays(path: Path, arrays: Mapping[str, Any]) -> None:
    """Writes a compressed npz that `load_arrays` reads back."""
    converted = {name: np.asarray(array) for name, array in arrays.items()}
    write_atomically(path, lambda file: np.savez_compressed(file, allow_pickle=False, **converted))


_MAX_BYTES = 4 << 30


def load_arrays(path: Path, *, max_bytes: int = _MAX_BYTES) -> dict[str, np.ndarray]:
    """Reads an npz of plain arrays; never unpickles.

    Args:
      path: the file.
      max_bytes: limit on the bytes of all arrays together, uncompressed.

    Raises:
      FileNotFoundError: if there is no such file.
      ValueError: if the file is not a whole npz of plain arrays, or they exceed the limit.
    """
    from jaxinvert.readers.tensor_files import read_arrays  # writing needs NumPy alone

    return read_arrays(Path(path), what="arrays", max_bytes=max_bytes)


def plain(value: Any) -> Any:
    """Turns NumPy and JAX scalars and arrays, tuples and paths into what JSON knows; non-finite numbers into None."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, bool | int | str | None):
        return value
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if hasattr(value, "tolist"):
        return plain(np.asarray(value).tolist())
    raise TypeError(f"cannot write a {type(value).__name__} as JSON: {value!r}")
