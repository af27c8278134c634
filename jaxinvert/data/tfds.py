"""Lazy import of tensorflow-datasets, and the folder of its prepared sets."""

import os
import pathlib
from types import ModuleType

from jaxinvert.files import expanded


def import_tfds() -> ModuleType:
    """Imports tensorflow-datasets on first use: the import takes a third of a second."""
    import tensorflow_datasets

    return tensorflow_datasets


def data_root(data_dir: str | os.PathLike[str] | None) -> pathlib.Path:
    """Returns the folder of prepared sets: `data_dir`, else `$TFDS_DATA_DIR`, else `~/tensorflow_datasets`."""
    if data_dir is None:
        data_dir = os.environ.get("TFDS_DATA_DIR") or pathlib.Path("~", "tensorflow_datasets")
    return expanded(data_dir)
