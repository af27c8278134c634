"""Data sets as NumPy arrays of images in [0, 1]: embedded photos, official sets, folders, npz files; no TensorFlow.

- `photos`: ten scenes from six public-domain or CC0 photographs, shipped with the package.
- `cifar10`, `cifar100`, `mnist`, `fashion_mnist`: official sets, after
  `jaxinvert data prepare NAME [--from DIR]`.
- any folder of PNG, JPEG, WebP or BMP files; any `.npz` file with `SPLIT_images` and `SPLIT_labels`.
- tables of mixed records, by `load_table` (in `tabular`): one-pixel images.
"""

import os

from jaxinvert.data.dataset import Dataset
from jaxinvert.data.folders import load_folder
from jaxinvert.data.npz import load_npz
from jaxinvert.data.official import prepare
from jaxinvert.data.prepared import OFFICIAL_NAMES, PARTS, load_official, load_photos
from jaxinvert.data.tabular import Table, load_table
from jaxinvert.files import expanded

__all__ = ["PARTS", "Dataset", "Table", "load", "load_table", "names", "prepare"]


def names() -> tuple[str, ...]:
    """Returns the data set names that `load` accepts: the embedded set first, then the official ones."""
    return ("photos", *OFFICIAL_NAMES)


def load(
    name_or_folder: str | os.PathLike[str],
    *,
    split: str = "test",
    size: int | None = None,
    data_dir: str | os.PathLike[str] | None = None,
) -> Dataset:
    """Loads labeled images into memory; never uses the network.

    | source | splits | own size | normalization |
    | --- | --- | --- | --- |
    | `"photos"` | `test` (10); at 32 px `train` (237), `private` (88), `public` (149) | 32, 224 | 0.5 / 0.25 |
    | `"cifar10"`, `"cifar100"` | `train` (50,000), `test` (10,000) | 32 | of the training split |
    | `"mnist"`, `"fashion_mnist"` | `train` (60,000), `test` (10,000) | 28, gray | of the training split |
    | a folder | `test`, or its `train`, `test` ... subfolders | 32 | 0.5 / 0.25 |
    | `FILE.npz` | its `SPLIT_images` | its own | stored, else CIFAR-10's (0.5 / 0.25 for gray) |

    The ten test photos are one per class, six whole photographs followed by four details. `train` is tiles of the
    photographs: those of two photographs are `private`, those of the other four `public`. See `load_folder` and
    `load_npz` for their layouts. A name takes precedence over a folder of that name: write `./mnist` for the folder.

    Args:
      name_or_folder: one of `names()`, a folder, or an `.npz` file.
      split: a TFDS split expression: `"test"`, `"train[:100]"`, `"train[50%:]"`, `"train+test"`.
      size: side in pixels to resample to (Lanczos), or `None` for the source's own.
      data_dir: where official sets were prepared; `None` is `$TFDS_DATA_DIR`, else `~/tensorflow_datasets`.

    Returns:
      `Dataset` with `images [N, H, W, C]` float32 in [0, 1] and `labels [N]` int32.

    Raises:
      FileNotFoundError: an official set is not prepared (the message gives the command to prepare it), or there is no
        such folder or file.
      ValueError: the split, the size or a file is invalid; the message names it.

    Example:
      >>> photos = load("photos", split="test[:3]")
      >>> photos.images.shape, photos.num_classes
      ((3, 32, 32, 3), 10)
      >>> [photos.class_names[label] for label in photos.labels]
      ['astronaut', 'cat', 'coffee']
    """
    if size is not None and not 1 <= size <= 4096:
        raise ValueError(f"size={size}, expected 1 to 4096 pixels")
    name = os.fspath(name_or_folder)
    if not name:  # would be the working directory
        raise ValueError(f"the data set's name is empty, expected {', '.join(names())}, a folder or an .npz file")
    if name == "photos":
        return load_photos(split=split, size=size)
    if name in OFFICIAL_NAMES:
        return load_official(name, split=split, size=size, data_dir=data_dir)
    path = expanded(name)
    if path.is_dir():
        return load_folder(path, split=split, size=size)
    if path.is_file() and path.suffix == ".npz":
        return load_npz(path, split=split, size=size)
    if path.exists():
        raise ValueError(f"{path} is neither a folder of images nor an .npz file")
    raise FileNotFoundError(f"no dataset {name!r}: expected {', '.join(names())}, a folder of images or an .npz file")
