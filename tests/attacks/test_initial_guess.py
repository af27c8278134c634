"""The first guess: its regression by hand, what it reads off a batch, what it finds, and what noise makes of it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxinvert import models
from jaxinvert.attacks import Problem
from jaxinvert.attacks.initial_guess import KnownPictures, directions, inputs_behind, regressed, ridge_regression
from jaxinvert.clients import fedsgd
from jaxinvert.observation.observe import observe
from jaxinvert.priors import parametrizations
from jaxinvert.types import Batch
from tests.conftest import model_of

SHAPE = (2, 6, 6, 1)
PARAMS = {
    "body": jax.random.normal(jax.random.key(0), (36, 40)) / 6,
    "head": {"kernel": 0.05 * jax.random.normal(jax.random.key(1), (40, 5)), "bias": jnp.zeros(5)},
}
BATCH = Batch(jnp.stack([jnp.linspace(0, 1, 36).reshape(6, 6, 1), jnp.full((6, 6, 1), 0.9)]), jnp.array([3, 1]))


def apply(params, inputs):
    """Forty readings of all pixels around a part that is always there, and a dense layer of five classes."""
    read = 2 + (inputs.reshape(len(inputs), -1) - 0.5) @ params["body"]
    return read @ params["head"]["kernel"] + params["head"]["bias"][None]


CLIENT = fedsgd(models.cross_entropy(apply))


def problem_of(apply=apply, *, params=PARAMS, shape=SHAPE, num_classes=5, head="head"):
    model = model_of(apply, lambda key: params, input_shape=shape[1:], num_classes=num_classes, head=head)
    return Problem(fedsgd(model.loss), model, shape[0])


def error(guess, observation):
    found = jax.jit(guess)(observation)
    assert found.shape == SHAPE
    assert 0 <= float(found.min()) <= float(found.max()) <= 1
    return float(jnp.mean((found - BATCH.inputs) ** 2))


def test_a_linear_law_is_predicted_where_it_was_not_seen():
    """Values are exactly linear in features, so the least of the ridges is best, and shrinks by a known share."""
    points = jax.random.normal(jax.random.key(0), (50, 3))
    values = points @ jnp.array([[1.0, 2.0], [0.0, -1.0], [3.0, 0.0]]) + 7
    new = jnp.array([[0.5, -1.0, 0.2]])
    predicted = ridge_regression(points, values, new)
    mean, centered = np.mean(values, axis=0), points - points.mean(axis=0, keepdims=True)
    ridge = 0.003 * float(jnp.mean(jnp.sum(centered**2, axis=1)))
    weights = np.linalg.solve(centered.T @ centered + ridge * np.eye(3), centered.T @ (values - mean[None]))
    np.testing.assert_allclose(predicted, (new - points.mean(axis=0)[None]) @ weights + mean[None], rtol=1e-4)


def test_what_varies_more_than_known_points_is_taken_for_noise():
    """Six times as far off as known points are on average, in `F` features: `N` times the excess by `F`."""
    points = jax.random.normal(jax.random.key(0), (50, 3))
    points -= points.mean(axis=0, keepdims=True)
    values = points @ jnp.array([[1.0], [0.0], [3.0]])
    square = float(jnp.mean(jnp.sum(points**2, axis=1)))
    new = jnp.array([[1.0, -2.0, 0.5]])
    new *= 6 * np.sqrt(square / float(jnp.sum(new**2)))
    ridge = square * (0.003 + 50 * (36 - 1) / 3)
    weights = np.linalg.solve(points.T @ points + ridge * np.eye(3), points.T @ values)
    np.testing.assert_allclose(ridge_regression(points, values, new), new @ weights, rtol=1e-3)


def test_where_values_have_nothing_to_do_with_features_their_mean_is_predicted():
    points, values = jax.random.normal(jax.random.key(0), (40, 30)), jax.random.normal(jax.random.key(1), (40, 500))
    predicted = ridge_regression(points, values, points[:1])
    mean = values.mean(axis=0)
    assert float(jnp.linalg.norm(predicted[0] - mean)) < 0.5 * float(jnp.linalg.norm(values[0] - mean))


def known(read, prediction):
    """Pictures of which the layer reads about as much as of these, and whose mean prediction is this."""
    features = read.mean(axis=0, keepdims=True) + jax.random.normal(jax.random.key(9), (200, read.shape[1])) / 20
    return KnownPictures(jnp.zeros((200, 1)), features, prediction)


def gradient_of(read, labels, prediction):
    return read.T @ (prediction[None] - jax.nn.one_hot(labels, len(prediction))) / len(read)


def test_inputs_of_a_batch_follow_from_labels_and_its_prediction():
    """Exactly, but for the size of an update, where all examples have the assumed prediction."""
    read = jax.random.uniform(jax.random.key(2), (3, 7))
    prediction, labels = jnp.array([0.1, 0.2, 0.3, 0.4]), jnp.array([2, 0, 3])
    pictures, gradient = known(read, prediction), gradient_of(read, labels, prediction)
    found = inputs_behind(gradient, labels, pictures)
    np.testing.assert_allclose(directions(found), directions(read), rtol=1e-4)
    soft = inputs_behind(gradient, jax.nn.one_hot(labels, 4), pictures)
    np.testing.assert_allclose(soft, found, rtol=1e-5)


def test_the_input_of_one_example_follows_whatever_was_predicted():
    read, label = jax.random.uniform(jax.random.key(2), (1, 7)), jnp.array([1])
    gradient = gradient_of(read, label, jnp.array([0.7, 0.1, 0.2]))
    found = inputs_behind(gradient, label, known(read, jnp.full(3, 1 / 3)))
    np.testing.assert_allclose(directions(found), directions(read), rtol=1e-5)


def test_examples_of_one_label_get_the_mean_of_what_was_read_of_them():
    read, labels, prediction = jax.random.uniform(jax.random.key(2), (2, 7)), jnp.array([1, 1]), jnp.full(3, 1 / 3)
    found = directions(inputs_behind(gradient_of(read, labels, prediction), labels, known(read, prediction)))
    np.testing.assert_allclose(found[0], found[1], rtol=1e-4)
    np.testing.assert_allclose(found[:1], directions(read.mean(axis=0, keepdims=True)), rtol=1e-4)


@pytest.mark.parametrize("labels", [[0, 1], [2, 0, 1], [1, 0, 2, 2]])
def test_where_all_classes_cancel_the_mean_that_is_not_told_is_that_of_known_pictures(labels):
    prediction = jnp.array([0.3, 0.7] if max(labels) == 1 else [0.2, 0.5, 0.3])
    read, labels = 1 + 0.1 * jax.random.normal(jax.random.key(2), (len(labels), 400)), jnp.array(labels)
    features = 1 + 0.1 * jax.random.normal(jax.random.key(3), (99, 400))
    found = inputs_behind(gradient_of(read, labels, prediction), labels, KnownPictures(None, features, prediction))
    assert float(jnp.min(jnp.sum(directions(found) * directions(read), axis=1))) > 0.98


@pytest.mark.slow
def test_finds_large_shapes_of_both_images_in_an_update_of_any_scale_and_none_in_noise():
    observation = observe(CLIENT, PARAMS, BATCH)
    guess = regressed(problem_of(), num_pictures=300)
    found = error(guess, observation)
    assert found < 0.015
    scaled = observation._replace(update=jax.tree.map(lambda leaf: 100 * leaf, observation.update))
    assert error(guess, scaled) == pytest.approx(found, rel=0.1)
    noise = jax.tree.map(lambda leaf: jax.random.normal(jax.random.key(5), leaf.shape), observation.update)
    blank = float(jnp.mean((0.5 - BATCH.inputs) ** 2))
    assert 0.5 * blank < error(guess, observation._replace(update=noise)) < 2 * blank


def test_lanes_share_what_the_network_reads_of_known_pictures():
    """Under vmap the pictures pass the network as often as for one client."""
    guess = regressed(problem_of(), num_pictures=64)
    observation = observe(CLIENT, PARAMS, BATCH)

    def from_update(update):
        return guess(observation._replace(update=update))

    updates = jax.tree.map(lambda leaf: jnp.stack([leaf] * 7), observation.update)
    one = jax.jit(from_update).lower(observation.update).cost_analysis()["flops"]
    seven = jax.jit(jax.vmap(from_update)).lower(updates).cost_analysis()["flops"]
    assert seven < 2 * one


@pytest.mark.slow
def test_images_larger_than_the_shapes_that_it_finds_are_guessed_smooth():
    shape = (1, 48, 40, 3)

    def means(params, inputs):
        read = jnp.concatenate([inputs.mean(axis=(1, 2)), jnp.ones((len(inputs), 1))], axis=1)
        return read @ params["head"]["kernel"]

    params = {"head": {"kernel": jnp.eye(4)}}
    batch = Batch(jnp.full(shape, 0.3), jnp.array([0]))
    observation = observe(fedsgd(models.cross_entropy(means)), params, batch)
    problem = problem_of(means, params=params, shape=shape, num_classes=4)
    found = regressed(problem, num_pictures=40)(observation)
    assert found.shape == shape
    assert 0.25 < float(found.mean()) < 0.45
    np.testing.assert_allclose(parametrizations.spectrum_of(found)[:, 32:], 0, atol=1e-3)


def test_says_what_it_lacks():
    with pytest.raises(ValueError, match="num_pictures is 1, a regression needs at least 2"):
        regressed(problem_of(), num_pictures=1)
    guess = regressed(problem_of(), num_pictures=2)
    with pytest.raises(ValueError, match="labels"):
        guess(observe(CLIENT, PARAMS, BATCH)._replace(labels=None))
    with pytest.raises(ValueError, match="no dense layer at 'body'"):
        regressed(problem_of(head="body"))(observe(CLIENT, PARAMS, BATCH))
