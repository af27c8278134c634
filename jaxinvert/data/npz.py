"""Loads an `.npz` file of images and labels as a dataset."""

import math
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np

from jaxinvert.data import pixels
from jaxinvert.data.dataset import (
    NORMALIZATION,
    Dataset,
    Normalization,
    Selection,
    checked_names,
    neutral_normalization,
    select,
    to_float,
)
from jaxinvert.readers.limits import MAX_CLASSES
from jaxinvert.readers.stored import Stored, convert
from jaxinvert.readers.tensor_files import open_tensors

MAX_BYTES = 8 << 30
"""Limit on the memory of a call: the pixels (uint8) of the splits that it reads, and of its result (float32)."""
_MAX_LABEL_BYTES = 1 << 28


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
      ValueError: the file is damaged, lacks an array, or an array violates the table above or a limit.
    """
    with open_tensors(path, what="dataset", formats=("npz",)) as arrays:
        return _read(path, arrays, split=split, size=size)


def _read(path: pathlib.Path, arrays: Mapping[str, Stored], *, split: str, size: int | None) -> Dataset:
    prefixes = {key.removesuffix("images").removesuffix("_"): key for key in arrays if key.endswith("images")}
    image_keys = {prefix or "test": key for prefix, key in prefixes.items()}
    if len(image_keys) < len(prefixes):
        raise ValueError("it has both images and test_images")
    if not image_keys:
        raise ValueError(f"it has no array SPLIT_images, only {', '.join(arrays) or 'nothing'}")
    shapes = {name: _image_shape(arrays, key) for name, key in image_keys.items()}
    labels = {name: _labels(arrays, key, count=shapes[name][0]) for name, key in image_keys.items()}
    classes = [values for values in labels.values() if np.issubdtype(values.dtype, np.integer)]
    largest = max((int(values.max()) for values in classes if values.size), default=0)
    if not classes:
        largest = max(values.shape[1] if values.ndim > 1 else 1 for values in labels.values()) - 1
    class_names = _class_names(arrays, largest)
    if largest >= len(class_names):
        raise ValueError(f"the labels reach {largest}, expected less than the {len(class_names)} class names")
    selections = select(split, {name: len(values) for name, values in labels.items()})
    if len({shapes[part.split][1:] for part in selections}) > 1:
        raise ValueError("its splits have different image shapes, so they cannot be joined")
    images = _images(arrays, image_keys, shapes, selections, size)
    num_channels = images.shape[-1]
    normalization = _normalization(arrays, num_channels)
    return Dataset(
        name=str(path),
        images=images,
        labels=np.concatenate([labels[part.split][part.start : part.stop] for part in selections]),
        num_classes=len(class_names),
        class_names=class_names,
        mean=normalization.mean,
        std=normalization.std,
    )


def _class_names(arrays: Mapping[str, Stored], largest: int) -> tuple[str, ...]:
    """The class names of the file, or the numbers from 0 to the largest label."""
    if "class_names" not in arrays:
        if largest >= MAX_CLASSES:
            raise ValueError(f"the labels reach {largest:,}, the limit is {MAX_CLASSES:,} classes")
        return tuple(str(label) for label in range(largest + 1))
    stored = arrays["class_names"]
    if not stored.dtype.startswith(("str", "bytes", "int", "uint")):
        raise ValueError(f"class_names is {stored.dtype} {stored.shape}, expected text [K]")
    if math.prod(stored.shape) > MAX_CLASSES or stored.num_bytes > _MAX_LABEL_BYTES:
        raise ValueError(f"class_names is {stored.dtype} {stored.shape}, the limit is {MAX_CLASSES:,} names")
    return checked_names(stored.read().ravel())


def _image_shape(arrays: Mapping[str, Stored], key: str) -> tuple[int, ...]:
    """The shape `[N, H, W, C]` of a split's images, from its header."""
    dtype, shape = arrays[key].dtype, arrays[key].shape
    full = (*shape, 1) if len(shape) == 3 else shape
    if dtype != "uint8" or len(full) != 4 or full[-1] not in (1, 3) or 0 in full:
        raise ValueError(f"{key} is {dtype} {shape}, expected uint8 [N, H, W, C] with C = 1 or 3")
    return full


