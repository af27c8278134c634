"""Text from a transformer's update: every token and no other, sequences with labels, or a reason why not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxinvert.attacks import TextProblem
from jaxinvert.attacks.closed_form import span as spans
from jaxinvert.attacks.closed_form.certificate import WORDS, Status
from jaxinvert.attacks.closed_form.dager import dager
from jaxinvert.clients import fedsgd
from jaxinvert.models.text_transformer import decoder, encoder
from jaxinvert.types import Batch, Observation

SIZES = {"vocabulary_size": 60, "length": 4, "width": 24, "num_heads": 2}
DECODER, ENCODER = decoder(**SIZES), encoder(num_classes=3, **SIZES)
NUM_SEQUENCES = 3


@pytest.fixture(scope="module")
def params():
    return DECODER.init(jax.random.key(0))


@pytest.fixture(scope="module")
def client():
    return jax.jit(fedsgd(DECODER.loss_fn))


@pytest.fixture(scope="module")
def solve(client):
    """For three sequences, with tolerances that may be set, compiled once."""

    def solve(observation, tolerances):
        return dager(TextProblem(client, DECODER, NUM_SEQUENCES), tolerances=tolerances)(None, observation)

    compiled = jax.jit(solve)
    default = spans.tolerances(float(np.finfo(np.float32).eps))
    return lambda update, params, tolerances=default: compiled(Observation(params, update), tolerances)


def sequences(seed, num_sequences=NUM_SEQUENCES, tokens=None):
    """Random tokens, of which no two columns share one, and labels."""
    rng = np.random.default_rng(seed)
    if tokens is None:
        tokens = rng.permutation(60)[: num_sequences * 4].reshape(num_sequences, 4)
    return Batch(jnp.asarray(tokens), jnp.asarray(rng.integers(0, 60, np.shape(tokens))))


def rows_of(batch_or_found, labels):
    """Sequences with their labels, in an order of their own."""
    return sorted(map(tuple, np.concatenate([np.asarray(batch_or_found), np.asarray(labels)], axis=1).tolist()))


def where(batch):
    present = np.zeros((4, 60), bool)
    present[np.arange(4)[None], np.asarray(batch.inputs)] = True
    return present


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
def test_tokens_sequences_and_labels_are_exact_and_certified(solve, client, params, seed):
    batch = sequences(seed)
    found = solve(client(params, batch), params)
    np.testing.assert_array_equal(found.info["found"], where(batch))
    assert rows_of(found.inputs, found.labels) == rows_of(batch.inputs, batch.labels)
    assert int(found.info["rank"]) == 12
    assert bool(found.info["certified"])
    assert found.inputs.dtype == jnp.int32


def test_sequences_with_a_common_beginning_are_told_apart(solve, client, params):
    batch = sequences(1, tokens=[[7, 8, 9, 10], [7, 8, 20, 21], [7, 30, 31, 10]])
    found = solve(client(params, batch), params)
    assert rows_of(found.inputs, found.inputs) == rows_of(batch.inputs, batch.inputs)
    assert int(found.info["rank"]) == 8  # distinct tokens with their positions
    assert bool(found.info["certified"])

    def predictions(batch):
        """What follows each beginning; two that are equal may have changed places."""
        inputs, labels = batch.inputs.tolist(), batch.labels.tolist()
        return sorted((row[: s + 1], label) for row, all_of in zip(inputs, labels) for s, label in enumerate(all_of))

    assert predictions(found) == predictions(batch)


def test_two_tokens_at_the_same_two_positions_make_others_look_present(solve, client, params):
    """`(a, b), (b, a)`: the span holds the positions' difference, and lets every token change places."""
    batch = sequences(1, tokens=[[7, 8, 9, 10], [8, 7, 20, 21], [30, 31, 32, 33]])
    found = solve(client(params, batch), params)
    inside = np.asarray(found.info["found"])
    assert (inside & ~where(batch)).sum() == 2  # 30 second and 31 first
    assert inside[0, 31]
    assert inside[1, 30]
    # The second span is of whole beginnings, where nothing repeats.
    assert rows_of(found.inputs, found.labels) == rows_of(batch.inputs, batch.labels)
    assert bool(found.info["certified"])


