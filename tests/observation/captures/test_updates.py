"""What federated servers capture becomes one pseudo-gradient, whichever way it was captured."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxinvert.observation import captures
from jaxinvert.observation.captures import as_update

BEFORE = {"params": {"w": jnp.array([1.0, 2.0])}, "batch_stats": {"mean": jnp.array([5.0])}}
AFTER = {"params": {"w": jnp.array([0.75, 2.5])}, "batch_stats": {"mean": jnp.array([6.0])}}
DELTA = jax.tree.map(jnp.subtract, AFTER, BEFORE)
STEP = jax.tree.map(jnp.subtract, BEFORE, AFTER)


@pytest.mark.parametrize(("kind", "captured"), [("pseudo-gradient", STEP), ("delta", DELTA), ("weights", AFTER)])
def test_the_kinds_agree(kind, captured):
    for make in (as_update, jax.jit(as_update, static_argnames="kind")):
        update = make(captured, BEFORE, kind=kind)
        assert update["params"]["w"].tolist() == [0.25, -0.5]  # before - after
        assert update["batch_stats"]["mean"].tolist() == [0.0]


def test_parameters_without_collections():
    update = as_update([jnp.array([1.0])], [jnp.array([3.0])], kind="weights")
    assert update[0].tolist() == [2.0]


@pytest.mark.parametrize(
    ("captured", "kind", "message"),
    [
        (STEP, "gradients", "kind is 'gradients', expected one of pseudo-gradient, delta, weights"),
        (BEFORE, "weights", "zero in every tensor"),
        ({"params": {}, "batch_stats": {"mean": jnp.zeros(1)}}, "delta", "lacks .*params/w"),
        ({**DELTA, "params": {"w": jnp.zeros(3)}}, "delta", r"has shape \(3,\)"),
        ({**DELTA, "params": {"w": jnp.array([1.0, np.inf])}}, "delta", "non-finite"),
        ({**DELTA, "params": {"w": jnp.zeros(2)}}, "delta", "zero in every tensor"),  # only running statistics moved
    ],
)
def test_what_no_client_sends_is_refused(captured, kind, message):
    with pytest.raises(ValueError, match=message):
        as_update(captured, BEFORE, kind=kind)


@pytest.mark.parametrize("kind", ["pseudo-gradient", "delta", "weights"])
def test_statistics_are_read_if_all_of_them_were_sent(kind):
    """A layer that the file lacks is zero; it must not be read as that layer's statistics."""
    before = {name: {"mean": jnp.array([5.0]), "var": jnp.array([2.0])} for name in ("first", "second")}
    after = jax.tree.map(lambda leaf: leaf + 1, before)
    sent = {
        "weights": after,
        "delta": jax.tree.map(jnp.subtract, after, before),
        "pseudo-gradient": jax.tree.map(jnp.subtract, before, after),
    }[kind]
    params, net = {"params": {}, "batch_stats": before}, {"params": {}}
    found = captures.sent_statistics({**net, "batch_stats": sent}, params, kind=kind)
    jax.tree.map(np.testing.assert_allclose, found, after)
    lacking = {**sent, "second": jax.tree.map(jnp.zeros_like, sent["second"])}
    assert captures.sent_statistics({**net, "batch_stats": lacking}, params, kind=kind) is None
