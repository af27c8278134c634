"""Tabular records as one-pixel images: a schema of continuous and categorical columns, and its encoding.

A record becomes `[1, 1, F]` numbers in [0, 1], its columns one after the other: a continuous column is
`(value - low) / (high - low)` by public bounds, a categorical one a block of one-hot numbers. What is written for
images `[B, H, W, C]` thereby holds for records, whose "channels" a model normalizes one by one.
"""

import itertools
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike


class Column(NamedTuple):
    """One column of a table: categorical if it has categories, else continuous.

    Attributes:
      name: for people.
      categories: their names, two or more; empty for a continuous column.
      low: public lower bound of a continuous column, in its own unit.
      high: public upper bound, above `low`.
    """

    name: str
    categories: tuple[str, ...] = ()
    low: float = 0.0
    high: float = 1.0

    @property
    def width(self) -> int:
        """How many numbers encode it."""
        return len(self.categories) or 1


Schema = tuple[Column, ...]
"""The columns of a table, in order."""


def encoded_width(schema: Schema) -> int:
    """`F`: how many numbers encode a record."""
    return sum(column.width for column in schema)


def blocks(schema: Schema) -> tuple[slice, ...]:
    """Where each column stands among the `F` numbers.

    >>> blocks((Column("age", low=0, high=99), Column("sex", ("female", "male")), Column("height", low=0, high=3)))
    (slice(0, 1, None), slice(1, 3, None), slice(3, 4, None))
    """
    ends = list(itertools.accumulate((column.width for column in schema), initial=0))
    return tuple(slice(start, stop) for start, stop in itertools.pairwise(ends))


def encode(schema: Schema, table: ArrayLike) -> np.ndarray:
    """A table as images of one pixel.

    Args:
      schema: its columns.
      table: `[N, columns]` numbers: values of continuous columns, indices of categories.

    Returns:
      `[N, 1, 1, F]` float32 in [0, 1].

    Raises:
      ValueError: for another number of columns, a value outside of its column's bounds, or an index that is none;
        the message names the column.
    """
    table = np.asarray(table, np.float64)
    if table.ndim != 2 or table.shape[1] != len(schema):
        raise ValueError(
            f"table has shape {table.shape}, expected [N, {len(schema)}], one column for each of the schema"
        )
    parts = []
    for column, values in zip(schema, table.T):
        if column.categories:
            parts.append(values[:, None] == np.arange(column.width))
            valid = parts[-1].any(axis=1)
        else:
            parts.append((values[:, None] - column.low) / (column.high - column.low))
            valid = (values >= column.low) & (values <= column.high)
        if not valid.all():
            expected = f"[0, {column.width})" if column.categories else f"[{column.low:g}, {column.high:g}]"
            raise ValueError(f"column {column.name!r} holds {values[~valid][0]:g}, expected a value in {expected}")
    return np.concatenate(parts, axis=1)[:, None, None].astype(np.float32)


def decode(schema: Schema, inputs: ArrayLike) -> np.ndarray:
    """The table behind (soft) encoded records: each column's value, or the index of its largest number.

    Args:
      schema: the columns.
      inputs: `[N, 1, 1, F]`.

    Returns:
      `[N, columns]` float64; NaN in a column whose numbers are not all finite.

    Raises:
      ValueError: for inputs of another shape.
    """
    inputs = np.asarray(inputs, np.float64)
    if inputs.ndim != 4 or inputs.shape[1:] != (1, 1, encoded_width(schema)):
        raise ValueError(f"inputs have shape {inputs.shape}, expected [N, 1, 1, {encoded_width(schema)}]")
    table = np.empty((len(inputs), len(schema)))
    for number, (column, block) in enumerate(zip(schema, blocks(schema))):
        encoded = inputs[:, 0, 0, block]
        found = (
            encoded.argmax(axis=1) if column.categories else column.low + encoded[:, 0] * (column.high - column.low)
        )
        table[:, number] = np.where(np.isfinite(encoded).all(axis=1), found, np.nan)
    return table
