"""Identification: whether a reconstruction picks out the private image among candidates of the same kind.

The reconstructions of one update are assigned one-to-one to candidates so that the sum of correlations is largest,
without using which candidates are private. An image is identified if it, or an exact copy of it, is among those
assigned. A batch that collapses onto one image therefore identifies at most one, and neither order, brightness nor
contrast of the reconstructions matters. An attacker who is granted the labels picks among candidates of the class:
guessing then finds one of the `n` images of a class, not one of all `N`.

Every reconstruction is compared with every candidate in one pass: standardized reconstructions are multiplied with
unchanged candidates, whose norms are computed before. Memory holds both sets of images and the products of one chunk
of updates.
"""

import hashlib
import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import scipy  # whose modules are imported when they are used: this takes long
from numpy.typing import ArrayLike

NOBODY = -1
"""Index in place of a candidate if none was picked."""
_CHUNK_BYTES = 1 << 26
_NUM_PERMUTATIONS = 999


class Pool(NamedTuple):
    """Candidates, prepared once for all comparisons.

    Attributes:
      rows: `[N, pixels]` float32 in [0, 1], a view of the images if they are float32 already.
      norms: `[N]` norms of the rows after subtraction of their mean; 0 for constant images.
      same: `[N]` index of the first candidate with identical pixels, usually the candidate's own.
    """

    rows: np.ndarray
    norms: np.ndarray
    same: np.ndarray


