"""Identifiability: does a reconstruction pick out the private image among others of the same kind?

The reconstructions of one update are assigned one-to-one to the candidates they correlate with most, without a look
at which are private; an image is identified if it, or an exact copy of it, is among those chosen. A batch collapsed
onto one image therefore identifies one at most, and neither order, brightness nor contrast of the reconstructions
matters. An attacker who was granted the labels picks among candidates of the class: there, guessing finds one of `n`
images of a class, not one of all `N`.

Every picture is compared with every candidate in one pass: products of reconstructions, standardized, with candidates
as they are, whose means and norms are known before. Memory is that of both sets of images and one update's products.
"""

import hashlib
import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import linear_sum_assignment

NOBODY = -1
"""In place of a candidate: nothing was chosen."""
_CHUNK_BYTES = 1 << 26
_NUM_PERMUTATIONS = 999


class Pool(NamedTuple):
    """Candidates, prepared once for all pictures that are compared with them.

    Attributes:
      rows: `[N, pixels]` float32 in [0, 1], a view of the images where they are that already.
      norms: `[N]` of the rows less their mean; 0 for flat ones.
      same: `[N]` the first candidate with the very same pixels, for most their own number.
    """

    rows: np.ndarray
    norms: np.ndarray
    same: np.ndarray


class Null(NamedTuple):
    """Clients whose images were dealt again, at random, among the candidates that the attacker cannot rule out.

    Attributes:
      dealt: `[M, T, B]` candidates in place of the private ones, of the same class where labels are granted; copies
        are numbered as the first of them.
      private: `[T, B]` the private ones.
      open: `[T, B]` whether an image has rivals at all; one without tells nothing.
      same: `[N]`, see `Pool`.
      chance: expected share of clients identified by guessing.
      chances: `[T, B]` the most that guessing can reach for an image: by whichever candidate has most copies.
    """

    dealt: np.ndarray
    private: np.ndarray
    open: np.ndarray
    same: np.ndarray
    chance: float
    chances: np.ndarray

    @property
    def clients(self) -> np.ndarray:
        """`[T]`: who can be identified at all."""
        return np.any(self.open, axis=1)

    def hits(self, picks: np.ndarray) -> np.ndarray:
        """`[T]`: clients with an image, or a copy of it, among the picks `[T, P]`."""
        return np.any(identified_by(picks, self.private, self.same) & self.open, axis=1)

    def one_of_each(self, picks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Of each client that can be identified the first image with rivals: whether it is a hit, and its chance."""
        clients = np.flatnonzero(self.clients)
        first = self.open[clients].argmax(axis=1)
        return identified_by(picks, self.private, self.same)[clients, first], self.chances[clients, first]

    def counts(self, picks: np.ndarray) -> np.ndarray:
        """`[M]`: how many clients the same picks `[T, P]` would hit after each deal."""
        clients, picked = np.arange(len(picks))[:, None], np.where(picks == NOBODY, NOBODY, self.same[picks])
        chosen = np.zeros((len(picks), len(self.same) + 1), bool)
        chosen[clients, picked] = True
        chosen[:, NOBODY] = False
        hits = chosen.ravel()[self.dealt + clients * chosen.shape[1]] & self.open
        return hits.any(axis=2).sum(axis=1)


def pool(candidates: ArrayLike) -> Pool:
    """Prepares candidates `[N, H, W, C]` in [0, 1]."""
    images = np.asarray(candidates, np.float32)
    rows = images.reshape(len(images), -1)
    norms, first, same = np.empty(len(rows), np.float32), {}, np.arange(len(rows))
    for index, row in enumerate(rows):
        centered = row - row.mean(dtype=np.float64).astype(np.float32)
        norms[index] = np.linalg.norm(centered)
        same[index] = first.setdefault(hashlib.blake2b(row.tobytes()).digest(), index)
    return Pool(rows, np.where(norms > 1e-6, norms, 0.0), same)


def correlations(reconstructions: np.ndarray, candidates: Pool) -> Iterator[np.ndarray]:
    """For every update `[B, N]` in [-1, 1]: correlations of its pictures with all candidates; 0 for flat ones.

    Args:
      reconstructions: `[T, B, H, W, C]`, clamped to [0, 1] first; a row of zeros for one that is flat or not finite.
      candidates: of `pool`.
    """
    inverse = np.divide(1.0, candidates.norms, out=np.zeros_like(candidates.norms), where=candidates.norms > 0)
    size = max(1, _CHUNK_BYTES // max(1, 4 * reconstructions[0].size))
    for start in range(0, len(reconstructions), size):
        found = reconstructions[start : start + size]
        rows = _standardized(found.reshape(-1, candidates.rows.shape[1]))
        # The rows have mean 0, so the candidates' means drop out.
        products = (rows @ candidates.rows.T) * inverse
        yield from products.reshape(*found.shape[:2], -1)


def pick(correlation: np.ndarray, among: np.ndarray | None = None) -> np.ndarray:
    """Assigns pictures one-to-one to the candidates that they correlate with most.

    Args:
      correlation: `[B, N]`; a row of zeros points to nobody.
      among: candidates that may be chosen; by default all.

    Returns:
      `[B]`, the candidate of every picture, or `NOBODY`, also for pictures beyond the number of candidates.
    """
    chosen, pointing = np.full(len(correlation), NOBODY), np.flatnonzero(np.any(correlation != 0, axis=1))
    gains = correlation[pointing] if among is None else correlation[pointing][:, among]
    if len(pointing) == 1:  # nobody to share with
        rows, columns = np.zeros(1, int), gains.argmax(axis=1)
    else:
        rows, columns = linear_sum_assignment(gains, maximize=True)
    chosen[pointing[rows]] = columns if among is None else np.asarray(among)[columns]
    return chosen


def identified_by(picks: np.ndarray, private: np.ndarray, same: np.ndarray) -> np.ndarray:
    """`[T, B]`: whether each private image `[T, B]`, or a copy of it, is among the picks `[T, P]` of its client."""
    picked = np.where(picks == NOBODY, NOBODY, same[picks])
    return (same[private][:, :, None] == picked[:, None, :]).any(axis=2)


def identified(reconstructions: ArrayLike, candidates: ArrayLike, private: ArrayLike) -> np.ndarray:
    """Which private images of one update are chosen among the candidates.

    Args:
      reconstructions: `[B, H, W, C]` in any order; one that is flat or not finite chooses nothing.
      candidates: `[N, H, W, C]` in [0, 1], the private images among them; a flat one is never chosen before others.
      private: `[P]` where in `candidates` the private images are.

    Returns:
      `[P]` booleans.

    Raises:
      ValueError: for fewer candidates than reconstructions.
    """
    return identified_of_all(np.asarray(reconstructions)[None], candidates, np.asarray(private)[None])[0]


def identified_of_all(reconstructions: ArrayLike, candidates: ArrayLike, private: ArrayLike) -> np.ndarray:
    """As `identified`, of many updates with the same candidates: `[T, B, H, W, C]` and `[T, P]` to `[T, P]`."""
    found, known = np.asarray(reconstructions, np.float32), pool(candidates)
    if len(known.rows) < found.shape[1]:
        raise ValueError(
            f"{len(known.rows)} candidates for {found.shape[1]} reconstructions: each needs one of its own"
        )
    picks = np.stack([pick(correlation) for correlation in correlations(found, known)])
    return identified_by(picks, np.asarray(private), known.same)


def null(private: np.ndarray, labels: np.ndarray, same: np.ndarray, *, in_class: bool, seed: int = 0) -> Null:
    """Deals the clients' images again and again among the candidates.

    Args:
      private: `[T, B]` where among the candidates each private image is, no two the same.
      labels: `[N]` classes of the candidates.
      same: `[N]`, see `Pool`.
      in_class: whether images are dealt among those of their class, as the attacker was granted the labels.
      seed: of the deals.
    """
    generator = np.random.default_rng(seed)
    groups = labels if in_class else np.zeros(len(labels), int)
    flat = private.ravel()
    dealt = np.empty((_NUM_PERMUTATIONS, flat.size), np.int32)
    rivals, missed, chances = np.zeros(flat.size, bool), np.ones(len(private)), np.ones(flat.size)
    for group in np.unique(groups[flat]):
        members, own = np.flatnonzero(groups == group), groups[flat] == group
        order = generator.random((_NUM_PERMUTATIONS, len(members)), np.float32).argsort(axis=1)[:, : own.sum()]
        dealt[:, own] = members[order]
        of_client = own.reshape(private.shape).sum(axis=1)
        rivals[own] = np.repeat(of_client, of_client) < len(members)
        copies = np.bincount(same[members]).max()
        chances[own] = np.minimum(1, np.repeat(of_client, of_client) * copies / len(members))
        missed *= [1 - chance_of_any(int(n), len(members)) if n < len(members) else 1.0 for n in of_client]
    with_rivals = rivals.reshape(private.shape)
    clients = with_rivals.any(axis=1)
    chance = float(np.mean(1 - missed[clients])) if clients.any() else 1.0
    return Null(
        same[dealt].reshape(-1, *private.shape), private, with_rivals, same, chance, chances.reshape(private.shape)
    )


def chance_of_any(num_private: int, num_candidates: int) -> float:
    """The probability that guessing identifies at least one of an update's private images.

    >>> round(chance_of_any(1, 100), 12)
    0.01
    """
    return 1 - math.comb(num_candidates - num_private, num_private) / math.comb(num_candidates, num_private)


def _standardized(rows: np.ndarray) -> np.ndarray:
    """`[N, pixels]` of mean 0 and norm 1; 0 for rows that are flat or not finite."""
    finite = np.all(np.isfinite(rows), axis=1, keepdims=True)
    rows = np.where(finite, rows, 0.0).clip(0, 1).astype(np.float32)
    rows -= rows.mean(axis=1, keepdims=True, dtype=np.float64).astype(np.float32)
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.where(norms > 1e-6, rows / np.where(norms > 0, norms, 1.0), np.float32(0))
