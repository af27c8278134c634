"""The recursion through dense layers, on perceptrons written here whose inputs are known."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxinvert import clients, jobs, models
from jaxinvert.attacks import Problem
from jaxinvert.attacks.closed_form import dense, dense_chain
from jaxinvert.attacks.closed_form.dense_chain import (
    RELU,
    Activation,
    layers_in_order,
    read_chain,
    unexplained_by_layer,
)
from jaxinvert.types import Batch, Observation
from tests.conftest import model_of

IMAGE = (3, 4, 2)
LAYERS = ("first", "second", "head")


def perceptron(key, *, widths=(40, 30, 5), biased=(False, True, True)):
    """Parameters with spread weights, so that examples activate different units."""
    params, inputs = {}, 24
    for name, width, has_bias, layer_key in zip(LAYERS, widths, biased, jax.random.split(key, 3)):
        kernel_key, bias_key = jax.random.split(layer_key)
        params[name] = {"kernel": jax.random.normal(kernel_key, (inputs, width)) / inputs**0.5}
        if has_bias:
            params[name]["bias"] = 0.1 * jax.random.normal(bias_key, (width,))
        inputs = width
    return params


def apply(params, images, *, activation=jax.nn.relu):
    """Logits; the pixels are normalized by mean 0.5 and standard deviation 0.25."""
    hidden = ((images - 0.5) / 0.25).reshape(len(images), -1)
    for name in LAYERS:
        hidden = hidden @ params[name]["kernel"] + params[name].get("bias", jnp.zeros(1))[None]
        hidden = hidden if name == "head" else activation(hidden)
    return hidden


def observed(params, batch_size, *, activation=jax.nn.relu):
    images = jax.random.uniform(jax.random.key(7), (batch_size, *IMAGE))
    client = jax.jit(clients.fedsgd(models.cross_entropy(partial(apply, activation=activation))))
    return images, Observation(params, client(params, Batch(images, jnp.arange(batch_size))))


def problem_of(batch_size):
    model = model_of(apply, perceptron, input_shape=IMAGE, num_classes=5)
    return Problem(clients.fedsgd(model.loss), model._replace(mean=(0.5, 0.5), std=(0.25, 0.25)), batch_size)


def solver(batch_size, **options):
    return jax.jit(dense_chain(problem_of(batch_size), layers=LAYERS, **options))


@pytest.mark.slow
@pytest.mark.parametrize(
    "biased", [(True, True, True), (False, True, True), (False, False, True)], ids=["first", "second", "head"]
)
def test_one_example_is_exact_wherever_the_first_bias_is(biased):
    images, observation = observed(perceptron(jax.random.key(0), biased=biased), 1)
    found = solver(1)(jax.random.key(1), observation)
    np.testing.assert_allclose(found.inputs, images, atol=1e-4)
    assert found.info["valid"].all()
    assert found.info["unexplained"].shape == (3,)
    assert float(found.attack_loss) < 1e-4


def test_an_activation_that_can_be_inverted_everywhere_needs_no_active_units():
    tanh = Activation(jnp.tanh, lambda outputs: (jnp.arctanh(outputs), jnp.abs(outputs) < 0.99))
    images, observation = observed(perceptron(jax.random.key(0)), 1, activation=jnp.tanh)
    found = solver(1, activation=tanh)(jax.random.key(1), observation)
    np.testing.assert_allclose(found.inputs, images, atol=1e-3)
    assert float(found.attack_loss) < 1e-3


@pytest.mark.slow
def test_a_batch_is_solved_in_the_span_of_a_layer_without_bias():
    """Three examples behind 40 units: 24 unknown pixels each, of which the span leaves three."""
    images, observation = observed(perceptron(jax.random.key(3), widths=(40, 200, 5)), 3)
    found = solver(3)(jax.random.key(1), observation)
    assert found.info["valid"].all()
    order = [int(jnp.argmin(jnp.sum((found.inputs - image[None]) ** 2, axis=(1, 2, 3)))) for image in images]
    assert sorted(order) == [0, 1, 2]
    np.testing.assert_allclose(found.inputs[jnp.array(order)], images, atol=1e-3)
    assert float(found.attack_loss) < 1e-3


@pytest.mark.slow
def test_mixtures_explain_the_first_layer_but_not_the_second():
    images, observation = observed(perceptron(jax.random.key(0), biased=(True, True, True)), 2)
    flat = ((images - 0.5) / 0.25).reshape(2, -1)
    mixtures = jnp.array([[0.7, 0.3], [0.2, 0.8]]) @ flat
    chain = read_chain(observation, LAYERS, num_features=24)
    valid = jnp.ones(2, bool)
    first = chain[0]
    assert float(dense.unexplained_share(first.kernel_gradient, first.bias_gradient, mixtures, valid)) < 1e-5
    of_mixtures, of_truth = (
        jax.jit(lambda inputs: unexplained_by_layer(chain, inputs, valid, RELU))(inputs)
        for inputs in (mixtures, flat)
    )
    assert float(of_truth.max()) < 1e-5
    assert float(of_mixtures[0]) < 1e-5
    assert float(of_mixtures[1:].min()) > 0.05


@pytest.mark.slow
def test_a_repeated_example_and_broken_updates_have_a_verdict():
    """Rank 1 instead of 2, zeros, and NaN: never a low loss with something else than the truth."""
    params = perceptron(jax.random.key(0))
    image, one = observed(params, 1)
    repeated = one.update  # two equal examples with equal labels have the gradient of one
    zeros, nans = (jax.tree.map(lambda leaf, value=value: leaf * value, one.update) for value in (0.0, jnp.nan))
    updates = jax.tree.map(lambda *leaves: jnp.stack(leaves), repeated, zeros, nans)
    solve = dense_chain(problem_of(2), layers=LAYERS)
    found = jax.jit(jax.vmap(lambda update: solve(jax.random.key(1), Observation(params, update))))(updates)
    assert found.info["valid"].tolist() == [[True, False], [False, False], [False, False]]
    np.testing.assert_allclose(found.inputs[0, 0], image[0], atol=1e-3)
    assert float(found.attack_loss[0]) < 1e-3
    assert (found.attack_loss[1:] == 1).all()
    assert np.isfinite(found.inputs).all()


def test_what_is_no_chain_is_refused_by_name():
    params = perceptron(jax.random.key(0), biased=(False, False, False))
    _, observation = observed(params, 1)
    for layers, message in [
        (LAYERS, "needs a layer with a bias"),
        (("first", "third"), "no dense layer 'third'"),
        (("second",), "'second' reads 40 features, but the layer before it has 24"),
    ]:
        with pytest.raises(ValueError, match=message):
            dense_chain(problem_of(1), layers=layers)(jax.random.key(0), observation)


def test_layers_come_in_the_order_of_their_numbers_and_the_head_last():
    shapes = jax.eval_shape(models.create("mlp", features=(4,) * 12).init, jax.random.key(0))
    layers = layers_in_order(shapes, head="params/head")
    assert layers == (*(f"params/dense_{number}" for number in range(12)), "params/head")
    assert layers_in_order(shapes, head="params/dense_0")[-1] == "params/dense_0"


@pytest.mark.parametrize(
    ("model", "head", "message"),
    [
        ("lenet", "params/head", r"only dense layers; this one also has \['params/conv_0/bias'"),
        ("mlp", "params/out", r"the head 'params/out' is no dense layer .* has \['params/dense_0', 'params/head'\]"),
    ],
)
def test_what_is_no_perceptron_is_refused(model, head, message):
    shapes = jax.eval_shape(models.create(model).init, jax.random.key(0))
    with pytest.raises(ValueError, match=message):
        layers_in_order(shapes, head=head)


@pytest.mark.slow
def test_the_registered_attack_reads_a_perceptron_whose_only_bias_is_in_the_head():
    config = jobs.JobConfig.of(attack="dense-chain", model="mlp-unbiased-128-64", size=12, targets=2)
    task = jobs.prepare(config)
    found = jobs.execute(config, task.program, task.observations)
    np.testing.assert_allclose(found.reconstructions.inputs, task.truth.inputs, atol=1e-4)
    targets = jobs.measure(config, task, found).summary["targets"]
    assert all(len(target["unexplained"]) == 3 and target["attack_loss"] < 1e-4 for target in targets)
