"""The distance of the default attack sees contrast and brightness, through networks of many kinds.

Behind ReLU layers with zero biases and an error that is one number, and behind norms of each example after a
convolution with a zero bias, kernels' gradients are the same at every contrast up to a factor: only biases' tell it.
"""

from itertools import product
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen

from jaxinvert import Problem, attacks, clients, data, models, observe, search
from jaxinvert.attacks import objectives
from jaxinvert.attacks.contrast import kernels_are_blind, scaled, with_fitted_contrast
from jaxinvert.types import Batch, Observation

VISIBLE = 1e-5
"""Distance from which a change counts as seen.

A distance is quadratic in a small logarithm of the contrast. If it is 1e-5 at half the contrast, and a search ends at
1e-9 or below, as it does on exact updates, then contrast is wrong by 1 % at most: 50 dB at a deviation of 0.25.
"""
CHANGES = ("contrast / 2", "contrast * 2", "brightness / 2", "brightness * 2", "all / 2", "all * 2")

WIDEST, MOST = 64, 100
ACTIVATIONS = {"relu": jax.nn.relu, "gelu": jax.nn.gelu, "sigmoid": jax.nn.sigmoid}
NORMS = ("none", "BatchNorm", "GroupNorm", "LayerNorm")
BIASES = ("zero", "tiny", "random", "trained")
OUTPUTS = (1, 2, 10, MOST)


class Network(NamedTuple):
    """Places in the lists above, and channels: traced, so that one compilation serves the whole zoo."""

    activation: int
    norm: int
    biases: int
    outputs: int
    width: int


def zoo():
    """Every activation, norm and number of outputs together; biases and widths take turns among them."""
    for activation, norm, k in product(range(3), range(4), range(4)):
        for turn in range(2):
            yield Network(activation, norm, (activation + norm + k + turn) % 4, OUTPUTS[k], (8, WIDEST)[turn])


def init(key, network):
    """Two convolutions of 2 x 2 patches with norms, and a dense head; unused channels and outputs are zero."""
    keys = iter(jax.random.split(key, 10))
    used = jnp.arange(WIDEST) < network.width
    spread = jnp.array([0.0, 1e-3, 0.1, 0.1])[network.biases]
    trained = network.biases == BIASES.index("trained")

    def kernel(shape, fan_in):
        return jax.random.normal(next(keys), shape) / jnp.sqrt(fan_in)

    def bias(size=WIDEST):
        return spread * jax.random.normal(next(keys), (size,))

    convs = [kernel((4, 3, WIDEST), 12.0), kernel((4, WIDEST, WIDEST), 4.0 * network.width)]
    head = kernel((4, WIDEST, MOST), 4.0 * network.width) * jnp.where(trained, 3.0, 1.0)
    return {
        "conv_0": {"kernel": convs[0] * used, "bias": bias() * used},
        "conv_1": {"kernel": convs[1] * used * used[:, None], "bias": bias() * used},
        "norm_0": {"scale": 1 + trained * bias(), "bias": bias() * used},
        "norm_1": {"scale": 1 + trained * bias(), "bias": bias() * used},
        "head": {"kernel": (head * used[:, None]).reshape(-1, MOST), "bias": bias(MOST)},
    }


def normalized(x, norm, network, used):
    """BatchNorm in eval mode with statistics of 0 and 1, GroupNorm of one group, LayerNorm over channels."""

    def over(axes):
        share = used / (network.width * np.prod([x.shape[axis] for axis in axes if axis < 3]))
        mean = jnp.sum(x * share, axis=axes, keepdims=True)
        return (x - mean) / jnp.sqrt(jnp.sum(jnp.square(x - mean) * share, axis=axes, keepdims=True) + 1e-6)

    each = jnp.stack([x, x, over((1, 2, 3)), over((3,))])[network.norm]
    return jnp.where(network.norm == 0, each, each * norm["scale"] + norm["bias"])


