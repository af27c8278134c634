"""Files that are either whole or absent, checked against damage, in folders that one process at a time writes.

Every write goes to a temporary neighbor first and is then renamed. Arrays are npz without pickle, everything else is
JSON. A symbolic link in place of a file is replaced, never followed.
"""

import contextlib
import errno
import hashlib
import json
import math
import os
import secrets
import signal
import stat
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

try:
    import fcntl
except ImportError:  # on platforms without these locks, concurrent runs are not prevented
    fcntl = None

_PARTIAL = ".jaxinvert-{}.partial"
"""Names of temporary files; `remove_partial` deletes them."""
_LOCK = ".lock"
_CHECKSUM = "sha256"
_NO_FOLLOW = getattr(os, "O_NOFOLLOW", 0)


class KeptFileWarning(UserWarning):
    """A kept file is damaged and what it held is computed again, or it could not be written; results are right."""


def write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Calls `write(file)` on a temporary file beside `path` and renames it into place, or leaves nothing.

    Args:
      path: the final name; its folder is made if need be. A symbolic link is replaced.
      write: writes the content to the open binary file.

    Raises:
      OSError: if it cannot be written; its `filename` is `path`.
    """
    path = Path(path)
    temporary = path.parent / _PARTIAL.format(secrets.token_hex(8))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Unlike `tempfile`, with the permissions that the process's umask leaves.
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
        try:
            with os.fdopen(handle, "wb") as file:
                write(file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    except OSError as error:
        if error.errno is not None:  # a full disk names no file, and others the temporary one
            error.filename, error.filename2 = str(path), None
        raise


def save_bytes(path: Path, content: bytes) -> None:
    """Writes `content`."""
    write_atomically(path, lambda file: file.write(content))


def append_line(path: Path, line: str) -> None:
    """Appends a line to a text file, on a new line even after one that was cut short; follows no symbolic link."""
    with open(path, "a+b", opener=lambda name, flags: os.open(name, flags | _NO_FOLLOW, 0o666)) as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            line = line if file.read(1) == b"\n" else f"\n{line}"
        file.write(f"{line}\n".encode())


def check_writable(folder: Path) -> None:
    """Fails before long work rather than after it, if `folder` cannot be written to; makes nothing.

    Raises:
      OSError: if `folder` or what should become its parent is a file or a dangling link, or not writable.
    """
    try:
        if "\0" in os.fsdecode(os.fsencode(folder)):
            raise ValueError("a null character")
        existing = Path(folder)
        while not existing.exists():
            if existing.is_symlink():
                where = os.readlink(existing)
                raise NotADirectoryError(
                    f"cannot write to {folder}: {existing} is a link to {where}, which is missing"
                )
            existing = existing.parent
    except ValueError as error:  # or a character that no name of a file can have
        raise NotADirectoryError(f"cannot write to {folder}: no folder can have this name") from error
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


@contextlib.contextmanager
def alone_in(folder: Path, *inside: str) -> Iterator[None]:
    """Locks a folder of results against other processes, and removes temporary files of killed runs.

    Args:
      folder: the folder, which is made if need be, and removed if nothing is written.
      inside: folders in it that hold files, too, as patterns such as `*/attacks`.

    Raises:
      ValueError: if another process holds the lock.
      OSError: if the folder cannot be written to, or one of the folders in it is a symbolic link.
    """
    check_writable(folder)
    made = [each for each in (folder, *folder.parents) if not each.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with locked(folder):
            for each in [folder, *(found for pattern in inside for found in folder.glob(pattern))]:
                if each != folder and each.is_symlink():
                    raise NotADirectoryError(f"cannot write to {each}: it is a symbolic link, expected a folder")
                for partial in each.glob(_PARTIAL.format("*")):
                    partial.unlink(missing_ok=True)
            yield
    finally:
        for each in made:
            with contextlib.suppress(OSError):  # only those in which nothing was written
                each.rmdir()


@contextlib.contextmanager
def locked(folder: Path, *, wait: bool = False) -> Iterator[None]:
    """Holds the lock of a folder, a file `.lock` that is removed again; nothing on platforms without such locks.

    Args:
      folder: an existing folder.
      wait: whether to wait for another process instead of raising.

    Raises:
      ValueError: if another process holds the lock.
      OSError: if the file cannot be opened; a symbolic link is not followed.
    """
    path = folder / _LOCK
    while True:
        with _open_lock(path) as file:
            _lock(file, folder, wait)
            if not _is_named(file, path):  # its holder has removed it since
                continue
            try:
                yield
            finally:
                with contextlib.suppress(OSError):  # some platforms do not remove an open file
                    path.unlink()
            return


def _open_lock(path: Path) -> BinaryIO:
    """Opens or makes an empty file without changing what is there."""
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NONBLOCK", 0) | _NO_FOLLOW
    with contextlib.suppress(FileNotFoundError):  # one look: its holder may remove it at any moment
        if not stat.S_ISREG(os.lstat(path).st_mode):
            raise OSError(errno.EINVAL, "expected a file to lock, not a link or a device", str(path))
    return open(path, "r+b", buffering=0, opener=lambda name, _: os.open(name, flags, 0o666))


def _lock(file: BinaryIO, folder: Path, wait: bool) -> None:
    if fcntl is None:
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise ValueError(
            f"another process writes its results to {folder}: wait until it has ended, or choose another folder"
        ) from error
    except OSError:  # a file system without locks
        pass


def _is_named(file: BinaryIO, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.lstat(path))
    except FileNotFoundError:
        return False


def save_json(path: Path, content: Mapping[str, Any]) -> None:
    """Writes `content` as indented, strictly standard JSON; non-finite numbers become `null`."""
    text = json.dumps(plain(content), indent=2, allow_nan=False) + "\n"
    save_bytes(path, text.encode())


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


def save_checked(path: Path, arrays: Mapping[str, Any], identity: str) -> None:
    """Writes an npz that `load_checked` reads back only if it is unchanged and holds what it is taken for.

    Args:
      path: the file.
      arrays: of plain numbers.
      identity: says what they are, such as a job's name and the part in it.
    """
    content = {name: np.asarray(array) for name, array in arrays.items()}
    content[_CHECKSUM] = np.array(_checksum(content, identity))
    write_atomically(path, lambda file: np.savez(file, allow_pickle=False, **content))  # floats hardly compress


def load_checked(path: Path, identity: str) -> dict[str, np.ndarray]:
    """Reads what `save_checked` wrote with the same identity.

    Raises:
      FileNotFoundError: if there is no file.
      ValueError: if its content was changed, or is something else's.
    """
    written = path.stat().st_size if path.exists() else 0  # it is not compressed: its arrays are no larger
    arrays = load_arrays(path, max_bytes=max(_MAX_BYTES, written))
    if str(arrays.pop(_CHECKSUM, "")) != _checksum(arrays, identity):
        raise ValueError(f"{path} is not what was written there: its checksum differs")
    return arrays


def _checksum(arrays: Mapping[str, np.ndarray], identity: str) -> str:
    """SHA-256 of the identity and of names, types, shapes and bytes of all arrays."""
    digest = hashlib.sha256(json.dumps(identity).encode())
    for name, array in sorted(arrays.items()):
        digest.update(json.dumps([name, array.dtype.str, array.shape]).encode())
        digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


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


@contextlib.contextmanager
def uninterruptible() -> Iterator[None]:
    """Ignores Ctrl-C while results are written."""
    if threading.current_thread() is not threading.main_thread():  # only the main thread receives signals
        yield
        return
    previous = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)
