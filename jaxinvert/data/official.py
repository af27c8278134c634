"""Prepares official data sets without TensorFlow, using TFDS's builders and pure-Python parsing.

A subclass keeps the official builder's name, version, features, URLs and checksums, and replaces only
`_split_generators`: `dl.download` instead of `download_and_extract`, `archives` for the parsing, PNG bytes for
images. Records and their order equal those of a preparation with TensorFlow.
"""

import functools
import hashlib
import os
import pathlib
import shutil
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

import numpy as np

from jaxinvert.data import archives, pixels
from jaxinvert.data.prepared import OFFICIAL_NAMES, PHOTOS_DIR, find_prepared
from jaxinvert.data.tfds import data_root, import_tfds
from jaxinvert.files import expanded

_IDX_FILES = {
    "train": ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"),
    "test": ("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"),
}
_FASHION_MTIMES = {"train": 1504176606, "t10k": 1504176627}
"""Time stamps in the official gzip headers; Debian's package `dataset-fashion-mnist` ships the files without them."""


def prepare(
    name: str,
    *,
    source: str | os.PathLike[str] | None = None,
    data_dir: str | os.PathLike[str] | None = None,
) -> pathlib.Path:
    """Prepares an official set for `load`, unless it is prepared already.

    Args:
      name: `"cifar10"`, `"cifar100"`, `"mnist"` or `"fashion_mnist"`; `"photos"` is always prepared.
      source: a folder with the official files under their official names, used instead of the network. For
        `fashion_mnist`, Debian's `/usr/share/datasets/fashion-mnist` also works. `None` downloads.
      data_dir: folder of the prepared sets; `None` is `$TFDS_DATA_DIR`, else `~/tensorflow_datasets`.

    Returns:
      The folder of the prepared set.

    Raises:
      ValueError: `name` is not such a set, or an official file is corrupt: its SHA-256 is checked before it is read.
      FileNotFoundError: `source` lacks a file; the message lists the required files.
      ConnectionError: the download failed; the message lists the files to fetch by other means.
    """
    if name == "photos":
        return PHOTOS_DIR
    if name not in OFFICIAL_NAMES:
        raise ValueError(f"name={name!r} cannot be prepared, expected one of {', '.join(OFFICIAL_NAMES)}")
    done = find_prepared(name, data_dir)
    if done is not None:
        return done
    import requests

    tfds = import_tfds()
    builder = builder_class(name)(data_dir=data_root(data_dir), file_format="array_record")
    with tempfile.TemporaryDirectory() as scratch:
        if source is None:
            manual_dir = None
            _check_network(name, builder.url_infos)
        else:
            manual_dir = _verified(pathlib.Path(source), name, builder.url_infos, pathlib.Path(scratch))
        config = tfds.download.DownloadConfig(manual_dir=manual_dir)
        try:
            builder.download_and_prepare(download_config=config)
        except (tfds.download.DownloadError, requests.RequestException) as error:
            raise _no_download(name, builder.url_infos, error) from error
        except tfds.download.download_manager.NonMatchingChecksumError as error:
            raise ValueError(f"the download of {name} is not the official file: {error}") from error
    return pathlib.Path(builder.data_dir)


@functools.cache
def builder_class(name: str) -> Any:
    """Returns a subclass of TFDS's builder of `name` that works without TensorFlow; TFDS's registry is unchanged."""
    tfds = import_tfds()
    from tensorflow_datasets.image_classification import cifar, mnist

    official: Any = {
        "cifar10": cifar.Cifar10,
        "cifar100": cifar.Cifar100,
        "mnist": mnist.MNIST,
        "fashion_mnist": mnist.FashionMNIST,
    }[name]

    def split_generators_cifar(self: Any, dl_manager: Any) -> dict[str, Iterator[Any]]:
        (url,) = self.url_infos
        content = archives.read_cifar(pathlib.Path(dl_manager.download(url)), archives.CIFAR_LAYOUTS[name])
        for key, class_names in content.class_names.items():
            self.info.features[key].names = class_names
        return {
            split: cifar_examples(split, examples.images, examples.labels)
            for split, examples in content.splits.items()
        }

    def split_generators_idx(self: Any, dl_manager: Any) -> dict[str, Iterator[Any]]:
        urls = {url.rsplit("/", 1)[-1]: url for url in self.url_infos}
        paths = {file: pathlib.Path(path) for file, path in dl_manager.download(urls).items()}
        return {split: idx_examples(*(paths[file] for file in files)) for split, files in _IDX_FILES.items()}

    with tfds.core.registered.skip_registration():
        return type(
            official.__name__,
            (official,),
            {
                "__doc__": official.__doc__,
                "__module__": __name__,
                "name": name,
                "url_infos": dict(official.url_infos),
                "_split_generators": (split_generators_cifar if name.startswith("cifar") else split_generators_idx),
            },
        )


