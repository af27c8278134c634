"""Metrics for reconstructed tabular records: accuracy per column and per record, and baseline guesses.

Only an audit may call these functions: they need the true records. A category is correct if it equals the true one, a
continuous value if it is within `TOLERANCE` standard deviations of the truth, as in Vero, Balunovic, Dimitrov,
Vechev: TabLeak: Tabular Data Leakage in Federated Learning. ICML 2023, arXiv:2210.01785.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import scipy  # whose modules are imported when they are used: this takes long
from numpy.typing import ArrayLike

from jaxinvert.schema import Schema

TOLERANCE = 0.319
"""Tolerance for a continuous value, in standard deviations of its column."""


class RecordQuality(NamedTuple):
    """Scores of one batch, in the order of the true records.

    Attributes:
      correct: `[B, columns]` bool.
      permutation: `[B]` integers: `permutation[i]` is the reconstruction matched to true record `i`.
    """

    correct: np.ndarray
    permutation: np.ndarray


def tolerances(schema: Schema, table: ArrayLike) -> np.ndarray:
    """Maximal absolute error of a correct value in each column, `[columns]`: 0 for categories.

    Args:
      schema: the columns.
      table: `[N, columns]`, the population, which defines the standard deviations.
    """
    return np.array([not column.categories for column in schema]) * TOLERANCE * np.std(np.asarray(table), axis=0)


def evaluate_records(found: ArrayLike, truth: ArrayLike, tolerance: ArrayLike) -> RecordQuality:
    """Matches reconstructed records one-to-one to the true ones, maximizing correct columns, and scores them.

    Args:
      found: `[B, columns]`, in any order, as returned by `records.decode`; NaN counts as wrong.
      truth: `[B, columns]`.
      tolerance: `[columns]`, see `tolerances`.

    Raises:
      ValueError: for different shapes.
    """
    found, truth = np.asarray(found, np.float64), np.asarray(truth, np.float64)
    if found.shape != truth.shape or truth.ndim != 2:
        raise ValueError(
            f"found and truth must have the same shape [B, columns], got {found.shape} and {truth.shape}"
        )
    slack = np.asarray(tolerance) + 1e-6 * np.maximum(1.0, np.abs(truth))[:, None]  # records are encoded in float32
    correct = np.abs(found[None, :] - truth[:, None]) <= slack
    rows, permutation = scipy.optimize.linear_sum_assignment(correct.sum(axis=2), maximize=True)
    return RecordQuality(correct[rows, permutation], permutation)


def rates(schema: Schema, qualities: Sequence[RecordQuality]) -> dict[str, float]:
    """Fractions of correct fields, categories, continuous values and complete records, over batches of one size.

    Args:
      schema: the columns, with at least one of each kind.
      qualities: scores of the batches.
    """
    correct = np.stack([quality.correct for quality in qualities])
    categorical = np.array([bool(column.categories) for column in schema])
    return {
        "fields": float(correct.mean()),
        "categories": float(correct[..., categorical].mean()),
        "values": float(correct[..., ~categorical].mean()),
        "records": float(correct.all(axis=-1).mean()),
    }


def typical_record(schema: Schema, table: ArrayLike) -> np.ndarray:
    """`[columns]`: the baseline record of column means and most frequent categories."""
    table = np.asarray(table, np.float64)
    return np.array(
        [
            np.bincount(values.astype(int)).argmax() if column.categories else values.mean()
            for column, values in zip(schema, table.T)
        ]
    )


def drawn_records(rng: np.random.Generator, table: ArrayLike, num_records: int) -> np.ndarray:
    """`[num_records, columns]`: baseline records with every column drawn from its marginal distribution."""
    table = np.asarray(table)
    return np.stack([rng.choice(values, num_records) for values in table.T], axis=1)
