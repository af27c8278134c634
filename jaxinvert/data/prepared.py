"""Loads data sets prepared by TFDS: the embedded photos, and official sets in the TFDS data folder."""

import os
import pathlib
import re
import reprlib
import shlex
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np

from jaxinvert.data import pixels
from jaxinvert.data.dataset import NORMALIZATION, Dataset, checked_names, neutral_normalization, select, to_float
from jaxinvert.data.tfds import data_root, import_tfds
from jaxinvert.readers.json_files import printable, read_json
from jaxinvert.readers.limits import MAX_CLASSES

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
MAX_BYTES = 8 << 30
"""Limit on the memory of a call, in which a pixel is there as uint8 and as float32."""
_BYTES_PER_PIXEL = 5
_MAX_DESCRIPTION_BYTES = 1 << 20
_MODULES = "tensorflow_datasets.core.features."
_IN_A_RECORD = MappingProxyType(
    {
        "image": "image_feature.Image",
        "classLabel": "class_label_feature.ClassLabel",
        "text": "text_feature.Text",
    }
)
_FEATURES = MappingProxyType({"featuresDict": "features_dict.FeaturesDict"})
"""Content of a feature in `features.json` -> its class: those that `prepare` writes, and no others."""
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
      ValueError: the prepared files are damaged, cannot be read without TensorFlow, or hold other features than
        images, labels and text, since tensorflow-datasets would import the class that a file names; or `split` does
        not exist.
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
    try:
        _check_files(folder)
        return _read(folder, name=name, split=split, size=size)
    except ValueError:
        raise
    except Exception as error:  # tensorflow-datasets and Pillow raise anything for a damaged file
        raise ValueError(f"cannot read the prepared set {folder}: {printable(str(error))}") from error


def _check_files(folder: pathlib.Path) -> None:
    """Refuses descriptions of a prepared set that are too long or deep, or name classes that are not expected here.

    tensorflow-datasets imports the module of a class that `features.json` names, which would run any module's code.
    """
    for path in folder.iterdir():
        if not path.is_file():
            raise ValueError(f"cannot read the prepared set {folder}: {path.name} is not a regular file")
        if path.suffix == ".json":
            read_json(path, max_bytes=_MAX_DESCRIPTION_BYTES)
        elif path.suffix == ".txt" and (size := path.stat().st_size) > _MAX_DESCRIPTION_BYTES:
            raise ValueError(f"{path} has {size:,} bytes, the limit is {_MAX_DESCRIPTION_BYTES:,}")
    _check_feature(folder, read_json(folder / "features.json"), _FEATURES)


def _check_feature(folder: pathlib.Path, feature: Any, known: Mapping[str, str]) -> None:
    """Checks one feature of `features.json`, and those inside of it."""
    where = f"cannot read the prepared set {folder}: features.json"
    if not isinstance(feature, dict):
        raise ValueError(f"{where} holds {reprlib.repr(feature)}, expected a feature")
    kind = next((kind for kind in known if kind in feature), None)
    if kind is None or feature.keys() - {kind, "pythonClassName", "description"}:
        raise ValueError(f"{where} has a feature of {', '.join(feature)[:200]}, expected one of {', '.join(known)}")
    if (found := feature.get("pythonClassName")) != _MODULES + known[kind]:
        raise ValueError(f"{where} names the class {reprlib.repr(found)}, expected {_MODULES}{known[kind]}")
    if kind == "featuresDict":
        inner = feature[kind].get("features") if isinstance(feature[kind], dict) else None
        if not isinstance(inner, dict) or feature[kind].keys() != {"features"}:
            raise ValueError(f"{where} holds {reprlib.repr(feature[kind])}, expected features by name")
        for one in inner.values():
            _check_feature(folder, one, _IN_A_RECORD)


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
    count = sum(max(0, part.stop - part.start) for part in selections)
    for part in selections:
        stored = source("train" if part.split in rows_of else part.split)
        for start in range(part.start, part.stop, _READ_CHUNK):
            rows = range(start, min(start + _READ_CHUNK, part.stop))
            if part.split in rows_of:
                rows = rows_of[part.split][rows].tolist()
            for example in stored.__getitems__(list(rows)):
                image = pixels.resize(pixels.decode_png(example["image"]), size)
                if count * image.size * _BYTES_PER_PIXEL > MAX_BYTES or image.shape != (images or [image])[0].shape:
                    raise ValueError(
                        f"{folder} holds {count:,} images of which one is {image.shape}: too large, or mixed"
                    )
                images.append(image)
                labels.append(example["label"])
    floats = to_float(images, len(images))
    if not 0 <= min(labels) <= max(labels) < feature.num_classes <= MAX_CLASSES:
        raise ValueError(
            f"{folder} holds labels from {min(labels)} to {max(labels)} of {feature.num_classes} classes"
        )
    normalization = NORMALIZATION.get(name) or neutral_normalization(floats.shape[-1])
    return Dataset(
        name=name,
        images=floats,
        labels=np.asarray(labels, np.int32),
        num_classes=feature.num_classes,
        class_names=checked_names(feature.names),
        mean=normalization.mean,
        std=normalization.std,
    )
