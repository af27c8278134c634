"""English text that every Python installation has: the language reference in `pydoc_data.topics`, as words.

About 80,000 words, from which clients' sequences and an attacker's public text are taken without overlap: private
sequences come from the first half of the topics in order of name, public ones from the second half. A token is a word
in lower case or a punctuation mark; the rarest share token 0. The text differs a little between versions of Python.
"""

import functools
import re
from collections import Counter
from typing import NamedTuple

import numpy as np

_WORD = re.compile(r"[a-z][a-z']*|[.,;:()]")


class Words(NamedTuple):
    """Tokens of private and public text.

    Attributes:
      vocabulary: the word of every token from 1; token 0 stands for all others.
      private: `[N]` int32 tokens of one half.
      public: `[M]` int32 tokens of the other half.
    """

    vocabulary: tuple[str, ...]
    private: np.ndarray
    public: np.ndarray


@functools.cache
def load_words(vocabulary_size: int) -> Words:
    """The text with the `vocabulary_size - 1` words that are the most frequent in its public half.

    Args:
      vocabulary_size: number of tokens, at least 2.
    """
    from pydoc_data.topics import topics  # half a megabyte that only text needs

    names = sorted(topics)
    halves = [
        [word for name in half for word in _WORD.findall(topics[name].lower())]
        for half in (names[: len(names) // 2], names[len(names) // 2 :])
    ]
    counts = Counter(halves[1])
    kept = sorted(counts, key=lambda word: (-counts[word], word))[: vocabulary_size - 1]
    token = {word: number for number, word in enumerate(kept, 1)}
    private, public = (np.array([token.get(word, 0) for word in half], np.int32) for half in halves)
    return Words(tuple(kept), private, public)


def bigram_log_probabilities(tokens: np.ndarray, vocabulary_size: int, *, smoothing: float = 0.5) -> np.ndarray:
    """`[V, V]` float32: log-probability of a token after another, mixed with that of the token alone.

    Args:
      tokens: `[M]` public text.
      vocabulary_size: `V`.
      smoothing: pseudo-count of the distribution of single tokens in every row, positive.
    """
    single = np.bincount(tokens, minlength=vocabulary_size) + 1.0
    single /= single.sum()
    pairs = np.zeros((vocabulary_size, vocabulary_size))
    np.add.at(pairs, (tokens[:-1], tokens[1:]), 1.0)
    pairs += smoothing * single
    return np.log(pairs / pairs.sum(axis=1, keepdims=True)).astype(np.float32)
