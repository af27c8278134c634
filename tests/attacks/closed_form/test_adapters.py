"""Adapters: tokens by the spans of both factors, labels without the head's gradient, and what ranks say before."""

import dataclasses

import jax
import numpy as np
import pytest

from jaxinvert.attacks.closed_form.adapters import adapter_ranks, attention_ranks
from jaxinvert.attacks.closed_form.certificate import Status
from jaxinvert.jobs import text

SMALL = {"num_sequences": 1, "vocabulary": 30, "width": 16, "targets": 2, "length": 4, "depth": 1}
FIRST = text.TextConfig(lora_rank=5, **SMALL)  # 4 tokens, of which B's updates hold r - 1 = 4
LATER = text.TextConfig(lora_rank=2, lora_rounds=1, **SMALL)  # of which A's hold m r = 4


def ranks(config):
    task = text.prepare_text(config)
    return adapter_ranks(jax.device_get(text.observe_text(config, task, 0, text.draw_text(config, 0)).update))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "too_many"),
    [(FIRST, Status.SPAN_FULL), (LATER, Status.UNDETERMINED)],
    ids=["first round", "later round"],
)
def test_few_tokens_and_their_labels_are_exact_and_more_are_not_certified(config, too_many):
    task = text.prepare_text(config)
    batch, other = (text.draw_text(config, number) for number in range(2))
    observation = text.observe_text(config, task, 0, batch)
    found = task.solve(jax.random.key(0), observation)
    np.testing.assert_array_equal(found.inputs, batch.inputs)
    np.testing.assert_array_equal(found.labels, batch.labels)
    assert int(found.info["status"]) == Status.CERTIFIED
    assert int(found.info["rank"]) == 4
    assert int(found.info["found"].sum()) == 4
    both = jax.tree.map(lambda *leaves: sum(leaves) / 2, observation.update, task.client(observation.params, other))
    found = task.solve(jax.random.key(0), observation._replace(update=both))
    assert int(found.info["status"]) == too_many
    assert not found.info["found"].any()


@pytest.mark.parametrize(
    ("config", "is_exact", "rank_a", "rank_b", "words"),
    [
        (FIRST, True, 0, 4, "A's update is zero; 4 distinct inputs, whose projections by A are checked exactly"),
        (dataclasses.replace(FIRST, lora_rank=4), False, 0, 4, "at least 4 distinct inputs, so B's excludes nothing"),
        (LATER, False, 4, 2, "at least 4 distinct inputs: exact only if there are no more"),
        (dataclasses.replace(LATER, lora_rank=3), True, 4, 3, "4 distinct inputs, which span A's update"),
    ],
)
def test_ranks_say_so_before_any_attack(config, is_exact, rank_a, rank_b, words):
    (first,) = ranks(config)
    assert (first.layer, first.names) == ("params/attention_0", ("query", "value"))
    assert (first.is_exact, first.rank_a, first.rank_b) == (is_exact, rank_a, rank_b)
    assert words in first.words


def test_ranks_of_a_zero_and_a_damaged_update_say_what_is_wrong():
    task = text.prepare_text(FIRST)
    update = text.observe_text(FIRST, task, 0, text.draw_text(FIRST, 0)).update
    assert {one.words for one in adapter_ranks(jax.tree.map(np.zeros_like, update))} == {"zero: nothing was sent"}
    damaged = jax.tree.map(lambda leaf: np.full(leaf.shape, np.nan), update)
    assert {one.words for one in adapter_ranks(damaged)} == {"holds values that are not finite"}


def test_ranks_of_a_trained_attention_count_its_tokens():
    config = text.TextConfig(**SMALL)
    task = text.prepare_text(config)
    update = jax.device_get(text.observe_text(config, task, 0, text.draw_text(config, 0)).update)
    (one,) = attention_ranks(update)
    assert (one.rank_a, one.is_exact, one.least_inputs) == (4, True, 4)
    assert adapter_ranks(update) == ()