def loss(params, batch, network):
    """Cross entropy of the used outputs; squared error of the first if there is one output."""
    used = jnp.arange(WIDEST) < network.width
    x = (batch.inputs - MEAN) / STD
    for i in range(2):
        side, conv = x.shape[1] // 2, params[f"conv_{i}"]
        patches = x.reshape(1, side, 2, side, 2, -1).transpose(0, 1, 3, 2, 4, 5).reshape(1, side, side, 4, -1)
        x = jnp.einsum("bhwpc,pcd->bhwd", patches, conv["kernel"])
        x = normalized(x + conv["bias"], params[f"norm_{i}"], network, used)
        x = jnp.stack([activation(x) for activation in ACTIVATIONS.values()])[network.activation] * used
    logits = x.reshape(len(x), -1) @ params["head"]["kernel"] + params["head"]["bias"]
    classes = jnp.where(jnp.arange(MOST) < network.outputs, logits, -1e9)
    cross_entropy = optax.softmax_cross_entropy_with_integer_labels(classes, batch.labels).mean()
    return jnp.where(network.outputs == 1, jnp.mean((logits[:, 0] - 1.7) ** 2), cross_entropy)


PHOTO = data.load("photos", split="test[:1]")
MEAN, STD = jnp.asarray(PHOTO.mean), jnp.asarray(PHOTO.std)
TRUTH = jnp.asarray(PHOTO.images[:, ::4, ::4])
LABELS = jnp.zeros(1, int)


def changed(inputs):
    """The images under each of `CHANGES`: contrast is around the mean color, brightness is the image's mean."""
    at, mean = (lambda factor: MEAN + factor * (inputs - MEAN)), inputs.mean()
    return jnp.stack([at(0.5), at(2.0), inputs - mean / 2, inputs + mean, inputs / 2, inputs * 2])


@jax.jit
def seen_by(network):
    """Whether kernels are blind; the attack's distance and that of kernels by change; the fit's error if blind."""
    client = clients.fedsgd(lambda params, batch: loss(params, batch, network))
    size = {"input_shape": (8, 8, 3), "num_classes": 2, "mean": PHOTO.mean, "std": PHOTO.std}
    model = models.from_functions(lambda key: {}, lambda params, x: x, name="zoo", **size)
    problem = Problem(client, model, num_examples=1)
    params = init(jax.random.key(0), network)
    seen = Observation(params, client(params, Batch(TRUTH, LABELS)), LABELS, 1)
    blind = kernels_are_blind(problem, seen)

    def distances(inputs):
        simulated = client(seen.params, Batch(inputs, LABELS))
        by_kernels = objectives.kernel_cosine(simulated, seen.update)
        return jnp.where(blind, objectives.balanced_cosine(simulated, seen.update), by_kernels), by_kernels

    def refitted():
        twice = Batch(scaled(problem, TRUTH, 2.0), LABELS)
        return jnp.abs(with_fitted_contrast(problem, seen, twice)[0] - TRUTH).max()

    return blind, jax.lax.map(distances, changed(TRUTH)), jax.lax.cond(blind, refitted, lambda: 0.0)


@pytest.mark.slow
def test_another_contrast_or_brightness_raises_the_distance_through_every_network_of_a_zoo():
    found = {}
    with jax.numpy_rank_promotion("allow"):
        for network in zoo():
            found[network] = seen_by(network)
    unseen = {network: seen.tolist() for network, (_, (seen, _), _) in found.items() if float(seen.min()) < VISIBLE}
    assert unseen == {}
    blind = [network for network in found if bool(found[network][0])]
    assert 0.1 < len(blind) / len(found) < 0.5
    unseen_by_kernels = [network for network in blind if float(found[network][1][1][:2].min()) < VISIBLE]
    assert len(unseen_by_kernels) > 10
    assert {network: float(found[network][2]) for network in blind if float(found[network][2]) > 2e-3} == {}


class Perceptron(linen.Module):
    """One hidden layer of 32 ReLU units; biases start at zero."""

    num_outputs: int

    @linen.compact
    def __call__(self, x):
        x = linen.relu(linen.Dense(32)(x.reshape(len(x), -1)))
        return linen.Dense(self.num_outputs, name="head")(x)


