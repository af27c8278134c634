"""One contract over every registered network, and over both BatchNorm modes where there are two."""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import tree_util

from jaxinvert import models
from jaxinvert.types import Batch

SMALL = {
    "lenet": {},
    "convnet64": {"width": 4},
    "small-convnet": {"width": 4},
    "small-convnet-bn": {"width": 4},
    "mlp": {"features": (32, 16)},
    "mlp-unbiased": {"features": (32, 16)},
    "resnet20-4": {"depth": 14, "width": 4},
    "resnet32-10": {"depth": 8, "width": 4},
    "resnet18": {"width": 4},
    "resnet34": {"width": 4},
    "resnet50": {"width": 4},
    "vit-plain": {"width": 16},
    "vit-pre-norm": {"width": 16},
    "vit-pre-norm-fixed": {"width": 16},
    "wide-convnet": {"units": 16, "channels": 4},
}
"""Options that make each registered network cheap without changing what it is made of."""
WITHOUT_CONVOLUTIONS = ("mlp", "mlp-unbiased", "vit-plain", "vit-pre-norm", "vit-pre-norm-fixed")
WITH_BATCH_NORM = ("convnet64", "small-convnet-bn", "resnet32-10", "resnet18")
SHAPE, NUM_CLASSES, BATCH_SIZE = (16, 12, 3), 7, 3


def small(name, **options):
    return models.create(name, input_shape=SHAPE, num_classes=NUM_CLASSES, **(SMALL[name] | options))


def random_params(model, seed=0):
    """Parameters of the right shapes from NumPy: JAX compiles a program per shape, seconds for a ResNet."""
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        name = path[-1].key
        if name == "kernel":
            scale = np.sqrt(2 / math.prod(leaf.shape[:-1]))
            return jnp.asarray(scale * rng.standard_normal(leaf.shape), leaf.dtype)
        center = 1.0 if name in ("scale", "var") else 0.0
        return jnp.asarray(center + rng.uniform(-0.2, 0.2, leaf.shape), leaf.dtype)

    return tree_util.tree_map_with_path(draw, jax.eval_shape(model.init, jax.random.key(0)))


@functools.cache
def prepared(name):
    """A small network in eval mode, parameters and its jitted `apply`, compiled once for the whole file."""
    model = small(name)
    return model, random_params(model), jax.jit(model.apply)


def examples(seed=0, batch_size=BATCH_SIZE):
    inputs = jax.random.uniform(jax.random.key(seed), (batch_size, *SHAPE))
    return Batch(inputs, jnp.arange(batch_size) % NUM_CLASSES)


def test_every_registered_network_is_covered_here():
    assert set(SMALL) == set(models.names()) == set(models.REGISTRY)


@pytest.mark.parametrize("name", models.names())
def test_published_sizes(name):
    model = models.create(name, num_classes=100)
    params = jax.eval_shape(model.init, jax.random.key(0))
    logits = jax.eval_shape(model.apply, params, jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32))
    assert (model.name, model.num_classes, model.input_shape) == (name, 100, (32, 32, 3))
    assert (model.mean, model.std) == ((0.0,) * 3, (1.0,) * 3)
    assert (logits.shape, logits.dtype) == ((2, 100), jnp.float32)
    assert set(params) <= {"params", "batch_stats"}
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(params))
    by_path = {
        tree_util.keystr(path, simple=True, separator="/"): leaf.shape
        for path, leaf in tree_util.tree_leaves_with_path(params)
    }
    assert by_path[f"{model.head}/kernel"][1] == 100
    assert by_path[f"{model.head}/bias"] == (100,)


