"""The distance of the default attack sees contrast and brightness, behind networks of many kinds.

Behind ReLU networks with zero biases and an error that is one number, and behind norms of each example after every
convolution with a zero bias, kernels' gradients are the same at every contrast up to a factor: only biases' tell it.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import pytest
from flax import linen

from jaxinvert import Problem, clients, data, models, observe
from jaxinvert.attacks import objectives
from jaxinvert.attacks.optimization.spectral import share_of_biases
from jaxinvert.types import Batch

CHANGED = {
    "half the contrast": (0.5, 0.0),
    "twice the contrast": (2.0, 0.0),
    "darker": (1.0, -0.2),
    "lighter": (1.0, 0.2),
}
"""Factor and offset of pixels around the model's mean."""

NETWORKS = {  # activation, norm, deviation of the biases, classes
    "relu, 1 output": (linen.relu, None, 0.0, 1),
    "relu, 2 classes": (linen.relu, None, 0.0, 2),
    "relu, 10 classes": (linen.relu, None, 0.0, 10),
    "relu, 100 classes": (linen.relu, None, 0.0, 100),
    "relu, 2 classes, random biases": (linen.relu, None, 0.1, 2),
    "leaky relu, 2 classes": (linen.leaky_relu, None, 0.0, 2),
    "sigmoid, 2 classes": (linen.sigmoid, None, 0.0, 2),
    "gelu, 2 classes": (linen.gelu, None, 0.0, 2),
    "relu, GroupNorm, 2 classes": (linen.relu, partial(linen.GroupNorm, num_groups=2), 0.0, 2),
    "gelu, GroupNorm, 10 classes": (linen.gelu, partial(linen.GroupNorm, num_groups=2), 0.0, 10),
    "relu, BatchNorm in eval mode": (linen.relu, partial(linen.BatchNorm, use_running_average=True), 0.0, 10),
    "relu, LayerNorm, 10 classes": (linen.relu, linen.LayerNorm, 0.0, 10),
}
BLIND = (
    "relu, 1 output",
    "relu, 2 classes",
    "leaky relu, 2 classes",
    "relu, GroupNorm, 2 classes",
    "gelu, GroupNorm, 10 classes",
    "relu, LayerNorm, 10 classes",
)
"""Where kernels alone see no contrast."""

INVARIANT = {"BatchNorm in train mode": (linen.relu, partial(linen.BatchNorm, use_running_average=False), 0.0, 10)}


class Network(linen.Module):
    """Two convolutions, with or without norms, and a dense head."""

    activation: Callable
    norm: Callable | None
    bias: float
    num_outputs: int

    @linen.compact
    def __call__(self, x):
        bias = linen.initializers.normal(self.bias)
        for channels in (4, 6):
            x = linen.Conv(channels, (3, 3), bias_init=bias)(x)
            x = self.activation(x if self.norm is None else self.norm()(x))
        return linen.Dense(self.num_outputs, bias_init=bias, name="head")(x.reshape(len(x), -1))


def distances(name):
    """The share of biases that the attack chooses, and by changed picture its distance and that of kernels alone."""
    photo = data.load("photos", split="test[:1]")
    truth = jnp.asarray(photo.images[:, ::4, ::4])
    activation, norm, bias, num_outputs = (NETWORKS | INVARIANT)[name]
    model = models.from_linen(
        Network(activation, norm, bias, num_outputs),
        name="net",
        input_shape=truth.shape[1:],
        num_classes=num_outputs,
        mean=photo.mean,
        std=photo.std,
    )

    def squared_error(params, batch):
        return jnp.mean((model.apply(params, batch.inputs) - 1.7) ** 2)

    client = clients.fedsgd(squared_error if num_outputs == 1 else model.loss)
    params, labels = model.init(jax.random.key(0)), jnp.zeros(1, int)
    center = jnp.asarray(photo.mean)[None, None, None]

    seen = observe(client, params, Batch(truth, labels))
    share = jax.jit(lambda: share_of_biases(Problem(client, model, num_examples=1), seen))()

    @jax.jit
    def between(factor, offset):
        simulated = client(params, Batch(center + factor * (truth - center) + offset, labels))
        return (
            objectives.balanced_cosine(simulated, seen.update, share=share),
            objectives.kernel_cosine(simulated, seen.update),
        )

    return float(share), {change: [float(value) for value in between(*by)] for change, by in CHANGED.items()}


@pytest.mark.parametrize("name", NETWORKS)
def test_another_contrast_or_brightness_raises_the_distance(name):
    share, found = distances(name)
    assert all(seen > 1e-4 for seen, _ in found.values()), found
    contrast_by_kernels = max(found[change][1] for change in CHANGED if "contrast" in change)
    assert (contrast_by_kernels < 1e-9) == (name in BLIND), found
    assert share == pytest.approx(0.3 if name in BLIND else 0.0)


@pytest.mark.parametrize("name", INVARIANT)
def test_where_nothing_tells_contrast_kernels_stay_alone(name):
    share, found = distances(name)
    assert found["half the contrast"][1] < 1e-6
    assert share == 0.0


def test_the_share_is_told_by_one_trace_of_the_client():
    model, traced = models.create("mlp", features=(8,), input_shape=(8, 8, 1), num_classes=2), []
    client = clients.fedsgd(model.loss)

    def counted(params, batch):
        traced.append(batch)
        return client(params, batch)

    seen = observe(client, model.init(jax.random.key(0)), Batch(jnp.ones((1, 8, 8, 1)), jnp.zeros(1, int)))
    jax.jit(lambda: share_of_biases(Problem(counted, model, num_examples=1), seen))()
    assert len(traced) == 1
