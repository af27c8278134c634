"""Loads data sets prepared by TFDS: the embedded photos, and official sets in the TFDS data folder."""

import os
import pathlib
import re
import shlex
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np

from jaxinvert.data import pixels
from jaxinvert.data.dataset import NORMALIZATION, Dataset, neutral_normalization, select, to_float
from jaxinvert.data.tfds import data_root, import_tfds

PHOTOS_DIR = pathlib.Path(__file__).parent / "photos"
"""The embedded set: `32/` and `224/`, each a prepared TFDS folder, and `LICENSES`."""
PARTS = MappingProxyType(
    {
        "private": frozenset({"astronaut", "face", "shuttle", "helmet", "cat", "eye"}),
        "public": frozenset({"coffee", "rocket", "retina", "galaxies"}),
    }
)
"""Splits of the embedded photos that divide the tiles of "train" by photograph, each with its classes: "private", the
victims of an audit, and "public", what the shipped generator and the attacker's public images are from."""
_NO_PARTS: Mapping[str, frozenset[str]] = MappingProxyType({})
OFFICIAL_NAMES = ("cifar10", "cifar100", "mnist", "fashion_mnist")
_READ_CHUNK = 1000
_NAME = re.compile(r"[A-Za-z_]\w*")


def find_prepared(name: str, data_dir: str | os.PathLike[str] | None) -> pathlib.Path | None:
    """Returns the folder of an official set's newest prepared version, or `None`; never uses the network."""
    versions = {}
    for folder in (data_root(data_dir) / name).glob("*.*.*"):
        parts = folder.name.split(".")
        if all(part.isdigit() for part in parts) and (folder / "dataset_info.json").is_file():
            versions[tuple(map(int, parts))] = folder
    return versions[max(versions)] if versions else None


def load_official(name: str, *, split: str, size: int | None, data_dir: str | os.PathLike[str] | None) -> Dataset:
    """Loads a prepared official set.

    Args:
      name: one of `OFFICIAL_NAMES`.
      split: a TFDS split expression.
      size: side in pixels to resample to, or `None` for the set's own.
      data_dir: see `data_root`.

    Raises:
      FileNotFoundError: the set is not prepared; the message gives the command to prepare it.
      ValueError: the prepared files cannot be read without TensorFlow, or `split` does not exist.
    """
    folder = find_prepared(name, data_dir)
    if folder is None:
        # For a data folder other than TFDS's default, the command needs the same environment variable.
        prefix = "" if data_dir is None else f"TFDS_DATA_DIR={shlex.quote(str(data_root(data_dir)))} "
        command = f"{prefix}jaxinvert data prepare {name}"
        raise FileNotFoundError(
            f"{name} is not prepared in {data_root(data_dir)}. Run\n    {command}\n"
            f"or, with the official files in a folder DIR and no network,\n    {command} --from DIR"
        )
    return _read(folder, name=name, split=split, size=size)


def load_photos(*, split: str, size: int | None) -> Dataset:
    """Loads the embedded photos: the 32-px set for `size` 32 or `None`, else the 224-px one resampled."""
    folder = PHOTOS_DIR / ("32" if size in (None, 32) else "224")
    try:
        return _read(folder, name="photos", split=split, size=size, parts=PARTS if folder.name == "32" else {})
    except ValueError as error:
        tiles = next((name for name in ("train", *PARTS) if name in split), None)
        if folder.name == "224" and tiles:
            raise ValueError(f"photos has the split {tiles!r} at 32 px only, not at size={size}") from error
        raise


def _read(
    folder: pathlib.Path, *, name: str, split: str, size: int | None, parts: Mapping[str, frozenset[str]] = _NO_PARTS
) -> Dataset:
    """Reads a split of a prepared set; `parts` names the classes of further splits, which are parts of "train"."""
    tfds = import_tfds()
    builder: Any = tfds.builder_from_directory(folder)
    file_format = builder.info.file_format.value
    # Parquet also works without TensorFlow, but TFDS 4.9.10 loses examples when it writes and reads it.
    if file_format != "array_record":
        raise ValueError(
            f"{folder} was prepared as {file_format}, not as array_record. Prepare it in another folder:\n"
            f"    TFDS_DATA_DIR=FOLDER jaxinvert data prepare {name}"
        )
    feature = builder.info.features["label"]

    def source(split: str) -> Any:
        # TFDS could decode as well, but logs on every load that OpenCV is missing.
        return builder.as_data_source(split=split, decoders={"image": tfds.decode.SkipDecoding()})

    lengths = {key: info.num_examples for key, info in builder.info.splits.items()}
    rows_of: dict[str, np.ndarray] = {}
    if parts and not set(_NAME.findall(split)) <= {*lengths, "all"}:  # also of a misspelled one, for the message
        names = np.array(feature.names)[[example["label"] for example in source("train")]]
        rows_of = {part: np.flatnonzero(np.isin(names, [*classes])) for part, classes in parts.items()}
    selections = select(split, {**lengths, **{part: len(rows) for part, rows in rows_of.items()}})
    images, labels = [], []
    for part in selections:
        stored = source("train" if part.split in rows_of else part.split)
        for start in range(part.start, part.stop, _READ_CHUNK):
            rows = range(start, min(start + _READ_CHUNK, part.stop))
            if part.split in rows_of:
                rows = rows_of[part.split][rows].tolist()
            for example in stored.__getitems__(list(rows)):
                images.append(pixels.resize(pixels.decode_png(example["image"]), size))
                labels.append(example["label"])
    floats = to_float(images)
    normalization = NORMALIZATION.get(name) or neutral_normalization(floats.shape[-1])
    return Dataset(
        name=name,
        images=floats,
        labels=np.asarray(labels, np.int32),
        num_classes=feature.num_classes,
        class_names=tuple(feature.names),
        mean=normalization.mean,
        std=normalization.std,
    )