def _images(
    arrays: Mapping[str, Stored],
    image_keys: Mapping[str, str],
    shapes: Mapping[str, tuple[int, ...]],
    selections: Sequence[Selection],
    size: int | None,
) -> np.ndarray:
    """The selected images `[N, H, W, C]` in [0, 1], after a check of the memory that they need."""
    count = sum(max(0, part.stop - part.start) for part in selections)
    _, height, width, channels = shapes[selections[0].split]
    pixels_each = channels * (height * width if size is None else size * size)
    stored = {part.split: math.prod(shapes[part.split]) for part in selections}
    if (needed := sum(stored.values()) + 4 * count * pixels_each) > MAX_BYTES:
        raise ValueError(f"its images need {needed:,} bytes, the limit is {MAX_BYTES:,}")
    values = {name: arrays[image_keys[name]].read().reshape(shapes[name]) for name in stored}
    chosen = (image for part in selections for image in values[part.split][part.start : part.stop])
    return to_float((pixels.resize(image, size) for image in chosen), count)


def _labels(arrays: Mapping[str, Stored], images: str, *, count: int) -> np.ndarray:
    """The labels of `count` images in the array `images`."""
    key = images.removesuffix("images") + "labels"
    if key not in arrays:
        raise ValueError(f"it has no array {key}")
    if arrays[key].num_bytes > _MAX_LABEL_BYTES:
        raise ValueError(f"{key} is {arrays[key].dtype} {arrays[key].shape}, the limit is {_MAX_LABEL_BYTES:,} bytes")
    if arrays[key].shape[:1] != (count,):
        raise ValueError(f"{images} has {count:,} images for {key} {arrays[key].shape}")
    labels = arrays[key].read()
    whole = np.issubdtype(labels.dtype, np.integer)
    if labels.ndim not in (1, 2) or not (whole or np.issubdtype(labels.dtype, np.floating)):
        raise ValueError(f"{key} is {labels.dtype} {labels.shape}, expected integers [N], or floats [N] or [N, K]")
    if labels.ndim == 2 or not whole:
        if not np.all(np.isfinite(labels)):
            raise ValueError(f"{key} holds values that are not finite")
        if labels.ndim > 1 and not 1 <= labels.shape[1] <= MAX_CLASSES:
            raise ValueError(f"{key} has {labels.shape[1]:,} columns, expected 1 to {MAX_CLASSES:,}")
        return convert(labels.astype(np.float64), np.float32)
    if labels.size and (labels.min() < 0 or labels.max() > np.iinfo(np.int32).max):
        raise ValueError(f"{key} ranges from {labels.min()} to {labels.max()}, expected classes from 0")
    return labels.astype(np.int32)


def _normalization(arrays: Mapping[str, Stored], num_channels: int) -> Normalization:
    if "mean" not in arrays and "std" not in arrays:
        return NORMALIZATION["cifar10"] if num_channels == 3 else neutral_normalization(num_channels)
    if "mean" not in arrays or "std" not in arrays:
        raise ValueError("it has one of mean and std, expected both or neither")
    for key in ("mean", "std"):
        if arrays[key].shape != (num_channels,) or arrays[key].dtype not in ("float16", "float32", "float64"):
            raise ValueError(f"{key} is {arrays[key].dtype} {arrays[key].shape}, expected {num_channels} floats")
    mean, std = (arrays[key].read() for key in ("mean", "std"))
    if not (np.all((mean >= 0) & (mean <= 1)) and np.all((std > 0) & (std <= 1))):
        raise ValueError(f"mean {mean} or std {std} is outside [0, 1]; they are those of pixels in [0, 1]")
    return Normalization(tuple(mean.astype(float).tolist()), tuple(std.astype(float).tolist()))
