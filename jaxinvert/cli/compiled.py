"""Keeps compiled programs between runs of the command line, in a folder of the user's cache.

JAX's persistent compilation cache is used as it is; this module chooses its folder and keeps it in order:

- One folder per version of JAX and per processor: programs are compiled for the instructions of one processor, and a
  home folder may be shared by different machines.
- A compiled program is code. A folder that others own or can write is not used.
- JAX does not write atomically and never replaces an entry. One left half written by a killed process would cost a
  warning and a compilation in every later run, so damaged entries are removed at the start.
- The size is bounded at start and end, by last use. JAX's own bound needs a further package, and a process killed
  between its two files of an entry stops it from writing for good.

`JAX_COMPILATION_CACHE_DIR` names another folder, for which all this is left to the user;
`JAX_ENABLE_COMPILATION_CACHE=false` turns the cache off.
"""

import contextlib
import hashlib
import os
import platform
import stat
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path

import jax
import jaxlib

LIMIT_BYTES = 256 * 2**20
"""All kept programs together, of every version and processor."""

_SETTINGS = {
    "jax_persistent_cache_min_compile_time_secs": 0.0,  # small programs, too: there are dozens of them
    "jax_persistent_cache_min_entry_size_bytes": -1,
    "jax_raise_persistent_cache_errors": False,
}


class UntrustedFolderError(Exception):
    """Raised for a folder that someone else could have written; the message says which one and why."""


@contextlib.contextmanager
def programs_kept() -> Iterator[str | None]:
    """Keeps the programs compiled inside, unless the environment names a folder or turns the cache off.

    Yields:
      Why programs are not kept, if the folder is not trusted. One that cannot be written is no reason to complain.
    """
    if jax.config.jax_compilation_cache_dir or not jax.config.jax_enable_compilation_cache:  # pyright: ignore
        yield None
        return
    try:
        folder = own_folder(user_cache() / "jaxinvert" / "programs", build_name())
        remove_damaged(folder)
        bound_size(folder.parent, LIMIT_BYTES)
    except UntrustedFolderError as error:
        yield f"compiled programs are not kept: {error}"
        return
    except (OSError, RuntimeError):  # no home, a read-only one, a full disk
        yield None
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))
    for name, value in _SETTINGS.items():
        if name.upper() not in os.environ:
            jax.config.update(name, value)
    try:
        yield None
    finally:
        with contextlib.suppress(OSError):
            bound_size(folder.parent, LIMIT_BYTES)


def user_cache() -> Path:
    """The user's cache folder: `XDG_CACHE_HOME`, else the platform's.

    Raises:
      RuntimeError: if the user has no home.
    """
    chosen = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if chosen.is_absolute():  # others are ignored, as the XDG specification says
        return chosen
    return Path.home() / ("Library/Caches" if sys.platform == "darwin" else ".cache")


def build_name(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """A name for what compiled programs depend on: the versions of JAX and the processor's instructions."""
    processor = [platform.machine(), platform.processor()]
    try:
        first = cpuinfo.read_text(encoding="utf-8", errors="replace").partition("\n\n")[0]
        processor += [line for line in first.splitlines() if line.partition(":")[0].strip() in _CPU_FIELDS]
    except OSError:  # nothing tells this machine from another: its programs are its own
        processor.append(platform.node())
    digest = hashlib.sha256("\n".join(processor).encode()).hexdigest()[:16]
    return f"jax-{jax.__version__}-jaxlib-{jaxlib.__version__}-{digest}"


_CPU_FIELDS = {
    *("vendor_id", "cpu family", "model", "model name", "stepping", "flags"),
    *("CPU implementer", "CPU architecture", "CPU variant", "CPU part", "Features", "isa", "uarch"),
}
"""Fields of /proc/cpuinfo that tell processors apart but not the cores of one, on x86, Arm and RISC-V."""


def own_folder(root: Path, name: str) -> Path:
    """The folder `name` in `root`, made for this user alone if it does not exist; without symbolic links.

    Raises:
      UntrustedFolderError: if another user could have written into it, or could replace it.
      OSError: if it cannot be made.
    """
    if not hasattr(os, "geteuid"):
        raise OSError("owners of files cannot be checked on this platform")
    folder = (root / name).resolve()
    for place in [*reversed(folder.parents), folder]:
        if not place.exists():
            place.mkdir(mode=0o700, exist_ok=True)
    root = root.resolve()
    own = {folder, root, root.parent}
    for place in [folder, *folder.parents]:
        _check_trusted(place, own=place in own)
    return folder


def _check_trusted(place: Path, *, own: bool) -> None:
    """Raises UntrustedFolderError if another user but root may write into a folder.

    Those above the user's own may also be root's, and writable by all if nobody can replace what is not his, as /tmp.
    """
    status = place.stat()
    if status.st_uid != os.geteuid() and (own or status.st_uid != 0):
        raise UntrustedFolderError(f"{place} belongs to another user; set XDG_CACHE_HOME to a folder of your own")
    if status.st_mode & stat.S_ISVTX and not own:
        return
    private_group = status.st_gid == status.st_uid  # a group with one member, as many distributions make them
    if status.st_mode & stat.S_IWOTH or (status.st_mode & stat.S_IWGRP and not private_group):
        raise UntrustedFolderError(f"{place} can be written by others; run: chmod go-w {place}")


def remove_damaged(folder: Path) -> None:
    """Removes the entries of one build that are incomplete or not the user's.

    An entry that another process is just writing may be removed, too, which costs one more compilation. Those that
    were complete at the last start are not read again.
    """
    stamp = folder / "checked"
    last = stamp.stat().st_mtime_ns if stamp.exists() else 0
    stamp.touch()  # before looking: what is written meanwhile is looked at next time
    for entry in folder.glob("*-cache"):
        with contextlib.suppress(FileNotFoundError):  # removed by another process
            status = entry.lstat()
            own = status.st_uid == os.geteuid() and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
            if not own or (status.st_mtime_ns >= last and not _complete(entry.read_bytes())):
                entry.unlink()


def _complete(entry: bytes) -> bool:
    """Whether an entry can be decompressed as JAX would, by zlib or, where it is installed, zstandard."""
    if entry.startswith(b"\x28\xb5\x2f\xfd"):
        try:
            import zstandard  # pyright: ignore[reportMissingImports]
        except ImportError:  # JAX does not read it either
            return True
        try:
            zstandard.ZstdDecompressor().decompress(entry)
        except zstandard.ZstdError:
            return False
        return True
    try:
        zlib.decompress(entry)
    except zlib.error:
        return False
    return True


def bound_size(root: Path, limit: int) -> None:
    """Removes the files under `root` that were not used for longest, until the others have at most `limit` bytes."""
    kept = []
    for path in root.rglob("*"):
        with contextlib.suppress(FileNotFoundError):
            status = path.lstat()
            if stat.S_ISREG(status.st_mode):
                kept.append((max(status.st_atime, status.st_mtime), status.st_size, path))
    excess = sum(size for _, size, _ in kept) - limit
    for _, size, path in sorted(kept, key=lambda one: one[0]):
        if excess <= 0:
            break
        path.unlink(missing_ok=True)
        excess -= size
