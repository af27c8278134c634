"""The dense layer's closed form, against inputs that are known by construction."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxinvert import clients, models
from jaxinvert.attacks import Problem
from jaxinvert.attacks.closed_form import dense
from jaxinvert.observation.observe import observe
from jaxinvert.observation.threat_models import LADDER
from jaxinvert.types import Batch, Observation

MLP = models.create("mlp", input_shape=(4, 4, 3), features=(32,), mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.3))


def problem_of(model, num_examples=1):
    return Problem(clients.fedsgd(model.loss), model, num_examples)


def layer_gradient(output_gradients, inputs):
    """`(dL/dW [features, units], dL/db [units])` of a dense layer, from its definition."""
    return jnp.einsum("bu,bf->fu", output_gradients, inputs), jnp.sum(output_gradients, axis=0)


@pytest.fixture
def inputs():
    return jax.random.uniform(jax.random.key(0), (3, 20))


def test_one_example_is_recovered_to_1e_5_in_float64():
    with jax.enable_x64(True):
        params = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), MLP.init(jax.random.key(0)))
        batch = Batch(jax.random.uniform(jax.random.key(1), (1, 4, 4, 3), jnp.float64), jnp.array([3]))
        observation = observe(
            clients.fedsgd(models.cross_entropy(MLP.apply)), params, batch, threat_model=LADDER["C"]
        )
        solve = dense.dense_layer(problem_of(MLP))
        found = jax.jit(solve)(jax.random.key(2), observation)
        np.testing.assert_allclose(found.inputs, batch.inputs, atol=1e-5)
        assert found.labels is None
        assert float(found.attack_loss) < 1e-10


def test_units_are_divided_by_their_bias_gradient_and_dead_ones_are_invalid(inputs):
    output_gradients = jnp.array([[0.5, 0.0, -2.0]])
    units = dense.unit_inputs(*layer_gradient(output_gradients, inputs[:1]))
    assert units.valid.tolist() == [True, False, True]
    np.testing.assert_allclose(units.inputs[0], inputs[0], rtol=1e-6)
    np.testing.assert_allclose(units.inputs[2], inputs[0], rtol=1e-6)
    assert not np.any(units.inputs[1])


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_broken_unit_does_not_spoil_the_others(inputs, bad):
    kernel, bias = layer_gradient(jnp.array([[0.5, 1.0, -2.0]]), inputs[:1])
    units = dense.unit_inputs(kernel.at[3, 0].set(bad), bias.at[1].set(bad))
    assert units.valid.tolist() == [False, False, True]
    np.testing.assert_allclose(units.inputs[2], inputs[0], rtol=1e-6)


@pytest.mark.slow
def test_an_all_zero_gradient_has_no_valid_unit():
    units = dense.unit_inputs(jnp.zeros((5, 4)), jnp.zeros(4))
    assert not np.any(units.valid)
    assert np.all(np.isfinite(units.inputs))
    found = dense.distinct_inputs(jax.random.key(0), units, num_candidates=2)
    assert not np.any(found.valid)


@pytest.mark.slow
def test_every_unit_activated_by_one_example_yields_that_example(inputs):
    # Units 0-5 see one example each (two units per example), units 6-7 see mixtures.
    output_gradients = jnp.array(
        [
            [1.0, -0.5, 0, 0, 0, 0, 0.5, 1.0],
            [0, 0, 2.0, 0.3, 0, 0, 0.5, 0.0],
            [0, 0, 0, 0, -1.0, 0.7, 0.0, 1.0],
        ]
    )
    units = dense.unit_inputs(*layer_gradient(output_gradients, inputs))
    np.testing.assert_allclose(units.inputs[:6], jnp.repeat(inputs, 2, axis=0), rtol=1e-5)
    found = dense.distinct_inputs(jax.random.key(1), units, num_candidates=5)
    assert found.num_units.tolist() == [2, 2, 2, 1, 1]
    order = np.argsort(np.asarray(found.inputs[:3, 0]))
    np.testing.assert_allclose(found.inputs[:3][order], inputs[np.argsort(inputs[:, 0])], rtol=1e-5)


def test_plausible_candidates_come_first(inputs):
    units = dense.unit_inputs(*layer_gradient(jnp.diag(jnp.array([1.0, 2.0, 3.0])), inputs))
    found = dense.distinct_inputs(
        jax.random.key(0), units, num_candidates=1, plausible=jnp.array([False, True, False])
    )
    np.testing.assert_allclose(found.inputs[0], inputs[1], rtol=1e-5)


def test_fewer_distinct_inputs_than_asked_for_are_marked(inputs):
    units = dense.unit_inputs(*layer_gradient(jnp.array([[1.0, 2.0, -1.0]]), inputs[:1]))
    found = dense.distinct_inputs(jax.random.key(0), units, num_candidates=3)
    assert found.valid.tolist() == [True, False, False]


@pytest.mark.slow
def test_a_batch_whose_examples_activate_own_units_is_recovered():
    """Two one-hot-like images drive two disjoint sets of ReLU units, by construction of the kernel."""
    images = jnp.stack([jnp.zeros((4, 4, 3)).at[:2].set(0.9), jnp.zeros((4, 4, 3)).at[2:].set(0.7)])
    flat = images.reshape(2, -1)
    model = models.create("mlp", input_shape=(4, 4, 3), features=(8,))
    params = model.init(jax.random.key(0))
    kernel = jnp.stack([flat[i % 2] - flat[1 - i % 2] for i in range(8)], axis=1)
    params["params"]["dense_0"] = {"kernel": kernel, "bias": jnp.zeros(8)}
    client = clients.fedsgd(models.cross_entropy(model.apply))
    observation = observe(client, params, Batch(images, jnp.array([1, 5])))
    found = dense.dense_layer(problem_of(model, 2))(jax.random.key(1), observation)
    assert found.info["valid"].all()
    assert (found.info["num_units"] == 4).all()
    order = np.argsort(np.asarray(found.inputs[:, 0, 0, 0]))[::-1]
    np.testing.assert_allclose(found.inputs[order], images, atol=1e-5)
    assert float(found.attack_loss) < 1e-4


@pytest.mark.slow
def test_unexplained_share_separates_the_truth_from_a_guess(inputs):
    kernel, bias = layer_gradient(jax.random.normal(jax.random.key(3), (3, 12)), inputs)
    all_valid = jnp.ones(3, bool)
    assert float(dense.unexplained_share(kernel, bias, inputs, all_valid)) < 1e-5
    # Two of three inputs leave about a third of the energy; a repeated one adds nothing to the span.
    partly = float(dense.unexplained_share(kernel, bias, inputs[:2], all_valid[:2]))
    assert 0.05 < partly < 0.9
    for repeated in ([0, 1, 1], [0, 0, 1]):
        share = dense.unexplained_share(kernel, bias, inputs[jnp.array(repeated)], all_valid)
        assert float(share) == pytest.approx(partly, rel=1e-3)
    with_repeat = dense.unexplained_share(kernel, bias, inputs[jnp.array([0, 0, 1, 2])], jnp.ones(4, bool))
    assert float(with_repeat) < 1e-5
    assert float(dense.unexplained_share(kernel, bias, inputs, ~all_valid)) == 1
    assert float(dense.unexplained_share(kernel * 0, bias * 0, inputs, all_valid)) == 1


@pytest.mark.slow
def test_units_may_agree_on_a_mixture():
    """The documented exception: proportional gradients, here softmax regression from a zero start."""
    model = models.create("mlp", input_shape=(4, 4, 3), features=())
    params = jax.tree.map(jnp.zeros_like, model.init(jax.random.key(0)))
    batch = Batch(jax.random.uniform(jax.random.key(1), (2, 4, 4, 3)), jnp.array([0, 1]))
    observation = observe(clients.fedsgd(models.cross_entropy(model.apply)), params, batch)
    found = dense.dense_layer(problem_of(model, 2))(jax.random.key(0), observation)
    assert int(found.info["num_units"][0]) == 8  # the units of the eight absent classes
    np.testing.assert_allclose(found.inputs[0], batch.inputs.mean(axis=0), atol=1e-5)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_half_precision_updates_are_divided_in_float32(inputs, dtype):
    kernel, bias = layer_gradient(jnp.array([[1.0, 0.5, -2.0]]), inputs[:1])
    units = dense.unit_inputs(kernel.astype(dtype), bias.astype(dtype))
    assert units.valid.all()
    np.testing.assert_allclose(units.inputs, jnp.repeat(inputs[:1], 3, axis=0), rtol=0.01)


@pytest.mark.slow
def test_vmap_over_clients_equals_a_loop():
    client = clients.fedsgd(models.cross_entropy(MLP.apply))
    params = MLP.init(jax.random.key(0))
    batches = Batch(jax.random.uniform(jax.random.key(1), (4, 1, 4, 4, 3)), jnp.arange(4)[:, None])
    updates = jax.vmap(client, in_axes=(None, 0))(params, batches)
    solve = dense.dense_layer(problem_of(MLP))
    found = jax.vmap(lambda update: solve(jax.random.key(0), Observation(params, update)).inputs)(updates)
    np.testing.assert_allclose(found, batches.inputs, atol=1e-4)


def test_a_model_without_such_a_layer_is_refused():
    model = models.create("lenet", input_shape=(16, 16, 3))
    params = model.init(jax.random.key(0))
    solve = dense.dense_layer(problem_of(model))
    with pytest.raises(ValueError, match=r"one biased dense layer that reads images.*768 features.*has 0"):
        solve(jax.random.key(0), Observation(params, params))


def test_an_unfitting_layer_is_named():
    params = MLP.init(jax.random.key(0))
    with pytest.raises(ValueError, match=r"'params/head' reads 32 features"):
        dense.dense_layer(problem_of(MLP), layer="params/head")(jax.random.key(0), Observation(params, params))
    with pytest.raises(ValueError, match=r"no biased dense layer 'params/nowhere'"):
        dense.dense_layer(problem_of(MLP), layer="params/nowhere")(jax.random.key(0), Observation(params, params))


def test_one_example_is_read_from_its_most_reliable_unit(inputs):
    kernel, bias = layer_gradient(jnp.array([[0.5, 0.0, -2.0]]), inputs[:1])
    found, valid = dense.single_input(kernel, bias)
    np.testing.assert_array_equal(found, kernel[:, 2] / bias[2])
    assert bool(valid)
    for broken in (bias * 0, bias * jnp.nan):
        found, valid = dense.single_input(kernel, broken)
        assert not bool(valid)
        assert not np.any(found)


@pytest.mark.parametrize("batch_size", [1, 2])
def test_broken_updates_are_not_believed(batch_size):
    """In one program: zeros, NaN, a bias gradient without kernel gradient, and one broken number."""
    params = MLP.init(jax.random.key(0))
    honest = jax.tree.map(lambda leaf: jnp.ones_like(leaf), params)
    no_kernel = jax.tree.map(jnp.zeros_like, params)
    no_kernel["params"]["dense_0"]["bias"] = jnp.ones(32)
    one_nan = jax.tree.map(jnp.copy, honest)
    one_nan["params"]["dense_0"]["kernel"] = one_nan["params"]["dense_0"]["kernel"].at[3, 5].set(jnp.nan)
    broken = [jax.tree.map(lambda leaf, value=value: leaf * value, honest) for value in (0.0, jnp.nan)]
    updates = jax.tree.map(lambda *leaves: jnp.stack(leaves), *broken, no_kernel, one_nan)
    solve = dense.dense_layer(problem_of(MLP._replace(mean=(0.0,) * 3, std=(1.0,) * 3), batch_size))
    found = jax.jit(jax.vmap(lambda update: solve(jax.random.key(0), Observation(params, update))))(updates)
    assert not found.info["valid"][:2].any()
    assert (found.attack_loss[:2] == 1).all()
    assert float(found.attack_loss[2]) < 1e-6  # a black image explains it
    assert found.info["valid"][2, 0]
    assert float(found.attack_loss[3]) == 1  # whatever was read of the other units is not certain
    assert np.isfinite(found.inputs).all()
    np.testing.assert_array_equal(found.info["num_units"][:2], 0)
