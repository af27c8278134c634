"""ROUGE of token sequences by hand."""

import pytest

from jaxinvert.metrics.text import rouge, rouge_l, rouge_n


def test_shared_grams_count_as_often_as_in_both():
    assert rouge_n([1, 1, 2], [1, 2, 2], 1) == pytest.approx(2 / 3)
    assert rouge_n([1, 1, 2], [1, 2, 2], 2) == pytest.approx(1 / 2)
    assert rouge_n([1], [1], 2) == 0  # too short for a pair


def test_the_longest_common_subsequence_may_have_gaps():
    assert rouge_l([1, 9, 2, 9, 3], [1, 2, 3]) == pytest.approx(2 * 3 / 8)
    assert rouge_l([3, 2, 1], [1, 2, 3]) == pytest.approx(1 / 3)


def test_means_are_over_pairs():
    found = rouge([[1, 2], [3, 4]], [[1, 2], [4, 3]])
    assert found == {"rouge-1": 1.0, "rouge-2": 0.5, "rouge-l": 0.75}
