"""Scores of reconstructed records and token sequences: exact fields, and retrieval among candidates.

Both are rows of fields. A field is right if it is within a tolerance of the true one: 0 for categories and tokens.
The similarity for retrieval is the mean over fields of 1 or 0 for equal or different categories and tokens, and of
`exp(-|x - y| / s)` for continuous values, where `s` is the standard deviation of the field.

Rows of few categories are often equally similar to several candidates, and the first of them is picked. The private
rows are therefore at random places among the candidates: if they came first, ties would identify them.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from jaxinvert.audit import retrieval
from jaxinvert.audit.measures import Measure
from jaxinvert.audit.scoring import pick_in_class
from jaxinvert.metrics import records


class Field(NamedTuple):
    """One field of a row.

    Attributes:
      name: shown to people.
      tolerance: largest absolute error of a right value; 0 for categories and tokens.
      scale: standard deviation of a continuous field; 0 for categories and tokens.
      values: names of the categories by index; empty for others.
    """

    name: str
    tolerance: float = 0.0
    scale: float = 0.0
    values: tuple[str, ...] = ()


class DiscreteGround(NamedTuple):
    """Truth and candidates, which only the audit knows.

    Attributes:
      measure: what is measured.
      fields: the `F` fields of a row.
      truth: `[T, B, F]` private rows.
      true_labels: `[T, B]` their classes; zeros if the data have none.
      candidates: `[N, F]` private rows and others of the same kind, in random order.
      labels: `[N]` their classes.
      private: `[T, B]` index of each private row among the candidates.
      same: `[N]` index of the first candidate with the same fields.
    """

    measure: Measure
    fields: tuple[Field, ...]
    truth: np.ndarray
    true_labels: np.ndarray
    candidates: np.ndarray
    labels: np.ndarray
    private: np.ndarray
    same: np.ndarray


class DiscreteScores(NamedTuple):
    """Scores of reconstructions, in the order of the true rows if not stated otherwise.

    Attributes:
      correct: `[T, B, F]` whether each field is right.
      matched: `[T, B, F]` the reconstructions, one-to-one in the order of the true rows.
      identified: `[T, B]` whether the row, or a copy of it, is picked among all candidates.
      picked: `[T, B]` candidates picked among all, in the order of the reconstructions.
      picked_in_class: `picked` among candidates of each reconstruction's class; `None` without labels.
    """

    correct: np.ndarray
    matched: np.ndarray
    identified: np.ndarray
    picked: np.ndarray
    picked_in_class: np.ndarray | None

    @property
    def by_client(self) -> np.ndarray:
        """`[T]`: right fields in percent."""
        return 100 * self.correct.mean(axis=(1, 2))

    @property
    def exact(self) -> np.ndarray:
        """`[T, B]`: whether all fields of a row are right."""
        return np.asarray(self.correct.all(axis=2))

    @property
    def second_by_client(self) -> np.ndarray:
        """`[T]`: exact rows in percent."""
        return 100 * self.exact.mean(axis=1)


def discrete_ground(
    rows: np.ndarray,
    labels: np.ndarray,
    *,
    shape: tuple[int, int],
    fields: Sequence[Field],
    measure: Measure,
    rng: np.random.Generator,
) -> DiscreteGround:
    """Truth and candidates.

    Args:
      rows: `[N, F]`, of which the first `T x B` are the private rows, in order.
      labels: `[N]` their classes.
      shape: `T` and `B`.
      fields: of a row.
      measure: what is measured.
      rng: draws the order of the candidates.
    """
    num_private = shape[0] * shape[1]
    order = rng.permutation(len(rows))
    candidates = np.asarray(rows, np.float64)[order]
    private = np.argsort(order)[:num_private].reshape(shape)
    first: dict[bytes, int] = {}
    same = np.array([first.setdefault(row.tobytes(), index) for index, row in enumerate(candidates + 0.0)])
    return DiscreteGround(
        measure,
        tuple(fields),
        candidates[private],
        np.asarray(labels[:num_private]).reshape(shape),
        candidates,
        np.asarray(labels)[order],
        private,
        same,
    )


def similarity(found: np.ndarray, candidates: np.ndarray, fields: Sequence[Field]) -> np.ndarray:
    """`[B, N]` in [0, 1]: similarity of every reconstruction `[B, F]` with every candidate `[N, F]`.

    Values that are not finite have similarity 0. See the module's docstring.
    """
    total = np.zeros((len(found), len(candidates)))
    for mine, theirs, field in zip(found.T, candidates.T, fields):
        distance = np.abs(mine[:, None] - theirs)
        alike = np.exp(-distance / field.scale) if field.scale else distance == 0
        total += np.where(np.isfinite(distance), alike, 0)
    return total / len(fields)


def score_discrete(found: np.ndarray, used_labels: np.ndarray | None, ground: DiscreteGround) -> DiscreteScores:
    """Scores the reconstructions of all clients.

    Args:
      found: `[T, B, F]` reconstructions, each batch in any order.
      used_labels: `[T, B]` labels that the attack used, if any.
      ground: truth and candidates.
    """
    found = np.asarray(found, np.float64)
    tolerance = np.array([field.tolerance for field in ground.fields])
    qualities = [records.evaluate_records(*pair, tolerance) for pair in zip(found, ground.truth)]
    picked = np.full(ground.private.shape, retrieval.NOBODY)
    in_class = None if used_labels is None else picked.copy()
    for t, rows in enumerate(found):
        alike = similarity(rows, ground.candidates, ground.fields)
        picked[t] = retrieval.pick(alike)
        if in_class is not None and used_labels is not None:
            in_class[t] = pick_in_class(alike, used_labels[t], ground.labels)
    return DiscreteScores(
        np.stack([quality.correct for quality in qualities]),
        np.stack([rows[quality.permutation] for rows, quality in zip(found, qualities)]),
        retrieval.identified_by(picked, ground.private, ground.same),
        picked,
        in_class,
    )


def typical(rows: np.ndarray, fields: Iterable[Field]) -> np.ndarray:
    """`[F]`: the guess that is right most often, field by field.

    For categories and tokens this is the most frequent value, for continuous fields the middle of the interval of
    twice the tolerance that holds the most values.

    Args:
      rows: `[M, F]`, at least one.
      fields: of a row.
    """
    return np.array([_likeliest(values, field.tolerance) for values, field in zip(rows.T, fields)])


def guesses(
    ground: DiscreteGround,
    rows: np.ndarray,
    own: np.ndarray,
    rng: np.random.Generator,
    *,
    row_labels: np.ndarray | None = None,
) -> dict[str, np.ndarray]:
    """Controls from the distribution of every field: reconstructions `[T, B, F]` by name.

    | control       | every field of a row                                                    |
    |---------------|-------------------------------------------------------------------------|
    | typical guess | the value that is right most often in others' rows                      |
    | drawn guess   | drawn from others' rows                                                 |
    | class guess   | as typical, among rows of the class; if the attacker is granted labels  |

    Args:
      ground: truth and candidates.
      rows: `[M, F]` rows of the same kind, including the private ones.
      own: `[T, B]` indices of the private rows in `rows`; each client's are left out of its guesses.
      rng: random generator of the drawn guess.
      row_labels: `[M]` classes of the rows, if labels are granted.
    """
    size, everybody = own.shape[1], np.arange(len(rows))
    found: dict[str, list[np.ndarray]] = {"typical guess": [], "drawn guess": []}
    if row_labels is not None:
        found["class guess"] = []
    for mine, labels in zip(own, ground.true_labels):
        others = np.setdiff1d(everybody, mine)
        others = others if others.size else everybody
        found["typical guess"].append(np.tile(typical(rows[others], ground.fields), (size, 1)))
        found["drawn guess"].append(records.drawn_records(rng, rows[others], size))
        if row_labels is not None:
            found["class guess"].append(
                np.stack([typical(_of_class(rows[others], row_labels[others], one), ground.fields) for one in labels])
            )
    return {name: np.stack(one) for name, one in found.items()}


def _of_class(rows: np.ndarray, labels: np.ndarray, label: int) -> np.ndarray:
    """The rows of a class, or all if there are none."""
    chosen = rows[labels == label]
    return chosen if len(chosen) else rows


def _likeliest(values: np.ndarray, tolerance: float) -> float:
    values = np.sort(values)
    ends = np.searchsorted(values, values + 2 * tolerance, side="right")
    best = int(np.argmax(ends - np.arange(len(values))))
    return float((values[best] + values[ends[best] - 1]) / 2)
