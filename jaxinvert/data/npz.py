"""Loads an `.npz` file of images and labels as a dataset."""

import pathlib
import zipfile
import zlib

import numpy as np

from jaxinvert.data import pixels
from jaxinvert.data.dataset import NORMALIZATION, Dataset, Normalization, neutral_normalization, select, to_float

MAX_BYTES = 8 << 30
"""An archive that expands to more than this is rejected before it is read."""


def load_npz(path: pathlib.Path, *, split: str, size: int | None) -> Dataset:
    """Loads a split of an `.npz` file; never unpickles.

    | array | shape and type | meaning |
    | --- | --- | --- |
    | `SPLIT_images` | `[N, H, W, C]` or `[N, H, W]` uint8, C is 1 or 3 | e.g. `train_images`, `test_images` |
    | `SPLIT_labels` | `[N]` integers | classes from 0 |
    | | `[N, K]` integers or floats | several labels per image, soft labels, or values to predict |
    | | `[N]` floats | a value to predict |
    | `images`, `labels` | the same | the split `test` of a file with one split |
    | `class_names` | `[K]` strings, optional | else `K` is the file's largest label plus one |
    | `mean`, `std` | `[C]` floats, [0, 1] pixels, optional | else CIFAR-10's (C = 3) or 0.5 / 0.25 (C = 1) |

    Args:
      path: the file.
      split: a TFDS split expression.
      size: side in pixels to resample to, or `None` for the file's own.

    Raises:
      ValueError: the file is damaged, lacks an array, or an array violates the table above.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            total = sum(entry.file_size for entry in archive.infolist())
        if total > MAX_BYTES:
            raise ValueError(f"it expands to {total:,} bytes, the limit is {MAX_BYTES:,}")
        with np.load(path, allow_pickle=False) as arrays:
            return _read(path, arrays, split=split, size=size)
    except (
        OSError,
        ValueError,
        EOFError,
        MemoryError,
        zipfile.BadZipFile,
        zlib.error,
        NotImplementedError,
    ) as error:
        raise ValueError(f"cannot read the dataset {path}: {error}") from error


def _read(path: pathlib.Path, arrays: np.lib.npyio.NpzFile, *, split: str, size: int | None) -> Dataset:
    prefixes = {key.removesuffix("images").removesuffix("_"): key for key in arrays if key.endswith("images")}
    image_keys = {prefix or "test": key for prefix, key in prefixes.items()}
    if not image_keys:
        raise ValueError(f"it has no array SPLIT_images, only {', '.join(arrays) or 'nothing'}")
    labels = {name: _labels(arrays, key.removesuffix("images") + "labels") for name, key in image_keys.items()}
    classes = [values for values in labels.values() if np.issubdtype(values.dtype, np.integer)]
    largest = max((int(values.max()) for values in classes if values.size), default=0)
    if not classes:
        largest = max(values.shape[1] if values.ndim > 1 else 1 for values in labels.values()) - 1
    class_names = (
        tuple(str(name) for name in arrays["class_names"].ravel())
        if "class_names" in arrays
        else tuple(str(label) for label in range(largest + 1))
    )
    if largest >= len(class_names):
        raise ValueError(f"the labels reach {largest}, expected less than the {len(class_names)} class names")
    selections = select(split, {name: len(values) for name, values in labels.items()})
    images = {part.split: _images(arrays, image_keys[part.split], labels[part.split]) for part in selections}
    if len({values.shape[1:] for values in images.values()}) > 1:
        raise ValueError("its splits have different image shapes, so they cannot be joined")
    num_channels = next(iter(images.values())).shape[-1]
    normalization = _normalization(arrays, num_channels)
    return Dataset(
        name=str(path),
        images=to_float(
            pixels.resize(image, size) for part in selections for image in images[part.split][part.start : part.stop]
        ),
        labels=np.concatenate([labels[part.split][part.start : part.stop] for part in selections]),
        num_classes=len(class_names),
        class_names=class_names,
        mean=normalization.mean,
        std=normalization.std,
    )


def _images(arrays: np.lib.npyio.NpzFile, key: str, labels: np.ndarray) -> np.ndarray:
    images = arrays[key]
    if images.ndim == 3:
        images = images[..., None]
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] not in (1, 3) or 0 in images.shape:
        raise ValueError(f"{key} is {images.dtype} {images.shape}, expected uint8 [N, H, W, C] with C = 1 or 3")
    if len(images) != len(labels):
        raise ValueError(f"{key} has {len(images)} images for {len(labels)} labels")
    return images


def _labels(arrays: np.lib.npyio.NpzFile, key: str) -> np.ndarray:
    if key not in arrays:
        raise ValueError(f"it has no array {key}")
    labels = arrays[key]
    whole = np.issubdtype(labels.dtype, np.integer)
    if labels.ndim not in (1, 2) or not (whole or np.issubdtype(labels.dtype, np.floating)):
        raise ValueError(f"{key} is {labels.dtype} {labels.shape}, expected integers [N], or floats [N] or [N, K]")
    if labels.ndim == 2 or not whole:
        if not np.all(np.isfinite(labels)):
            raise ValueError(f"{key} holds values that are not finite")
        return labels.astype(np.float32)
    if labels.size and (labels.min() < 0 or labels.max() > np.iinfo(np.int32).max):
        raise ValueError(f"{key} ranges from {labels.min()} to {labels.max()}, expected classes from 0")
    return labels.astype(np.int32)


def _normalization(arrays: np.lib.npyio.NpzFile, num_channels: int) -> Normalization:
    if "mean" not in arrays and "std" not in arrays:
        return NORMALIZATION["cifar10"] if num_channels == 3 else neutral_normalization(num_channels)
    if "mean" not in arrays or "std" not in arrays:
        raise ValueError("it has one of mean and std, expected both or neither")
    mean, std = (np.asarray(arrays[key]) for key in ("mean", "std"))
    for key, values in (("mean", mean), ("std", std)):
        if values.shape != (num_channels,) or not np.issubdtype(values.dtype, np.floating):
            raise ValueError(f"{key} is {values.dtype} {values.shape}, expected {num_channels} floats")
    if not (np.all((mean >= 0) & (mean <= 1)) and np.all((std > 0) & (std <= 1))):
        raise ValueError(f"mean {mean} or std {std} is outside [0, 1]; they are those of pixels in [0, 1]")
    return Normalization(tuple(mean.astype(float).tolist()), tuple(std.astype(float).tolist()))
