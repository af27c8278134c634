"""What is particular to each family: initial distributions, strides, and the ResNet blocks by hand."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen
from jax import lax

from jaxinvert import models
from jaxinvert.models.layers import batch_norm_layer
from jaxinvert.models.resnet import BasicBlock, Bottleneck, ResNet


def leaves_of(params, suffix):
    return [
        leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
        if jax.tree_util.keystr(path, simple=True, separator="/").endswith(suffix)
    ]


def assert_uniform(values, bound):
    """All within the bound, and the first two moments of U(-bound, bound) within five standard errors.

    Variance of the mean: bound^2 / (3 n). Variance of the mean square: (1/5 - 1/9) bound^4 / n.
    """
    values = np.asarray(values, np.float64).ravel()
    assert np.abs(values).max() <= bound
    assert abs(values.mean()) < 5 * bound / math.sqrt(3 * values.size)
    assert abs(np.mean(values**2) - bound**2 / 3) < 5 * bound**2 * math.sqrt(4 / 45 / values.size)


def test_lenet_starts_uniform_in_half():
    params = jax.jit(models.create("lenet").init)(jax.random.key(0))
    leaves = jax.tree.leaves(params)
    assert len(leaves) == 8
    for leaf in leaves:
        assert_uniform(leaf, 0.5)
    assert_uniform(jnp.concatenate([leaf.ravel() for leaf in leaves]), 0.5)
    with pytest.raises(AssertionError):  # the test has teeth: a wrong scale is rejected
        assert_uniform(0.9 * jnp.concatenate([leaf.ravel() for leaf in leaves]), 0.5)
    first, second = params["params"]["conv_1"], params["params"]["conv_2"]
    assert np.all(first["kernel"] != second["kernel"])
    assert np.all(first["bias"] != second["bias"])


def test_convnet_and_mlp_start_like_pytorch():
    """Kernels and biases U(-1, 1) / sqrt(fan_in)."""
    params = jax.jit(models.create("convnet64", width=16).init)(jax.random.key(0))["params"]
    for name, fan_in in [("conv_0", 27), ("conv_1", 9 * 16), ("conv_7", 9 * 64), ("head", 9 * 64)]:
        assert_uniform(params[name]["kernel"], 1 / math.sqrt(fan_in))
        assert_uniform(params[name]["bias"], 1 / math.sqrt(fan_in))
    assert np.all(params["norm_3"]["scale"] == 1)
    assert np.all(params["norm_3"]["bias"] == 0)
    params = jax.jit(models.create("mlp").init)(jax.random.key(0))["params"]
    assert_uniform(params["dense_0"]["kernel"], 1 / math.sqrt(3072))
    assert_uniform(params["head"]["bias"], 1 / math.sqrt(256))


def test_resnets_start_kaiming_normal_fan_out():
    params = jax.jit(models.resnet_cifar(depth=8, width=16).init)(jax.random.key(0))["params"]
    for kernel in leaves_of(params, "conv/kernel") + leaves_of(params, "conv_1/kernel"):
        height, width, _, features = kernel.shape
        variance = 2 / (height * width * features)
        # The mean square of n normals has variance 2 variance^2 / n.
        assert abs(np.mean(np.square(kernel)) - variance) < 5 * variance * math.sqrt(2 / kernel.size)
    assert not leaves_of(params, "conv/bias")
    assert_uniform(params["head"]["kernel"], 1 / math.sqrt(64))


def test_different_keys_give_different_networks():
    init = jax.jit(models.create("lenet").init)
    first, second = init(jax.random.key(0)), init(jax.random.key(1))
    assert all(np.any(a != b) for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True))
    again = init(jax.random.key(0))
    jax.tree.map(np.testing.assert_array_equal, first, again)


def test_lenet_by_hand():
    model = models.create("lenet")
    params = jax.jit(model.init)(jax.random.key(0))
    inputs = jax.random.uniform(jax.random.key(1), (2, 32, 32, 3))
    x = inputs
    for i, stride in enumerate((2, 2, 1)):
        layer = params["params"][f"conv_{i}"]
        x = plain_conv(x, layer["kernel"], stride, 2) + layer["bias"].reshape(1, 1, 1, -1)
        x = 1 / (1 + jnp.exp(-x))
    assert x.shape == (2, 8, 8, 12)
    head = params["params"]["head"]
    by_hand = x.reshape(2, 768) @ head["kernel"] + head["bias"].reshape(1, -1)
    np.testing.assert_allclose(model.apply(params, inputs), by_hand, rtol=1e-4, atol=1e-4)


def plain_conv(x, kernel, stride, padding):
    return lax.conv_general_dilated(
        x, kernel, (stride,) * 2, [(padding,) * 2] * 2, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def plain_norm(x, params, statistics):
    def channel(values):
        return values.reshape(1, 1, 1, -1)

    x = (x - channel(statistics["mean"])) / jnp.sqrt(channel(statistics["var"]) + 1e-5)
    return x * channel(params["scale"]) + channel(params["bias"])


def plain_resnet(variables, x, *, num_blocks, stem, bottleneck):
    """An independent forward pass in plain `lax`, from the architecture tables of He et al."""
    params, statistics = variables["params"], variables["batch_stats"]

    def conv_norm(x, scope, conv, norm, stride, padding):
        kernels, moments = (params, statistics) if scope is None else (params[scope], statistics[scope])
        return plain_norm(plain_conv(x, kernels[conv]["kernel"], stride, padding), kernels[norm], moments[norm])

    if stem == "imagenet":
        x = jax.nn.relu(conv_norm(x, None, "stem_conv", "stem_norm", 2, 3))
        x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))  # after a ReLU zero padding is as good as -inf
        x = lax.reduce_window(x, -jnp.inf, lax.max, (1, 3, 3, 1), (1, 2, 2, 1), "VALID")
    else:
        x = jax.nn.relu(conv_norm(x, None, "stem_conv", "stem_norm", 1, 1))
    for stage, count in enumerate(num_blocks):
        for i in range(count):
            scope, stride = f"stage_{stage}_block_{i}", 2 if stage and not i else 1
            plan = [(0, 1), (1, stride), (0, 1)] if bottleneck else [(1, stride), (1, 1)]
            y = x
            for j, (padding, step) in enumerate(plan):
                y = conv_norm(y, scope, f"conv_{j}", f"norm_{j}", step, padding)
                y = jax.nn.relu(y) if j < len(plan) - 1 else y
            if y.shape != x.shape:
                x = conv_norm(x, scope, "shortcut_conv", "shortcut_norm", stride, 0)
            x = jax.nn.relu(x + y)
    head = params["head"]
    return x.mean((1, 2)) @ head["kernel"] + head["bias"].reshape(1, -1)


@pytest.mark.parametrize(
    ("stem", "num_blocks", "block"),
    [("cifar", (1, 2), BasicBlock), ("imagenet", (1, 1), BasicBlock), ("imagenet", (2, 1), Bottleneck)],
)
def test_resnets_by_hand(stem, num_blocks, block):
    """Stem, blocks and strides; how many blocks each registered depth has, its parameter count tells."""
    conv = functools.partial(linen.Conv, use_bias=False)
    module = ResNet(5, 4, block, num_blocks, stem, conv, batch_norm_layer("eval"))
    model = models.from_linen(module, name="resnet", input_shape=(20, 17, 3), num_classes=5)
    plan = {"num_blocks": num_blocks, "stem": stem, "bottleneck": block is Bottleneck}
    # Statistics and BatchNorm parameters away from their start, so that each one matters.
    rng = np.random.default_rng(0)
    variables = jax.tree.map(
        lambda leaf: jnp.asarray(rng.uniform(0.1, 0.4, leaf.shape) * rng.choice([-1, 1], leaf.shape), leaf.dtype),
        jax.eval_shape(model.init, jax.random.key(0)),
    )
    variables["batch_stats"] = jax.tree.map(jnp.abs, variables["batch_stats"])
    inputs = jax.random.uniform(jax.random.key(2), (2, *model.input_shape))
    by_hand = jax.jit(lambda v, x: plain_resnet(v, x, **plan))(variables, inputs)
    np.testing.assert_allclose(jax.jit(model.apply)(variables, inputs), by_hand, rtol=1e-3, atol=1e-3)


def test_convnet_pools_32_to_10_to_3():
    model = models.create("convnet64", width=2)
    kernel = jax.eval_shape(model.init, jax.random.key(0))["params"]["head"]["kernel"]
    assert kernel.shape == (36 * 2, 10)


def test_train_mode_uses_the_biased_statistics_of_the_batch():
    """(z - mean) / sqrt(mean (z - mean)^2 + 1e-5), per channel over batch and pixels."""
    layer = batch_norm_layer("train")()
    z = jax.random.normal(jax.random.key(0), (4, 3, 3, 2)) * 3 + 1
    variables = layer.init(jax.random.key(1), z)
    out, _ = layer.apply(variables, z, mutable=["batch_stats"])
    z = np.asarray(z, np.float64)
    by_hand = (z - z.mean((0, 1, 2))) / np.sqrt(z.var((0, 1, 2)) + 1e-5)
    np.testing.assert_allclose(out, by_hand, rtol=1e-4, atol=1e-5)