@pytest.mark.parametrize("name", models.names())
def test_gradients(name):
    """Finite everywhere, alive in trained leaves and inputs, exactly zero in running statistics."""
    (model, params, apply), batch = prepared(name), examples()
    loss_fn = models.cross_entropy(model.apply)
    update, d_inputs = jax.jit(jax.grad(lambda p, x: loss_fn(p, Batch(x, batch.labels)), (0, 1)))(
        params, batch.inputs
    )
    assert jax.tree.structure(update) == jax.tree.structure(params)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((update, d_inputs)))
    # A key's bias moves all scores of a query alike: its gradient is zero, but for rounding.
    trained = tree_util.tree_leaves_with_path(update["params"])
    assert all(np.any(leaf != 0) for path, leaf in trained if "['key']['bias']" not in tree_util.keystr(path))
    assert all(np.any(example != 0) for example in d_inputs)
    assert all(np.all(leaf == 0) for leaf in jax.tree.leaves(update.get("batch_stats", {})))
    # The gradient of the head's bias is the mean of softmax minus one-hot, whatever lies below.
    logits = apply(params, batch.inputs)
    expected = jnp.mean(jax.nn.softmax(logits) - jax.nn.one_hot(batch.labels, NUM_CLASSES), axis=0)
    np.testing.assert_allclose(update["params"]["head"]["bias"], expected, atol=1e-6)


@pytest.mark.parametrize("name", ["lenet", "convnet64", "resnet32-10"])
def test_gradient_of_gradient_with_respect_to_inputs(name):
    """What every iterative attack differentiates."""
    (model, params, _), batch = prepared(name), examples()
    loss_fn = models.cross_entropy(model.apply)

    def squared_norm(inputs):
        update = jax.grad(loss_fn)(params, Batch(inputs, batch.labels))
        return sum(jnp.vdot(leaf, leaf) for leaf in jax.tree.leaves(update))

    d_inputs = jax.jit(jax.grad(squared_norm))(batch.inputs)
    assert np.isfinite(d_inputs).all()
    assert np.any(d_inputs != 0)


