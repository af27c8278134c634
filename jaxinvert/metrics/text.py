"""ROUGE of token sequences: shared n-grams and the longest common subsequence, as F1 scores.

Only an audit may call these functions: they need the true sequences.

References:
  Lin: ROUGE: A Package for Automatic Evaluation of Summaries. 2004.
"""

from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike


def rouge_n(found: Sequence[int], truth: Sequence[int], size: int) -> float:
    """F1 of n-grams that two sequences share, each counted as often as in both; 0 if there are none.

    >>> rouge_n([1, 2, 3], [1, 2, 4], 1), rouge_n([1, 2, 3], [1, 2, 4], 2)
    (0.6666666666666666, 0.5)
    """
    mine, theirs = (_grams(one, size) for one in (found, truth))
    total = mine.total() + theirs.total()
    return 2 * (mine & theirs).total() / total if total else 0.0


def rouge_l(found: Sequence[int], truth: Sequence[int]) -> float:
    """F1 of the longest common subsequence.

    >>> rouge_l([1, 5, 2, 3], [1, 2, 3, 4])
    0.75
    """
    longest = [0] * (len(truth) + 1)
    for mine in found:
        before = 0
        for place, theirs in enumerate(truth, 1):
            here = longest[place]
            longest[place] = before + 1 if mine == theirs else max(here, longest[place - 1])
            before = here
    total = len(found) + len(truth)
    return 2 * longest[-1] / total if total else 0.0


def rouge(found: ArrayLike, truth: ArrayLike) -> dict[str, float]:
    """Means of ROUGE-1, 2 and L over pairs of sequences `[B, n]`, matched already."""
    pairs = list(zip(np.asarray(found).tolist(), np.asarray(truth).tolist()))
    return {
        "rouge-1": float(np.mean([rouge_n(*pair, 1) for pair in pairs])),
        "rouge-2": float(np.mean([rouge_n(*pair, 2) for pair in pairs])),
        "rouge-l": float(np.mean([rouge_l(*pair) for pair in pairs])),
    }


def _grams(tokens: Sequence[int], size: int) -> Counter:
    return Counter(tuple(tokens[start : start + size]) for start in range(len(tokens) - size + 1))