@pytest.mark.slow
def test_a_record_is_found_through_a_regression_whose_kernels_are_blind():
    model = models.from_linen(Perceptron(1), name="regressor", input_shape=(1, 14, 1), num_classes=1)
    client = clients.fedsgd(lambda params, batch: jnp.mean((model.apply(params, batch.inputs) - batch.labels) ** 2))
    truth = Batch(jax.random.uniform(jax.random.key(3), (1, 1, 14, 1)), jnp.array([[1.7]]))
    seen = observe(client, model.init(jax.random.key(0)), truth)
    attack = attacks.spectral(Problem(client, model, 1), horizon=400, guess=attacks.initial_guess.gray_noise)
    found = jax.jit(search.run(attack, num_steps=400))(jax.random.key(1), seen)
    assert float(jnp.abs(found.inputs - truth.inputs).max()) < 0.03
    assert float(found.attack_loss) < 1e-4


class Normalized(linen.Module):
    """A convolution, BatchNorm in train mode, and a dense head."""

    @linen.compact
    def __call__(self, x):
        x = linen.relu(linen.BatchNorm(use_running_average=False)(linen.Conv(4, (3, 3))(x)))
        return linen.Dense(2, name="head")(x.reshape(len(x), -1))


def test_where_nothing_tells_contrast_it_is_not_fitted():
    model = models.from_linen(Normalized(), name="normalized", input_shape=(8, 8, 3), num_classes=2)
    client = clients.fedsgd(model.loss)
    problem = Problem(client, model, 1)
    params = jax.jit(model.init)(jax.random.key(0))

    @jax.jit
    def seen_by_kernels_and_told_by_biases():
        seen = Observation(params, client(params, Batch(TRUTH, LABELS)), LABELS, 1)
        half = client(params, Batch(scaled(problem, TRUTH, 0.5), LABELS))
        return objectives.kernel_cosine(half, seen.update), kernels_are_blind(problem, seen)

    distance, told = seen_by_kernels_and_told_by_biases()
    assert float(distance) < VISIBLE
    assert not bool(told)


def test_kernels_are_not_blind_to_what_biases_would_tell_if_they_were_sent():
    model = models.from_linen(Perceptron(2), name="two", input_shape=(8, 8, 1), num_classes=2)
    problem = Problem(clients.fedsgd(model.loss), model, 1)
    truth = Batch(jax.random.uniform(jax.random.key(1), (1, 8, 8, 1)), LABELS)
    seen = observe(problem.client_update, model.init(jax.random.key(0)), truth)
    kernels_only = jax.tree.map(lambda leaf: leaf if leaf.ndim > 1 else 0 * leaf, seen.update)
    blind = jax.jit(lambda update: kernels_are_blind(problem, seen._replace(update=update)))
    assert bool(blind(seen.update))
    assert not bool(blind(kernels_only))


def test_updates_of_half_precision_are_decoded():
    model = models.from_linen(Perceptron(2), name="two", input_shape=(8, 8, 1), num_classes=2)
    problem = Problem(clients.fedsgd(model.loss), model, 1)
    seen = observe(problem.client_update, model.init(jax.random.key(0)), Batch(jnp.ones((1, 8, 8, 1)), LABELS))
    half = seen._replace(update=jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), seen.update))
    attack = attacks.spectral(problem, guess=attacks.initial_guess.gray_noise)
    found = jax.eval_shape(search.run(attack, num_steps=2), jax.random.key(0), half)
    assert found.inputs.shape == (1, 8, 8, 1)


@pytest.mark.parametrize("joint_labels", [False, True])
def test_contrast_costs_two_traces_of_the_client(joint_labels):
    """One to tell whether kernels are blind, one for the fit; two more are of the descent."""
    model, traced = models.from_linen(Perceptron(2), name="two", input_shape=(8, 8, 1), num_classes=2), []
    client = clients.fedsgd(model.loss)

    def counted(params, batch):
        traced.append(batch)
        return client(params, batch)

    problem = Problem(counted, model, num_examples=1, joint_labels=joint_labels)
    seen = observe(client, model.init(jax.random.key(0)), Batch(jnp.ones((1, 8, 8, 1)), LABELS))
    assert jax.eval_shape(lambda: kernels_are_blind(problem, seen)).shape == ()
    assert len(traced) == 1
    attack = attacks.spectral(problem, guess=attacks.initial_guess.gray_noise)
    traced.clear()
    seen = seen._replace(labels=None) if joint_labels else seen
    jax.eval_shape(search.run(attack, num_steps=2), jax.random.key(0), seen)
    assert len(traced) <= 4