@pytest.mark.parametrize("name", models.names())
def test_examples_are_independent_in_eval_mode(name):
    (_, params, apply), inputs = prepared(name), examples().inputs
    logits, order = apply(params, inputs), np.array([2, 0, 1])
    np.testing.assert_allclose(apply(params, inputs[order]), logits[order], rtol=1e-4, atol=1e-5)
    changed = apply(params, inputs.at[1:].set(0.0))
    np.testing.assert_allclose(changed[0], logits[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", WITH_BATCH_NORM)
def test_train_mode_couples_examples(name):
    (_, params, evaluate), inputs = prepared(name), examples().inputs
    model = small(name, batch_norm="train")
    assert jax.tree.structure(params) == jax.tree.structure(jax.eval_shape(model.init, jax.random.key(0)))
    apply = jax.jit(model.apply)
    logits = apply(params, inputs)
    assert np.max(np.abs(apply(params, inputs.at[1:].set(0.0))[0] - logits[0])) > 1e-2
    # Running statistics play no part in train mode, and all the part in eval mode.
    other = {**params, "batch_stats": jax.tree.map(lambda leaf: 2 * leaf + 1, params["batch_stats"])}
    np.testing.assert_array_equal(apply(other, inputs), logits)
    assert np.max(np.abs(evaluate(other, inputs) - evaluate(params, inputs))) > 1e-3


def test_train_mode_update_leaves_running_statistics_alone():
    model, batch = small("convnet64", batch_norm="train"), examples()
    _, params, _ = prepared("convnet64")
    update = jax.jit(jax.grad(models.cross_entropy(model.apply)))(params, batch)
    assert all(np.all(leaf == 0) for leaf in jax.tree.leaves(update["batch_stats"]))
    assert np.any(update["params"]["conv_0"]["kernel"] != 0)


@pytest.mark.parametrize("name", WITH_BATCH_NORM)
def test_batch_statistics_have_the_tree_of_the_running_ones(name):
    (eval_model, params, _), inputs = prepared(name), examples().inputs
    train_model = small(name, batch_norm="train")
    found = [jax.eval_shape(model.batch_statistics, params, inputs) for model in (eval_model, train_model)]
    shapes = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), params["batch_stats"])
    for statistics in found:
        assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), statistics) == shapes


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_batch_statistics_are_those_of_what_enters_each_layer(mode):
    """Of the normalized inputs' first convolution by hand; behind it differently in eval and train mode."""
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
    model, (_, params, _), inputs = (
        small("convnet64", mean=mean, std=std, batch_norm=mode),
        prepared("convnet64"),
        examples().inputs,
    )
    found = jax.jit(model.batch_statistics)(params, inputs)
    layers = params["params"]
    x = (inputs - jnp.array(mean).reshape(1, 1, 1, 3)) / jnp.array(std).reshape(1, 1, 1, 3)
    for i in range(2):
        x = jax.lax.conv_general_dilated(
            x, layers[f"conv_{i}"]["kernel"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        x = np.asarray(x + layers[f"conv_{i}"]["bias"].reshape(1, 1, 1, -1), np.float64)
        own = {"mean": x.mean((0, 1, 2)), "var": x.var((0, 1, 2))}
        np.testing.assert_allclose(found[f"norm_{i}"]["mean"], own["mean"], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(found[f"norm_{i}"]["var"], own["var"], rtol=1e-4)
        used = own if mode == "train" else params["batch_stats"][f"norm_{i}"]
        x = (x - used["mean"].reshape(1, 1, 1, -1)) / np.sqrt(used["var"].reshape(1, 1, 1, -1) + 1e-5)
        norm = layers[f"norm_{i}"]
        x = jax.nn.relu(
            jnp.asarray(x, jnp.float32) * norm["scale"].reshape(1, 1, 1, -1) + norm["bias"].reshape(1, 1, 1, -1)
        )


def test_batch_statistics_are_differentiable_in_the_inputs():
    (model, params, _), inputs = prepared("convnet64"), examples().inputs

    def total(inputs):
        return sum(jnp.sum(leaf) for leaf in jax.tree.leaves(model.batch_statistics(params, inputs)))

    d_inputs = jax.jit(jax.grad(total))(inputs)
    assert np.isfinite(d_inputs).all()
    assert np.any(d_inputs != 0)


@pytest.mark.parametrize("name", ["lenet", "mlp"])
def test_no_batch_statistics_without_batch_norm(name):
    (model, params, _), inputs = prepared(name), examples().inputs
    assert jax.eval_shape(model.batch_statistics, params, inputs) == {}


@pytest.mark.parametrize("name", ["lenet", "convnet64", "mlp", "resnet18"])
def test_normalization_is_part_of_apply(name):
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
    (_, params, plain), normalizing = prepared(name), small(name, mean=mean, std=std)
    inputs = examples().inputs
    assert (normalizing.mean, normalizing.std) == (mean, std)
    by_hand = (np.asarray(inputs) - np.array(mean, np.float32)) / np.array(std, np.float32)
    np.testing.assert_allclose(
        jax.jit(normalizing.apply)(params, inputs), plain(params, by_hand), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("name", ["lenet", "convnet64", "mlp"])
def test_compiles_once(name):
    model, traces = small(name), []

    @jax.jit
    def apply(params, inputs):
        traces.append(name)
        return model.apply(params, inputs)

    first = apply(random_params(model, 0), examples(0).inputs)
    second = apply(random_params(model, 1), examples(1).inputs)
    assert len(traces) == 1
    assert np.any(first != second)


@pytest.mark.parametrize("name", ["lenet", "convnet64"])
def test_vmap_over_params_equals_a_loop(name):
    (model, _, apply), inputs = prepared(name), examples().inputs
    params = jax.tree.map(lambda *leaves: jnp.stack(leaves), random_params(model, 0), random_params(model, 1))
    mapped = jax.jit(jax.vmap(model.apply, (0, None)))(params, inputs)
    for i in range(2):
        one = apply(jax.tree.map(lambda leaf, i=i: leaf[i], params), inputs)
        np.testing.assert_allclose(mapped[i], one, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", [name for name in models.names() if name not in WITHOUT_CONVOLUTIONS])
def test_every_convolution_is_replaceable(name):
    shapes = []

    def counting(*args, **kwargs):
        shapes.append(args[1].shape)
        return jax.lax.conv_general_dilated(*args, **kwargs)

    model = small(name, conv_general_dilated=counting)
    params = jax.eval_shape(model.init, jax.random.key(0))
    shapes.clear()
    jax.eval_shape(model.apply, params, examples().inputs)
    kernels = [leaf.shape for leaf in jax.tree.leaves(params["params"]) if leaf.ndim == 4]
    assert sorted(shapes) == sorted(kernels)


@pytest.mark.parametrize("name", ["lenet", "convnet64", "resnet18"])
def test_default_convolution_equals_the_plain_one(name):
    (_, params, apply), inputs = prepared(name), examples().inputs
    plain = jax.jit(small(name, conv_general_dilated=jax.lax.conv_general_dilated).apply)
    np.testing.assert_allclose(apply(params, inputs), plain(params, inputs), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", models.names())
def test_gray_inputs(name):
    model = models.create(name, input_shape=(28, 28, 1), mean=[0.3], std=[0.3], **SMALL[name])
    params = jax.eval_shape(model.init, jax.random.key(0))
    logits = jax.eval_shape(model.apply, params, jax.ShapeDtypeStruct((2, 28, 28, 1), jnp.float32))
    assert logits.shape == (2, 10)


@pytest.mark.parametrize("name", models.names())
def test_wrong_inputs_are_named(name):
    model = small(name)
    params = jax.eval_shape(model.init, jax.random.key(0))
    for shape in [SHAPE, (1, 12, 16, 3), (1, 16, 12, 1)]:
        with pytest.raises(ValueError, match="expects inputs"):
            jax.eval_shape(model.apply, params, jax.ShapeDtypeStruct(shape, jnp.float32))


def num_trained(model):
    params = jax.eval_shape(model.init, jax.random.key(0))
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params["params"]))


@pytest.mark.parametrize(
    ("name", "count"), [("resnet18", 11_689_512), ("resnet34", 21_797_672), ("resnet50", 25_557_032)]
)
def test_imagenet_parameter_counts(name, count):
    """The well-known sizes of these networks with 1,000 classes."""
    assert num_trained(models.create(name, input_shape=(224, 224, 3), num_classes=1000)) == count


def test_lenet_parameter_count():
    # 5x5 kernels, 12 channels, biases; 32 -> 16 -> 8 -> 8 pixels a side, 8 * 8 * 12 = 768 features.
    convolutions = (25 * 3 * 12 + 12) + 2 * (25 * 12 * 12 + 12)
    assert num_trained(models.create("lenet")) == convolutions + (768 * 10 + 10) == 15_826
    # Gray 28x28 images: 28 -> 14 -> 7 -> 7.
    gray = models.create("lenet", input_shape=(28, 28, 1))
    assert num_trained(gray) == (25 * 12 + 12) + 2 * (25 * 12 * 12 + 12) + (7 * 7 * 12 * 10 + 10)


def test_convnet_parameter_count():
    # Channels of the eight convolutions; each has 3x3 kernels, a bias, and a BatchNorm scale and bias.
    channels = [3, 64, 128, 128, 256, 256, 256, 256, 256]
    convolutions = sum(9 * a * b + b + 2 * b for a, b in itertools.pairwise(channels))
    # 32 -> 10 -> 3 pixels a side.
    assert num_trained(models.create("convnet64")) == convolutions + (9 * 256 * 10 + 10) == 2_904_970


def test_small_convnet_and_mlp_parameter_counts():
    convolutions = (9 * 3 * 32 + 32) + 2 * (9 * 32 * 32 + 32)
    assert num_trained(models.create("small-convnet")) == convolutions + (32 * 32 * 32 * 10 + 10) == 347_082
    assert num_trained(models.create("mlp")) == (3072 * 256 + 256) + (256 * 10 + 10) == 789_258


@pytest.mark.parametrize(
    ("name", "n", "w", "count"), [("resnet20-4", 3, 64, 4_327_754), ("resnet32-10", 5, 160, 46_371_370)]
)
def test_cifar_resnet_parameter_counts(name, n, w, count):
    def conv_norm(kernel, a, b):
        return kernel * kernel * a * b + 2 * b

    total = conv_norm(3, 3, w) + 2 * n * conv_norm(3, w, w)
    for a in (w, 2 * w):
        first_block = conv_norm(3, a, 2 * a) + conv_norm(3, 2 * a, 2 * a) + conv_norm(1, a, 2 * a)
        total += first_block + 2 * (n - 1) * conv_norm(3, 2 * a, 2 * a)
    assert num_trained(models.create(name)) == total + (4 * w * 10 + 10) == count
