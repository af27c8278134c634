"""`Dataset`, labeled images in memory; split expressions and normalization constants."""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxinvert.data.tfds import import_tfds
from jaxinvert.readers.json_files import printable
from jaxinvert.types import Batch


class Dataset(NamedTuple):
    """Labeled images in memory.

    Attributes:
      name: the name or path it was loaded from.
      images: `[N, H, W, C]` float32 in [0, 1].
      labels: `[N]` int32 in [0, num_classes); or float32, `[N, K]` several or soft labels, `[N]` values to predict.
      num_classes: `K`, number of classes of the full set, also for a slice; of columns, for float labels.
      class_names: `K` names.
      mean: per channel, in [0, 1] pixels; a model of this set subtracts it from its inputs.
      std: per channel, in [0, 1] pixels; a model of this set divides its inputs by it. Both are published constants,
        known to every party, and never computed from the loaded images.
    """

    name: str
    images: np.ndarray
    labels: np.ndarray
    num_classes: int
    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def batch(self) -> Batch:
        """All examples as one private batch: `inputs [N, H, W, C]`, `labels [N]`."""
        return Batch(jnp.asarray(self.images), jnp.asarray(self.labels))


class Normalization(NamedTuple):
    """Per-channel mean and standard deviation, in [0, 1] pixels."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


NORMALIZATION: Mapping[str, Normalization] = {
    "cifar10": Normalization((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100": Normalization((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    "mnist": Normalization((0.1307,), (0.3081,)),
    "fashion_mnist": Normalization((0.2860,), (0.3530,)),
}
"""Statistics of the official training splits, rounded as in the literature."""


def neutral_normalization(num_channels: int) -> Normalization:
    """Returns mean 0.5 and standard deviation 0.25: typical of natural photographs, not fitted to any data."""
    return Normalization((0.5,) * num_channels, (0.25,) * num_channels)


_MAX_TERMS = 100  # TFDS adds them up recursively


class Selection(NamedTuple):
    """Examples `start, ..., stop - 1` of the split called `split`."""

    split: str
    start: int
    stop: int


def select(spec: str, lengths: Mapping[str, int]) -> tuple[Selection, ...]:
    """Resolves a TFDS split expression against the available splits.

    Prepared sets, folders and npz files share this function, so they accept the same expressions and fail with the
    same message.

    Args:
      spec: such as `"test"`, `"train[:100]"`, `"train[50%:]"`, `"train+test[:10]"`, `"all"`; see
        https://www.tensorflow.org/datasets/splits.
      lengths: the number of examples of each split.

    Returns:
      The ranges to read, in order, with at least one example in total.

    Raises:
      ValueError: the expression is malformed, names a split that does not exist, exceeds its length, or selects
        nothing.
    """
    if (terms := spec.count("+") + 1) > _MAX_TERMS:
        raise ValueError(f"split={spec[:60] + '...'!r} has {terms:,} terms, expected at most {_MAX_TERMS}")
    tfds = import_tfds()
    infos = {
        name: tfds.core.SplitInfo(name=name, shard_lengths=[length], num_bytes=0) for name, length in lengths.items()
    }
    try:
        absolute = tfds.core.ReadInstruction.from_spec(spec).to_absolute(infos)
    except (ValueError, AssertionError, KeyError, NotImplementedError, TypeError) as error:
        known = ", ".join(f"{name} ({length})" for name, length in lengths.items())
        reason = str(error).splitlines()[0] if str(error) else "malformed"
        raise ValueError(f"split={spec!r} cannot be read; the splits are {known}: {reason}") from error
    selections = tuple(
        Selection(part.splitname, part.from_ or 0, lengths[part.splitname] if part.to is None else part.to)
        for part in absolute
    )
    if sum(max(0, part.stop - part.start) for part in selections) == 0:
        raise ValueError(f"split={spec!r} selects no example; the splits are {dict(lengths)}")
    return selections


def to_float(images: Iterable[np.ndarray], count: int) -> np.ndarray:
    """Stacks uint8 `[H, W, C]` images to float32 `[N, H, W, C]` in [0, 1], one image at a time.

    Args:
      images: at least one.
      count: `N`.

    Raises:
      ValueError: if their shapes differ.
    """
    floats: np.ndarray | None = None
    for i, image in enumerate(images):
        if floats is None:
            floats = np.empty((count, *image.shape), np.float32)
        if image.shape != floats.shape[1:]:
            raise ValueError(f"its images have different shapes, such as {floats.shape[1:]} and {image.shape}")
        np.divide(image, np.float32(255), out=floats[i])
    assert floats is not None
    return floats


_MAX_NAME = 200


def checked_names(names: Iterable[object]) -> tuple[str, ...]:
    """Class names from a file as text that can be printed and written: controls and lone surrogates are escaped."""
    return tuple(printable(str(name), limit=_MAX_NAME) for name in names)