def cifar_examples(split: str, images: np.ndarray, labels: dict[str, np.ndarray]) -> Iterator[Any]:
    """Yields one CIFAR split as TFDS examples, with the official keys, because TFDS shuffles by key."""
    for index, image in enumerate(images):
        example = {key: int(values[index]) for key, values in labels.items()}
        yield index, {"id": f"{split}_{index:05d}", "image": pixels.encode_png(image), **example}


def idx_examples(images_path: pathlib.Path, labels_path: pathlib.Path) -> Iterator[Any]:
    """Yields one MNIST-like split as TFDS examples, under the official keys.

    Raises:
      ValueError: a file is damaged or has the wrong shape, or the two files disagree.
    """
    images, labels = archives.read_idx(images_path), archives.read_idx(labels_path)
    if images.shape[1:] != (28, 28) or labels.shape != images.shape[:1]:
        raise ValueError(
            f"{images_path} and {labels_path} hold {images.shape} images and {labels.shape} labels, "
            "expected [N, 28, 28] and [N]"
        )
    for index, (image, label) in enumerate(zip(images, labels)):
        yield index, {"image": pixels.encode_png(image[..., None]), "label": int(label)}


def _check_network(name: str, url_infos: Any) -> None:
    """Requests the first file's header once: without network, TFDS itself would retry for minutes."""
    request = urllib.request.Request(next(iter(url_infos)), method="HEAD")
    try:
        urllib.request.urlopen(request, timeout=20).close()
    except urllib.error.HTTPError:
        pass  # the server answers; the download itself gives the better error message
    except OSError as error:
        raise _no_download(name, url_infos, error) from error


def _no_download(name: str, url_infos: Any, error: Exception) -> ConnectionError:
    listing = "\n".join(f"    {url}" for url in url_infos)
    return ConnectionError(
        f"could not download {name}: {error}\nFetch these files by other means into a folder DIR\n"
        f"{listing}\nand run: jaxinvert data prepare {name} --from DIR"
    )


def _verified(folder: pathlib.Path, name: str, url_infos: Any, scratch: pathlib.Path) -> pathlib.Path:
    """Verifies checksums; returns the folder of the official files: `folder`, or `scratch` after a repair."""
    expected = {info.filename: info.checksum for info in url_infos.values()}
    folder = expanded(folder)
    missing = [file for file in expected if not (folder / file).is_file()]
    if missing:
        raise FileNotFoundError(f"{folder} lacks {', '.join(missing)}; for {name} it must hold {', '.join(expected)}")
    restored = {}
    for file, checksum in expected.items():
        with open(folder / file, "rb") as stream:
            if hashlib.file_digest(stream, "sha256").hexdigest() == checksum:
                continue
        data = _restore_fashion(folder / file) if name == "fashion_mnist" else b""
        if archives.sha256(data) != checksum:
            raise ValueError(
                f"{folder / file} is not the official file: its SHA-256 differs from {checksum}. "
                "It is corrupt, truncated or another version; fetch it again."
            )
        restored[file] = data
    if not restored:
        return folder
    for file in expected:
        if file in restored:
            (scratch / file).write_bytes(restored[file])
        else:
            shutil.copy(folder / file, scratch / file)
    return scratch


def _restore_fashion(path: pathlib.Path) -> bytes:
    """Returns Debian's copy of a Fashion-MNIST file with its original header; empty bytes for any other file."""
    try:
        return archives.restore_gzip_header(
            path.read_bytes(), stem=path.stem, mtime=_FASHION_MTIMES[path.name.split("-")[0]]
        )
    except ValueError:
        return b""
