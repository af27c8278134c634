"""tensorflow-datasets: imported when first needed, and the folder that it keeps prepared sets in."""

import os
import pathlib
from types import ModuleType


def import_tfds() -> ModuleType:
    """Imports tensorflow-datasets when it is first needed: it takes a third of a second."""
    import tensorflow_datasets

    return tensorflow_datasets


def data_root(data_dir: str | os.PathLike[str] | None) -> pathlib.Path:
    """Returns where prepared sets live: `data_dir`, else `$TFDS_DATA_DIR`, else `~/tensorflow_datasets`."""
    if data_dir is None:
        data_dir = os.environ.get("TFDS_DATA_DIR") or pathlib.Path("~", "tensorflow_datasets")
    return pathlib.Path(data_dir).expanduser()