class Null(NamedTuple):
    """The permutation null of identification: private images redrawn from candidates that cannot be ruled out.

    Attributes:
      dealt: `[M, T, B]` indices of random candidates in place of the private images, of the same class if labels are
        granted; copies have the index of the first of them.
      swapped: `[M, T, B]` the same for random permutations of the private images among the clients alone.
      private: `[T, B]` indices of the private images.
      open: `[T, B]` whether an image has competing candidates; without any, its identification shows nothing.
      same: `[N]`, see `Pool`.
      chance: expected share of clients identified by guessing.
      chances: `[T, B]` largest probability that a guess identifies an image: that of the candidate with most copies.
    """

    dealt: np.ndarray
    swapped: np.ndarray
    private: np.ndarray
    open: np.ndarray
    same: np.ndarray
    chance: float
    chances: np.ndarray

    @property
    def clients(self) -> np.ndarray:
        """`[T]`: clients that can be identified, that is, with an image that has competing candidates."""
        return np.any(self.open, axis=1)

    def hits(self, picks: np.ndarray) -> np.ndarray:
        """`[T]`: whether an image of each client, or a copy of it, is among the picks `[T, P]`."""
        return np.any(identified_by(picks, self.private, self.same) & self.open, axis=1)

    def one_of_each(self, picks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """For the first open image of each client that has one: whether it is identified, and its chance."""
        clients = np.flatnonzero(self.clients)
        first = self.open[clients].argmax(axis=1)
        return identified_by(picks, self.private, self.same)[clients, first], self.chances[clients, first]

    def counts(self, picks: np.ndarray) -> np.ndarray:
        """`[M]`: number of clients that the same picks `[T, P]` identify after each permutation."""
        return self._counts(picks, self.dealt)

    def counts_swapped(self, picks: np.ndarray) -> np.ndarray:
        """`counts` for permutations among the clients alone."""
        return self._counts(picks, self.swapped)

    def _counts(self, picks: np.ndarray, dealt: np.ndarray) -> np.ndarray:
        clients, picked = np.arange(len(picks))[:, None], np.where(picks == NOBODY, NOBODY, self.same[picks])
        chosen = np.zeros((len(picks), len(self.same) + 1), bool)
        chosen[clients, picked] = True
        chosen[:, NOBODY] = False
        hits = chosen.ravel()[dealt + clients * chosen.shape[1]] & self.open
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
    """Yields for every update `[B, N]` in [-1, 1], the correlations of its reconstructions with all candidates.

    Args:
      reconstructions: `[T, B, H, W, C]`, clamped to [0, 1] first; constant or non-finite ones have correlation 0.
      candidates: the result of `pool`; constant ones have correlation 0.
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
    """Assigns reconstructions one-to-one to candidates so that the sum of correlations is largest.

    Args:
      correlation: `[B, N]`; a row of zeros is not assigned.
      among: indices of the candidates that may be picked; by default all.

    Returns:
      `[B]` candidate of every reconstruction; `NOBODY` if it is not assigned, also for lack of candidates.
    """
    chosen, pointing = np.full(len(correlation), NOBODY), np.flatnonzero(np.any(correlation != 0, axis=1))
    gains = correlation[pointing] if among is None else correlation[pointing][:, among]
    if len(pointing) == 1:  # the assignment is the maximum
        rows, columns = np.zeros(1, int), gains.argmax(axis=1)
    else:
        rows, columns = scipy.optimize.linear_sum_assignment(gains, maximize=True)
    chosen[pointing[rows]] = columns if among is None else np.asarray(among)[columns]
    return chosen


def identified_by(picks: np.ndarray, private: np.ndarray, same: np.ndarray) -> np.ndarray:
    """`[T, B]`: whether each private image `[T, B]`, or a copy of it, is among the picks `[T, P]` of its client."""
    picked = np.where(picks == NOBODY, NOBODY, same[picks])
    return (same[private][:, :, None] == picked[:, None, :]).any(axis=2)


def identified(reconstructions: ArrayLike, candidates: ArrayLike, private: ArrayLike) -> np.ndarray:
    """Whether each private image of one update is identified among the candidates.

    Args:
      reconstructions: `[B, H, W, C]` in any order; a constant or non-finite one picks nothing.
      candidates: `[N, H, W, C]` in [0, 1], including the private images; a constant one has correlation 0.
      private: `[P]` indices of the private images in `candidates`.

    Returns:
      `[P]` booleans.

    Raises:
      ValueError: for fewer candidates than reconstructions.
    """
    return identified_of_all(np.asarray(reconstructions)[None], candidates, np.asarray(private)[None])[0]


def identified_of_all(reconstructions: ArrayLike, candidates: ArrayLike, private: ArrayLike) -> np.ndarray:
    """`identified` for many updates with the same candidates: `[T, B, H, W, C]` and `[T, P]` to `[T, P]`."""
    found, known = np.asarray(reconstructions, np.float32), pool(candidates)
    if len(known.rows) < found.shape[1]:
        raise ValueError(
            f"{len(known.rows)} candidates for {found.shape[1]} reconstructions: each needs its own candidate"
        )
    picks = np.stack([pick(correlation) for correlation in correlations(found, known)])
    return identified_by(picks, np.asarray(private), known.same)


def null(private: np.ndarray, labels: np.ndarray, same: np.ndarray, *, in_class: bool, seed: int = 0) -> Null:
    """Draws random permutations of the clients' images among the candidates.

    Args:
      private: `[T, B]` indices of the private images among the candidates, all different.
      labels: `[N]` classes of the candidates.
      same: `[N]`, see `Pool`.
      in_class: whether images are permuted within their class, because the attacker was granted the labels.
      seed: seed of the permutations.
    """
    generator = np.random.default_rng(seed)
    groups = labels if in_class else np.zeros(len(labels), int)
    flat = private.ravel()
    dealt, swapped = np.empty((2, _NUM_PERMUTATIONS, flat.size), np.int32)
    rivals, missed, chances = np.zeros(flat.size, bool), np.ones(len(private)), np.ones(flat.size)
    for group in np.unique(groups[flat]):
        members, own = np.flatnonzero(groups == group), groups[flat] == group
        order = generator.random((_NUM_PERMUTATIONS, len(members)), np.float32).argsort(axis=1)[:, : own.sum()]
        dealt[:, own] = members[order]
        among_own = generator.random((_NUM_PERMUTATIONS, int(own.sum())), np.float32).argsort(axis=1)
        swapped[:, own] = flat[own][among_own]
        of_client = own.reshape(private.shape).sum(axis=1)
        rivals[own] = np.repeat(of_client, of_client) < len(members)
        copies = np.bincount(same[members]).max()
        chances[own] = np.minimum(1, np.repeat(of_client, of_client) * copies / len(members))
        missed *= [1 - chance_of_any(int(n), len(members)) if n < len(members) else 1.0 for n in of_client]
    with_rivals = rivals.reshape(private.shape)
    clients = with_rivals.any(axis=1)
    chance = float(np.mean(1 - missed[clients])) if clients.any() else 1.0
    dealt_of = same[dealt].reshape(-1, *private.shape)
    if clients.any() and np.any(same != np.arange(len(same))):
        chance = _chance_with_copies(dealt_of, with_rivals)
    swapped_of = same[swapped].reshape(-1, *private.shape)
    return Null(dealt_of, swapped_of, private, with_rivals, same, chance, chances.reshape(private.shape))


def _chance_with_copies(dealt: np.ndarray, open_items: np.ndarray) -> float:
    """Share of clients that random candidates `[M, T, B]` identify if others of them are private.

    With copies among the candidates there is no closed form; the next permutation is the guess.
    """
    guesses = np.roll(dealt, -1, axis=0)
    shares = []
    for client in np.flatnonzero(open_items.any(axis=1)):
        hits = (dealt[:, client, :, None] == guesses[:, client, None, :]).any(axis=2)
        shares.append((hits & open_items[client]).any(axis=1).mean())
    return float(np.mean(shares))


def chance_of_any(num_private: int, num_candidates: int) -> float:
    """The probability that guessing identifies at least one of an update's private images.

    >>> round(chance_of_any(1, 100), 12)
    0.01
    """
    return 1 - math.comb(num_candidates - num_private, num_private) / math.comb(num_candidates, num_private)


def _standardized(rows: np.ndarray) -> np.ndarray:
    """`[N, pixels]` rows with mean 0 and norm 1; zeros for constant or non-finite rows."""
    finite = np.all(np.isfinite(rows), axis=1, keepdims=True)
    rows = np.where(finite, rows, 0.0).clip(0, 1).astype(np.float32)
    rows -= rows.mean(axis=1, keepdims=True, dtype=np.float64).astype(np.float32)
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.where(norms > 1e-6, rows / np.where(norms > 0, norms, 1.0), np.float32(0))
