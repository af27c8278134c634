"""Identifiability: does a reconstruction pick out the private image among others of the same kind?

The reconstructions of one update are assigned one-to-one to the candidates they correlate with most, without a look
at which are private; an image is identified if it is among those chosen. A batch collapsed onto one image therefore
identifies one at most, and neither order, brightness nor contrast of the reconstructions matters. By guessing, each
of `B` private images among `N` exchangeable candidates is chosen with probability `B / N`.
"""

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import linear_sum_assignment
from scipy.stats import hypergeom


def identified(reconstructions: ArrayLike, candidates: ArrayLike, private: ArrayLike) -> np.ndarray:
    """Which private images of one update are chosen among the candidates.

    Args:
      reconstructions: `[B, H, W, C]` in any order; one that is flat or not finite chooses nothing.
      candidates: `[N, H, W, C]`, the private images among them; a flat one is never chosen before others.
      private: `[P]` where in `candidates` the private images are.

    Returns:
      `[P]` booleans.

    Raises:
      ValueError: for fewer candidates than reconstructions.
    """
    found, known = _standardized(reconstructions), _standardized(candidates)
    if len(known) < len(found):
        raise ValueError(f"{len(known)} candidates for {len(found)} reconstructions: each needs one of its own")
    pointing = np.any(found != 0, axis=1)
    _, chosen = linear_sum_assignment(-found[pointing] @ known.T)
    return np.isin(np.asarray(private), chosen)


def chance_of_any(num_private: int, num_candidates: int) -> float:
    """The probability that guessing identifies at least one of an update's private images.

    >>> round(chance_of_any(1, 100), 12)
    0.01
    """
    return float(hypergeom(num_candidates, num_private, num_private).sf(0))


def _standardized(images: ArrayLike) -> np.ndarray:
    """`[N, pixels]` of mean 0 and norm 1, so that products are correlations; 0 where there is none."""
    rows = np.asarray(images, np.float64)
    rows = rows.reshape(len(rows), -1)
    finite = np.all(np.isfinite(rows), axis=1, keepdims=True)
    rows = np.where(finite, rows, 0.0).clip(0, 1)
    rows = rows - rows.mean(axis=1, keepdims=True)
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.where(norms > 1e-6, rows / np.where(norms > 0, norms, 1.0), 0.0)
