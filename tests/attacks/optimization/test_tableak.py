"""TabLeak: its parts by hand, and the whole on clients whose records are known."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

from jaxinvert import clients, schema, search
from jaxinvert.attacks import Problem, tableak
from jaxinvert.attacks.optimization.tableak import entropy, matched, pool
from jaxinvert.audit import controls
from jaxinvert.observation.observe import observe_targets
from jaxinvert.schema import Column
from jaxinvert.types import Batch
from tests.conftest import model_of

SCHEMA = (Column("age", low=0, high=100), Column("color", ("red", "green", "blue")), Column("mass", low=0, high=1))
WIDTH = schema.encoded_width(SCHEMA)


def encoded(rows):
    """`[B, 1, 1, F]` of five numbers a record."""
    return jnp.array(rows)[:, None, None]


def test_matching_is_the_cheapest_assignment_within_labels():
    keys = jax.random.split(jax.random.key(0))
    found, reference = (jax.random.uniform(key, (6, 1, 1, WIDTH)) for key in keys)
    labels = jnp.array([0, 1, 0, 1, 0, 1])
    costs = np.sum((reference[:, None] - found[None]) ** 2, axis=(2, 3, 4))
    _, expected = linear_sum_assignment(costs + 1e3 * (labels[:, None] != labels[None]))
    np.testing.assert_array_equal(jax.jit(matched)(found, reference, labels), found[expected])
    assert (labels[expected] == labels).all()
    _, anywhere = linear_sum_assignment(costs)
    assert (labels[anywhere] != labels).any()  # without labels it would be another


def test_pooling_takes_medians_of_values_and_means_of_probabilities_of_valid_members():
    members = jnp.stack(
        [
            encoded([[0.1, 1.0, 0.0, 0.0, 0.2]]),
            encoded([[0.2, 0.4, 0.6, 0.0, 0.9]]),
            encoded([[0.9, 0.4, 0.3, 0.3, 0.3]]),
            encoded([[0.0, 0.0, 0.0, 1.0, 0.0]]),
        ]
    )
    valid = jnp.array([True, True, True, False])
    pooled, spread = jax.jit(lambda *of: (pool(SCHEMA, *of), entropy(SCHEMA, *of)))(members, valid)
    np.testing.assert_allclose(pooled[0, 0, 0], [0.2, 0.6, 0.3, 0.1, 0.3], rtol=1e-6)
    of_color = -(0.6 * np.log(0.6) + 0.3 * np.log(0.3) + 0.1 * np.log(0.1)) / np.log(3)
    of_age = 0.5 * np.log(2 * np.pi * np.e * np.var([0.1, 0.2, 0.9]))
    np.testing.assert_allclose(spread[0, :2], [of_age, of_color], rtol=1e-5)
    agreed = jax.jit(partial(entropy, SCHEMA))(members, jnp.array([True, False, False, False]))[0]
    assert agreed[1] == 0
    assert agreed[0] == pytest.approx(0.5 * np.log(2 * np.pi * np.e * 1e-6), rel=1e-5)


@pytest.mark.slow
def test_records_are_found_and_neither_noise_nor_a_broken_update_is_believed():
    """Three clients in one program: an honest one, normal noise in place of its update, and NaN."""

    def apply(params, inputs):
        hidden = jnp.tanh(inputs.reshape(len(inputs), -1) @ params["in"] + params["bias"][None])
        return hidden @ params["out"]

    keys = jax.random.split(jax.random.key(0), 4)
    params = {
        "in": jax.random.normal(keys[0], (WIDTH, 24)),
        "bias": jnp.zeros(24),
        "out": jax.random.normal(keys[1], (24, 2)) / 5,
    }
    truth = encoded([[0.3, 0, 1, 0, 0.8], [0.7, 1, 0, 0, 0.4]])
    model = model_of(apply, lambda key: params, input_shape=(1, 1, WIDTH), num_classes=2, head="")
    client = clients.fedsgd(model.loss)
    one = observe_targets(client, params, Batch(truth[None], jnp.array([[0, 1]])))
    noise = controls.random_update(keys[2], one).update
    broken = jax.tree.map(lambda leaf: leaf * jnp.nan, one.update)
    update = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), one.update, noise, broken)
    observations = one._replace(update=update, labels=jnp.tile(one.labels, (3, 1)))
    problem = Problem(client, model._replace(mean=(0.5,) * WIDTH, std=(0.25,) * WIDTH), 2, schema=SCHEMA)
    solve = tableak(problem, num_members=4, num_steps=400)
    found = jax.jit(search.over_targets(solve))(keys[3], observations)
    np.testing.assert_allclose(found.inputs[0], truth, atol=0.02)
    assert found.info["members"].shape == (3, 4, 2, 1, 1, WIDTH)
    assert found.info["entropy"][0, :, 1].max() < 0.1
    assert found.attack_loss[0] < 1e-3
    assert found.attack_loss[1] > 0.3
    assert np.abs(found.inputs[1] - truth).max() > 0.2
    assert np.isinf(found.attack_loss[2])
    assert np.isfinite(found.inputs[2]).all()