def not_finite(client, params):
    return jax.tree.map(lambda leaf: leaf.at[0].set(jnp.nan), client(params, sequences(1)))


def six_sequences(client, params):
    """24 tokens, as many as the width: the mean of two updates."""
    tokens = np.random.default_rng(0).permutation(60)[:24].reshape(2, 3, 4)
    updates = [client(params, sequences(3, tokens=half)) for half in tokens]
    return jax.tree.map(lambda *leaves: sum(leaves) / 2, *updates)


def noisy_head(client, params):
    update = client(params, sequences(1))
    update["params"]["head"]["kernel"] += 1e-3 * jax.random.normal(jax.random.key(0), (24, 60))
    return update


def second_block_withheld(client, params):
    update = client(params, sequences(1))
    update["params"]["attention_1"] = jax.tree.map(jnp.zeros_like, update["params"]["attention_1"])
    return update


@pytest.mark.parametrize(
    ("update_of", "status", "num_tokens"),
    [
        (not_finite, Status.NOT_FINITE, 0),
        (lambda client, params: jax.tree.map(jnp.zeros_like, params), Status.ZERO, 0),
        (six_sequences, Status.SPAN_FULL, 0),
        (noisy_head, Status.DIFFERENT, 12),
        (second_block_withheld, Status.INCOMPLETE, 12),
    ],
)
def test_what_cannot_be_exact_gets_a_status_and_no_certificate(solve, client, params, update_of, status, num_tokens):
    found = solve(update_of(client, params), params)
    assert int(found.info["status"]) == status
    assert not bool(found.info["certified"])
    assert WORDS[status].startswith("not certified")
    assert int(found.info["found"].sum()) == num_tokens


def test_tolerances_of_float64_see_only_noise_in_a_float32_update(solve, client, params):
    tolerances = spans.tolerances(float(np.finfo(np.float64).eps))
    found = solve(client(params, sequences(1)), params, tolerances)
    assert int(found.info["status"]) == Status.SPAN_FULL
    assert not found.info["found"].any()


@pytest.mark.slow
def test_an_encoder_gives_away_its_sequences_and_classes(params):
    client = jax.jit(fedsgd(ENCODER.loss_fn))
    params = ENCODER.init(jax.random.key(0))
    batch = sequences(5, 2)._replace(labels=jnp.array([2, 0]))
    update = client(params, batch)
    found = jax.jit(dager(TextProblem(client, ENCODER, 2)))(None, Observation(params, update))
    np.testing.assert_array_equal(found.info["found"], where(batch))
    assert rows_of(found.inputs, found.labels[:, None]) == rows_of(batch.inputs, batch.labels[:, None])
    assert bool(found.info["certified"])


@pytest.mark.slow
def test_one_block_gives_away_one_sequence():
    model = decoder(depth=1, **SIZES)
    client = jax.jit(fedsgd(model.loss_fn))
    params, batch = model.init(jax.random.key(0)), sequences(1, 1)
    found = jax.jit(dager(TextProblem(client, model, 1)))(None, Observation(params, client(params, batch)))
    np.testing.assert_array_equal(found.inputs, batch.inputs)
    assert bool(found.info["certified"])


def test_what_does_not_fit_is_refused(client, params):
    with pytest.raises(ValueError, match="num_sequences must be at least 1, got 0"):
        dager(TextProblem(client, DECODER, 0))
    with pytest.raises(ValueError, match=r"the update lacks \['params/attention_0/query/kernel'"):
        dager(TextProblem(client, DECODER, 1))(None, Observation({}, {"params": {"head": jnp.ones(2)}}))
