"""Tables of mixed records: two data sets of scikit-learn, with some columns discretized into categories.

Both sets are almost purely numeric. To obtain categories to invert, columns are discretized into bands, as a registry
might publish them; `TABLES` lists them, and nothing else is changed. Bounds, bands, means and standard deviations are
those of the whole table and assumed public, as in Vero et al. (2023).
"""

import itertools
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from jaxinvert.data.dataset import Dataset
from jaxinvert.schema import Column, Schema, blocks, encode


class Table(NamedTuple):
    """A table as a dataset of one-pixel images.

    Attributes:
      schema: its columns.
      dataset: `images [N, 1, 1, F]` and `labels [N]`; mean and standard deviation are 0 and 1 for one-hot entries.
    """

    schema: Schema
    dataset: Dataset


class Preparation(NamedTuple):
    """Preprocessing of a scikit-learn data set.

    Attributes:
      bands: ascending inner edges of a column's bands; an edge belongs to the band above it.
      classes: names of the classes; for a numeric target, two classes below and above its median.
    """

    bands: Mapping[str, tuple[float, ...]]
    classes: tuple[str, ...]


TABLES: Mapping[str, Preparation] = {
    "diabetes": Preparation(
        bands={
            "age": (30, 40, 50, 60, 70),
            "sex": (1.5,),
            "bmi": (18.5, 25, 30),
        },
        classes=("slower progression", "faster progression"),
    ),
    "wine": Preparation(
        bands={
            "alcohol": (12, 13, 14),
            "magnesium": (90, 100, 110),
            "color_intensity": (3, 5, 7),
            "proline": (500, 750, 1000),
        },
        classes=("cultivar 1", "cultivar 2", "cultivar 3"),
    ),
}
"""`diabetes`: 442 patients, 3 of 10 columns categorical; `wine`: 178 wines, 4 of 13."""


def load_table(name: str) -> Table:
    """Loads a table; never uses the network.

    Args:
      name: one of `TABLES`.

    Raises:
      ValueError: for another name.
      ImportError: without scikit-learn, which `pip install 'jaxinvert[tabular]'` installs.
    """
    if name not in TABLES:
        raise ValueError(f"no table {name!r}: expected {' or '.join(TABLES)}")
    try:
        from sklearn import datasets
    except ImportError as error:
        raise ImportError(f"the table {name!r} needs scikit-learn: pip install 'jaxinvert[tabular]'") from error
    loaded: Any = datasets.load_diabetes(scaled=False) if name == "diabetes" else datasets.load_wine()
    preparation = TABLES[name]
    values, target = np.asarray(loaded["data"], np.float64), np.asarray(loaded["target"])
    if len(preparation.classes) == 2:
        target = target > np.median(target)
    schema, columns = [], []
    for column, numbers in zip(loaded["feature_names"], values.T):
        edges = preparation.bands.get(column, ())
        schema.append(_banded(column, edges) if edges else Column(column, low=numbers.min(), high=numbers.max()))
        columns.append(np.digitize(numbers, edges) if edges else numbers)
    images = encode(tuple(schema), np.stack(columns, axis=1))
    mean, std = _normalization(tuple(schema), images)
    dataset = Dataset(name, images, target.astype(np.int32), len(preparation.classes), preparation.classes, mean, std)
    return Table(tuple(schema), dataset)


def _banded(name: str, edges: tuple[float, ...]) -> Column:
    inner = [f"{low:g} to {high:g}" for low, high in itertools.pairwise(edges)]
    return Column(name, (f"below {edges[0]:g}", *inner, f"from {edges[-1]:g}"))


def _normalization(schema: Schema, images: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    mean, std = images.mean(axis=(0, 1, 2)), images.std(axis=(0, 1, 2))
    for column, block in zip(schema, blocks(schema)):
        if column.categories:
            mean[block], std[block] = 0.0, 1.0
    return tuple(mean.tolist()), tuple(std.tolist())
