"""Reads the official CIFAR and MNIST archives with Python's gzip and tarfile, in memory and without pickle.

Formats: IDX (MNIST, Fashion-MNIST; http://yann.lecun.com/exdb/mnist/) and the "binary version" of CIFAR-10
and CIFAR-100 (https://www.cs.toronto.edu/~kriz/cifar.html).
"""

import gzip
import hashlib
import pathlib
import struct
import tarfile
import zlib
from typing import NamedTuple

import numpy as np

_DAMAGE = (OSError, EOFError, zlib.error, tarfile.TarError)
"""Exceptions of gzip and tarfile on damaged input (`gzip.BadGzipFile` is an `OSError`)."""
_MAX_BYTES = 1 << 28
"""No official file expands to more than 256 MiB."""


class CifarLayout(NamedTuple):
    """Contents of a CIFAR archive.

    Attributes:
      folder: the folder inside the archive.
      train_files: the record files of the training split, in order.
      test_files: the record files of the test split.
      label_files: one text file of class names per label byte, in the order of the bytes.
      label_keys: the TFDS feature of each label byte.
    """

    folder: str
    train_files: tuple[str, ...]
    test_files: tuple[str, ...]
    label_files: tuple[str, ...]
    label_keys: tuple[str, ...]


CIFAR_LAYOUTS = {
    "cifar10": CifarLayout(
        folder="cifar-10-batches-bin",
        train_files=tuple(f"data_batch_{i}.bin" for i in range(1, 6)),
        test_files=("test_batch.bin",),
        label_files=("batches.meta.txt",),
        label_keys=("label",),
    ),
    "cifar100": CifarLayout(
        folder="cifar-100-binary",
        train_files=("train.bin",),
        test_files=("test.bin",),
        label_files=("coarse_label_names.txt", "fine_label_names.txt"),
        label_keys=("coarse_label", "label"),
    ),
}


class CifarSplit(NamedTuple):
    """One split: `images [N, 32, 32, 3]` uint8, and `labels`, `[N]` uint8 per feature name."""

    images: np.ndarray
    labels: dict[str, np.ndarray]


class Cifar(NamedTuple):
    """A complete archive: its splits by name, and the class names of each label feature."""

    splits: dict[str, CifarSplit]
    class_names: dict[str, list[str]]


def read_cifar(path: pathlib.Path, layout: CifarLayout) -> Cifar:
    """Reads a CIFAR binary archive (`.tar.gz`).

    A record is one byte per label, then 3,072 bytes: the red, green and blue planes of a 32 x 32 image.
    Members are read by their exact names; other members, and members that are not regular files, are ignored.

    Raises:
      ValueError: the archive is damaged, lacks a file, or a file is not an integer number of valid records.
    """
    wanted = {f"{layout.folder}/{name}" for name in layout.train_files + layout.test_files + layout.label_files}
    found: dict[str, bytes] = {}
    try:
        with gzip.open(path) as stream:
            with tarfile.open(fileobj=stream, mode="r:") as archive:
                for member in archive:
                    if member.name not in wanted or not member.isreg():
                        continue
                    if member.size > _MAX_BYTES:
                        raise ValueError(f"{path}: {member.name} claims {member.size:,} bytes")
                    file = archive.extractfile(member)
                    found[member.name.removeprefix(f"{layout.folder}/")] = file.read() if file else b""
            # tarfile stops at the archive's last block; gzip verifies its checksum only at the end of the stream.
            while stream.read(1 << 20):
                pass
    except _DAMAGE as error:
        raise ValueError(f"{path} is corrupt or truncated: {error}") from error
    missing = [name for name in wanted if name.removeprefix(f"{layout.folder}/") not in found]
    if missing:
        raise ValueError(f"{path} lacks {', '.join(sorted(missing))}")
    class_names = {
        key: [line for line in found[name].decode("utf-8", "replace").splitlines() if line]
        for key, name in zip(layout.label_keys, layout.label_files)
    }
    splits = {}
    for split, names in (("train", layout.train_files), ("test", layout.test_files)):
        records = np.concatenate([_cifar_records(path, name, found[name], layout) for name in names])
        images = records[:, len(layout.label_keys) :].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
        labels = {key: records[:, i] for i, key in enumerate(layout.label_keys)}
        for key, values in labels.items():
            if values.max() >= len(class_names[key]):
                raise ValueError(f"{path}: a {key} of {values.max()}, but {len(class_names[key])} class names")
        splits[split] = CifarSplit(images, labels)
    return Cifar(splits, class_names)


def read_idx(path: pathlib.Path) -> np.ndarray:
    """Reads a gzipped IDX file of unsigned bytes.

    Header: two zero bytes, 8 (unsigned byte), the number of dimensions, then each dimension as a big-endian
    uint32.

    Returns:
      uint8 with the header's shape: `[N]` labels or `[N, 28, 28]` images.

    Raises:
      ValueError: the file is damaged, is not IDX, or its length does not match its header.
    """
    try:
        with gzip.open(path) as file:
            data = file.read(_MAX_BYTES)
    except _DAMAGE as error:
        raise ValueError(f"{path} is corrupt or truncated: {error}") from error
    num_dims = data[3] if len(data) > 3 else 0
    if data[:3] != b"\x00\x00\x08" or num_dims not in (1, 3) or len(data) < 4 + 4 * num_dims:
        raise ValueError(f"{path} is not an IDX file of unsigned bytes")
    shape = struct.unpack_from(f">{num_dims}I", data, 4)
    values = np.frombuffer(data, np.uint8, offset=4 + 4 * num_dims)
    if values.size != int(np.prod(shape, dtype=np.uint64)):
        raise ValueError(f"{path} is corrupt or truncated: {values.size:,} values for the shape {shape}")
    return values.reshape(shape)


def sha256(data: bytes) -> str:
    """Returns the SHA-256 of `data` as hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def restore_gzip_header(data: bytes, *, stem: str, mtime: int) -> bytes:
    """Restores the gzip header fields that a distribution stripped (Debian does, with `gzip -n`).

    The compressed stream is unchanged. The ten-byte header without name is replaced by a header with the file's name
    and time, so that the official checksum can be verified.

    Args:
      data: a gzip file whose header has no optional fields.
      stem: the name of the uncompressed file.
      mtime: its modification time, in seconds since 1970.

    Raises:
      ValueError: `data` is not such a file.
    """
    if data[:4] != b"\x1f\x8b\x08\x00":
        raise ValueError("not a gzip file with a bare header")
    fields = (
        0x1F,
        0x8B,
        8,
        8,
        mtime,
        0,
        3,
    )  # deflate; the flag "has a name"; time; no extra flags; written on Unix
    return struct.pack("<BBBBIBB", *fields) + stem.encode("ascii") + b"\x00" + data[10:]


def _cifar_records(path: pathlib.Path, name: str, data: bytes, layout: CifarLayout) -> np.ndarray:
    length = len(layout.label_keys) + 3072
    if not data or len(data) % length:
        raise ValueError(f"{path}: {name} has {len(data):,} bytes, not a multiple of {length:,}")
    return np.frombuffer(data, np.uint8).reshape(-1, length)
