"""Loads a folder of image files as a dataset."""

import os
import pathlib

import numpy as np

from jaxinvert.data import pixels
from jaxinvert.data.dataset import Dataset, checked_names, neutral_normalization, select, to_float

SPLIT_NAMES = ("train", "validation", "val", "test")
DEFAULT_SIZE = 32
MAX_FILES = 100_000
"""A folder with more image files is rejected: it is probably the wrong folder."""
MAX_ENTRIES = 4 * MAX_FILES
"""A folder with more files and folders of all kinds, at all depths, is rejected while it is listed."""
MAX_BYTES = 8 << 30
"""Limit on the decoded pixels (float32) of one call; select a slice to stay below it."""


def load_folder(folder: pathlib.Path, *, split: str, size: int | None) -> Dataset:
    """Loads PNG, JPEG, WebP and BMP files from a folder, sorted by path.

    | layout | splits | classes |
    | --- | --- | --- |
    | `DIR/a.png` | `test` | one per file, named after it |
    | `DIR/cat/a.png` | `test` | the subfolders, sorted |
    | `DIR/train/cat/a.png`, `DIR/test/cat/b.png` | `train`, `test` | the subfolders of all splits, sorted |
    | `DIR/train/a.png`, `DIR/test/b.png` | `train`, `test` | one per file name, over all splits |

    Subfolders are splits only if all of them are named `train`, `validation`, `val` or `test`; else they are classes.
    If there is a single class, an unused second one is added, because the softmax loss over one class has no
    gradient. Each image is turned upright, center-cropped to a square and resampled to `size` (`pixels.read_square`).
    Hidden files and files of other types are ignored. Symbolic links inside the folder are not followed, so nothing
    outside it is read.

    Args:
      folder: the folder.
      split: a TFDS split expression; only the files it selects are decoded.
      size: side in pixels, 32 if `None`.

    Raises:
      ValueError: no images, images both next to and inside class folders, too many files or pixels, or a file that
        cannot be read (the message names it).
    """
    size = DEFAULT_SIZE if size is None else size
    roots = _split_roots(folder)
    files = {name: paths for name, root in roots.items() if (paths := list_images(root))}
    if not files:
        raise ValueError(f"{folder} holds no {', '.join(pixels.SUFFIXES)} file (symbolic links are not followed)")
    # One list of classes for all splits: labels of train and test must agree.
    names_of = {split_name: _class_names(roots[split_name], paths) for split_name, paths in files.items()}
    in_classes = {len(path.relative_to(roots[s]).parts) > 1 for s, paths in files.items() for path in paths}
    beside_splits = "test" not in roots or roots["test"] != folder
    if len(in_classes) > 1 or (beside_splits and any(map(_is_image, folder.iterdir()))):
        raise ValueError(f"{folder} holds images both next to and inside its subfolders; expected one or the other")
    class_names = sorted({name for names in names_of.values() for name in names})
    index = {name: label for label, name in enumerate(class_names)}
    selections = select(split, {name: len(paths) for name, paths in files.items()})
    chosen = [
        (files[part.split][i], index[names_of[part.split][i]])
        for part in selections
        for i in range(part.start, part.stop)
    ]
    if len(chosen) * size * size * 3 * 4 > MAX_BYTES:
        raise ValueError(
            f"{len(chosen):,} images at {size} px exceed {MAX_BYTES >> 30} GiB; "
            "select fewer, as in split='test[:1000]'"
        )
    if len(class_names) == 1:
        class_names.append("(unused)")
    normalization = neutral_normalization(3)
    return Dataset(
        name=str(folder),
        images=to_float((pixels.read_square(path, size) for path, _ in chosen), len(chosen)),
        labels=np.array([label for _, label in chosen], np.int32),
        num_classes=len(class_names),
        class_names=checked_names(class_names),
        mean=normalization.mean,
        std=normalization.std,
    )


def list_images(folder: pathlib.Path) -> list[pathlib.Path]:
    """Lists the image files below a folder, sorted by path; skips hidden entries and symbolic links.

    Raises:
      ValueError: there are more than `MAX_FILES`, or more than `MAX_ENTRIES` of everything.
    """
    found: list[pathlib.Path] = []
    num_entries = 0
    for root, dirs, names in os.walk(folder, followlinks=False):
        num_entries += len(dirs) + len(names)
        if num_entries > MAX_ENTRIES:
            raise ValueError(f"{folder} holds more than {MAX_ENTRIES:,} files and folders; name a smaller folder")
        dirs[:] = [name for name in dirs if not name.startswith(".")]
        for name in names:
            path = pathlib.Path(root, name)
            if _is_image(path):
                found.append(path)
        if len(found) > MAX_FILES:
            raise ValueError(f"{folder} holds more than {MAX_FILES:,} images; name a smaller folder")
    return sorted(found, key=lambda path: path.relative_to(folder).parts)


def _class_names(root: pathlib.Path, paths: list[pathlib.Path]) -> list[str]:
    """Returns each file's class: its first subfolder, or its own name if it is in no subfolder."""
    return [path.relative_to(root).parts[0] for path in paths]


def _split_roots(folder: pathlib.Path) -> dict[str, pathlib.Path]:
    """Returns the folder of each split: subfolders if all are named like splits, else `folder` itself as `test`."""
    subfolders = {
        path.name: path
        for path in folder.iterdir()
        if path.is_dir() and not path.is_symlink() and not path.name.startswith(".")
    }
    if subfolders and subfolders.keys() <= set(SPLIT_NAMES):
        return {name: subfolders[name] for name in SPLIT_NAMES if name in subfolders}
    return {"test": folder}


def _is_image(path: pathlib.Path) -> bool:
    """Whether a path is a visible regular file with an image suffix; no link, no pipe (which would block)."""
    named = path.suffix.lower() in pixels.SUFFIXES and not path.name.startswith(".")
    return named and path.is_file() and not path.is_symlink()
