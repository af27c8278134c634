"""English words of every Python installation: disjoint halves, tokens by frequency, and bigrams that add up."""

import numpy as np

from jaxinvert.data.words import bigram_log_probabilities, load_words
from jaxinvert.jobs import text


def test_tokens_are_words_by_their_frequency_in_the_public_half():
    words = load_words(50)
    assert len(words.vocabulary) == 49
    assert "the" in words.vocabulary[:5]
    assert min(len(words.private), len(words.public)) > 10_000
    counts = np.bincount(words.public, minlength=50)
    assert np.all(np.diff(counts[1:]) <= 0)
    assert words.private.max() < 50


def test_bigrams_are_distributions_of_what_follows():
    logs = bigram_log_probabilities(np.array([1, 2, 1, 2, 1, 3]), 4)
    np.testing.assert_allclose(np.exp(logs).sum(axis=1), 1, rtol=1e-5)
    assert logs[1].argmax() == 2
    np.testing.assert_allclose(np.exp(logs[0]), [0.1, 0.4, 0.3, 0.2], rtol=1e-5)  # nothing follows: single tokens


def test_clients_hold_windows_of_the_private_half_and_predict_the_next_word():
    config = text.TextConfig(num_sequences=2, length=4, vocabulary=50, distribution="words")
    batch = text.draw_text(config, 0)
    np.testing.assert_array_equal(batch.inputs[:, 1:], batch.labels[:, :-1])
    private = load_words(50).private
    windows = {tuple(private[start : start + 4]) for start in range(len(private) - 3)}
    assert {tuple(np.asarray(row).tolist()) for row in batch.inputs} <= windows
