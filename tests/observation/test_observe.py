"""The door: what an observation holds, and one clear error for each kind of bad input."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxinvert import clients
from jaxinvert.observation.observe import check_batch, check_update, observe, require
from jaxinvert.observation.threat_models import LADDER
from jaxinvert.types import Batch, Observation

PARAMS = {"dense": {"kernel": jnp.ones((2, 3)), "bias": jnp.zeros(3)}}
GOOD = Batch(jnp.full((2, 4, 4, 3), 0.5), jnp.array([0, 2]))


def test_an_observation_holds_the_update_and_what_is_granted(victim):
    expected = victim.client_update(victim.params, victim.batch)
    jax.tree.map(np.testing.assert_array_equal, victim.observation.update, expected)
    assert victim.observation.num_examples == 1
    np.testing.assert_array_equal(victim.observation.labels, victim.batch.labels)
    assert observe(victim.client_update, victim.params, victim.batch, threat_model=LADDER["C"]).labels is None


def test_fedsgd_is_the_gradient(victim):
    def loss(params, batch):
        return jnp.sum(params["w"] * batch.inputs)

    update = clients.fedsgd(loss)({"w": jnp.ones(3)}, Batch(jnp.array([1.0, 2.0, 3.0]), jnp.zeros(3)))
    assert update["w"].tolist() == [1, 2, 3]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"inputs": lambda inputs: inputs * 255},
            r"inputs range over \[.*\], expected \[0, 1\]: divide bytes by 255",
        ),
        ({"inputs": lambda inputs: inputs * 4 - 2}, r"inputs range over \[-.*: undo their normalization"),
        ({"inputs": lambda inputs: (inputs * 255).astype(jnp.uint8)}, "inputs have dtype uint8, expected floats in"),
        ({"inputs": lambda inputs: inputs * jnp.nan}, "inputs hold non-finite values"),
        ({"labels": lambda labels: labels[:0]}, r"labels have shape \(0,\) .* expected one label per example"),
        ({"labels": lambda labels: labels * 0 - 1}, r"labels \[-1\] are negative"),
        ({"labels": lambda labels: labels * 0 + 99}, r"labels range over \[99, 99\]: give num_classes"),
    ],
)
def test_what_is_wrong_with_a_batch_is_named_before_its_update_is(change, message, victim):
    batch = victim.batch._replace(**{name: make(getattr(victim.batch, name)) for name, make in change.items()})
    with pytest.raises(ValueError, match=message):
        observe(victim.client_update, victim.params, batch)


def test_tokens_are_no_images():
    def update(params, batch):
        return {"w": batch.inputs.astype(jnp.float32)}

    tokens = Batch(jnp.array([[7, 300]]), jnp.array([0]))
    assert observe(update, {"w": jnp.zeros((1, 2))}, tokens).num_examples == 1


def test_a_good_batch_passes():
    check_batch(GOOD, input_shape=(4, 4, 3), num_classes=3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"inputs": jnp.zeros((2, 4, 5, 3))}, r"inputs have shape \(2, 4, 5, 3\), expected \(B, 4, 4, 3\)"),
        ({"labels": jnp.array([0])}, r"labels have shape \(1,\), expected \(2,\)"),
        ({"labels": jnp.array([0.0, 1.0])}, "dtype float32, expected integer"),
        ({"labels": jnp.array([0, 3])}, r"labels \[3\] are outside \[0, 3\)"),
        ({"labels": jnp.array([-1, 1])}, r"labels \[-1\] are outside"),
        ({"inputs": GOOD.inputs.at[0, 0, 0, 0].set(jnp.nan)}, "inputs hold non-finite"),
        ({"inputs": GOOD.inputs * 255}, r"range over \[127.5, 127.5\], expected \[0, 1\]"),
    ],
)
def test_a_bad_batch_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        check_batch(GOOD._replace(**change), input_shape=(4, 4, 3), num_classes=3)


@pytest.mark.parametrize(
    ("update", "message"),
    [
        ({"dense": {"kernel": jnp.ones((2, 3))}}, r"lacks \['dense/bias'\]"),
        (PARAMS | {"spare": jnp.ones(1)}, r"has \['spare'\], which the model's parameters lack"),
        (
            {"dense": {"kernel": jnp.ones((3, 2)), "bias": jnp.ones(3)}},
            r"'dense/kernel' has shape \(3, 2\), expected \(2, 3\)",
        ),
        (
            {"dense": {"kernel": jnp.ones((2, 3)), "bias": jnp.full(3, jnp.nan)}},
            "'dense/bias' holds 3 non-finite",
        ),
        (
            {"dense": {"kernel": jnp.full((2, 3), jnp.inf), "bias": jnp.ones(3)}},
            "'dense/kernel' holds 6 non-finite",
        ),
        (jax.tree.map(jnp.zeros_like, PARAMS), "zero in every tensor"),
    ],
)
def test_a_bad_update_is_refused_by_name(update, message):
    with pytest.raises(ValueError, match=message):
        check_update(PARAMS, update)


def test_values_are_not_looked_at_while_tracing():
    jax.jit(lambda update: check_update(PARAMS, update))(jax.tree.map(jnp.zeros_like, PARAMS))


def test_require_names_attack_and_field():
    with pytest.raises(ValueError, match=r"idlg needs observation\.labels"):
        require(Observation(None, None), "labels", attack="idlg")
    assert require(Observation(None, None, labels=jnp.ones(1)), "labels", attack="idlg").shape == (1,)
