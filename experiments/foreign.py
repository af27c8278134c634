"""The networks of `foreign_networks`: each in its own library, with that library's own derivatives, and in linen."""

import os
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen, nnx

from jaxinvert import models
from jaxinvert.models.adapters.building import library
from jaxinvert.nn import fast_convolutions

CLASSES = 10
Named = Mapping[str, np.ndarray]


class Network(NamedTuple):
    """A network in one library.

    Attributes:
      model: as it was imported.
      linen: the same layers in Flax linen.
      reference: `(images, labels) -> (gradient by name, a random direction by name, derivative of their inner product
        in the images)`, by the library itself.
    """

    model: models.Model
    linen: models.Model
    reference: Callable[[np.ndarray, np.ndarray], tuple[Named, Named, np.ndarray]]


class Small(linen.Module):
    """Two strided convolutions with sigmoid and a dense layer."""

    @linen.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Images `[B, H, W, 3]` to logits."""
        for i in range(2):
            x = linen.sigmoid(linen.Conv(12, (5, 5), strides=2, padding=2, name=f"conv_{i}")(x))
        return linen.Dense(CLASSES, name="head")(x.reshape(len(x), -1))


def small(side: int) -> models.Model:
    """The small network in linen, with fast convolutions as an imported network has them."""
    net = models.from_linen(Small(), name="small", input_shape=(side, side, 3), num_classes=CLASSES)
    return net._replace(apply=fast_convolutions(net.apply))


def by_jax(
    loss: Callable[[dict[str, jax.Array], jax.Array, np.ndarray], jax.Array], values: Mapping[str, Any]
) -> Callable[[np.ndarray, np.ndarray], tuple[Named, Named, np.ndarray]]:
    """Derivatives of a library on JAX: of its own function of its own tensors."""

    def reference(images: np.ndarray, labels: np.ndarray) -> tuple[Named, Named, np.ndarray]:
        draw = np.random.default_rng(1)
        direction = {name: draw.normal(size=value.shape).astype(np.float32) for name, value in values.items()}

        def inner(images: jax.Array) -> jax.Array:
            grads = jax.grad(loss)(dict(values), images, labels)
            return sum((jnp.vdot(grads[name], along) for name, along in direction.items()), start=jnp.zeros(()))

        gradient = jax.jit(jax.grad(loss))(dict(values), jnp.asarray(images), labels)
        second = jax.jit(jax.grad(inner))(jnp.asarray(images))
        return {name: np.asarray(value) for name, value in gradient.items()}, direction, np.asarray(second)

    return reference


def cross_entropy(logits: jax.Array, labels: np.ndarray) -> jax.Array:
    """The mean cross-entropy."""
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


class NnxSmall(nnx.Module):
    """The small network in NNX."""

    def __init__(self, side: int, rngs: nnx.Rngs) -> None:
        options = {"strides": 2, "padding": 2, "rngs": rngs}
        self.first, self.second = nnx.Conv(3, 12, (5, 5), **options), nnx.Conv(12, 12, (5, 5), **options)
        self.head = nnx.Linear(12 * (side // 4) ** 2, CLASSES, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Images `[B, H, W, 3]` to logits."""
        x = jax.nn.sigmoid(self.second(jax.nn.sigmoid(self.first(x))))
        return self.head(x.reshape(len(x), -1))


def of_nnx(side: int) -> Network:
    """NNX."""
    module = NnxSmall(side, nnx.Rngs(0))
    graph, state = nnx.split(module)
    variables = dict(nnx.to_flat_state(state))
    values = {"/".join(map(str, path)): variable[...] for path, variable in variables.items()}

    def loss(given: dict[str, jax.Array], images: jax.Array, labels: np.ndarray) -> jax.Array:
        filled = {path: variable.replace(given["/".join(map(str, path))]) for path, variable in variables.items()}
        return cross_entropy(nnx.merge(graph, nnx.from_flat_state(filled))(images), labels)

    return Network(models.from_nnx(module, input_shape=(side, side, 3)), small(side), by_jax(loss, values))


def of_haiku(side: int) -> Network:
    """Haiku."""
    hk = library("haiku", extra="haiku")

    def forward(x: jax.Array) -> jax.Array:
        for i in range(2):
            x = jax.nn.sigmoid(hk.Conv2D(12, 5, stride=2, padding=(2, 2), name=f"conv_{i}")(x))
        return hk.Linear(CLASSES, name="head")(hk.Flatten()(x))

    net = hk.transform(forward)
    model = models.from_haiku(net, input_shape=(side, side, 3))
    values = models.to_named(model, model.init(jax.random.key(0)))

    def loss(given: dict[str, jax.Array], images: jax.Array, labels: np.ndarray) -> jax.Array:
        params: dict[str, dict[str, jax.Array]] = {}
        for name, value in given.items():
            params.setdefault(name.rpartition("/")[0], {})[name.rpartition("/")[2]] = value
        return cross_entropy(net.apply(params, None, images), labels)

    return Network(model, small(side), by_jax(loss, values))


def of_equinox(side: int) -> Network:
    """Equinox."""
    eqx = library("equinox", extra="equinox")
    keys = jax.random.split(jax.random.key(0), 3)
    sigmoid = eqx.nn.Lambda(jax.nn.sigmoid)
    module = eqx.nn.Sequential(
        [
            eqx.nn.Conv2d(3, 12, 5, stride=2, padding=2, key=keys[0]),
            sigmoid,
            eqx.nn.Conv2d(12, 12, 5, stride=2, padding=2, key=keys[1]),
            sigmoid,
            eqx.nn.Lambda(jnp.ravel),
            eqx.nn.Linear(12 * (side // 4) ** 2, CLASSES, key=keys[2]),
        ]
    )
    arrays, static = eqx.partition(module, eqx.is_array)
    leaves = jax.tree_util.tree_leaves_with_path(arrays)
    values = {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}

    def loss(given: dict[str, jax.Array], images: jax.Array, labels: np.ndarray) -> jax.Array:
        own = jax.tree.unflatten(jax.tree.structure(arrays), [given[name] for name in values])
        return cross_entropy(jax.vmap(eqx.combine(own, static))(images.transpose(0, 3, 1, 2)), labels)

    return Network(models.from_equinox(module, input_shape=(side, side, 3)), small(side), by_jax(loss, values))


def of_keras(side: int) -> Network:
    """Keras."""
    os.environ.setdefault("KERAS_BACKEND", "jax")
    keras = library("keras", extra="keras")
    pad, options = keras.layers.ZeroPadding2D(2), {"strides": 2, "activation": "sigmoid"}
    layers = [keras.Input((side, side, 3)), pad, keras.layers.Conv2D(12, 5, **options), keras.layers.ZeroPadding2D(2)]
    layers += [keras.layers.Conv2D(12, 5, **options), keras.layers.Flatten(), keras.layers.Dense(CLASSES)]
    net = keras.Sequential(layers)
    model = models.from_keras(net)
    names = [name for name in models.to_named(model, model.init(jax.random.key(0)))]
    values = dict(zip(names, (v.value for v in net.trainable_variables)))

    def loss(given: dict[str, jax.Array], images: jax.Array, labels: np.ndarray) -> jax.Array:
        logits, _ = net.stateless_call([given[name] for name in names], [], images, training=False)
        return cross_entropy(logits, labels)

    return Network(model, small(side), by_jax(loss, values))


def of_torch(make: Callable[[Any, int], Any], counterpart: Callable[[int], models.Model], mode: str = "eval") -> Any:
    """A PyTorch network, made by `make(torch, side)`."""

    def network(side: int) -> Network:
        torch = library("torch", extra="torch")
        torch.manual_seed(0)
        module = make(torch, side)
        options = {"input_shape": (side, side, 3), "batch_norm": mode}
        reference = _by_torch(torch, module, train=mode == "train")
        return Network(models.from_torch(module, **options), counterpart(side), reference)

    return network


def _by_torch(torch: Any, module: Any, *, train: bool) -> Callable[..., tuple[Named, Named, np.ndarray]]:
    def reference(images: np.ndarray, labels: np.ndarray) -> tuple[Named, Named, np.ndarray]:
        module.eval()
        for layer in module.modules():
            if isinstance(layer, torch.nn.BatchNorm2d):
                layer.train(train)
        pixels = torch.tensor(images.transpose(0, 3, 1, 2).copy(), requires_grad=True)
        named = dict(module.named_parameters())
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            loss = torch.nn.functional.cross_entropy(module(pixels), torch.tensor(labels))
            grads = torch.autograd.grad(loss, list(named.values()), create_graph=True)
            direction = [torch.randn_like(value) for value in named.values()]
            (second,) = torch.autograd.grad(sum((a * b).sum() for a, b in zip(grads, direction)), pixels)
        gradient = {name: value.detach().numpy() for name, value in zip(named, grads)}
        along = {name: value.numpy() for name, value in zip(named, direction)}
        return gradient, along, second.numpy().transpose(0, 2, 3, 1)

    return reference


def torch_small(torch: Any, side: int) -> Any:
    """The small network in PyTorch."""
    nn = torch.nn
    convolutions = [nn.Conv2d(3, 12, 5, 2, 2), nn.Sigmoid(), nn.Conv2d(12, 12, 5, 2, 2), nn.Sigmoid()]
    return nn.Sequential(*convolutions, nn.Flatten(), nn.Linear(12 * (side // 4) ** 2, CLASSES))


def torch_resnet(torch: Any, side: int) -> Any:
    """ResNet-8 for CIFAR: three stages of one block, widths 16, 32, 64."""
    nn = torch.nn

    class Block(nn.Module):
        def __init__(self, width: int, out: int, stride: int) -> None:
            super().__init__()
            self.conv_0, self.norm_0 = nn.Conv2d(width, out, 3, stride, 1, bias=False), nn.BatchNorm2d(out)
            self.conv_1, self.norm_1 = nn.Conv2d(out, out, 3, 1, 1, bias=False), nn.BatchNorm2d(out)
            self.skip = nn.Identity()
            if stride > 1:
                self.skip = nn.Sequential(nn.Conv2d(width, out, 1, stride, bias=False), nn.BatchNorm2d(out))

        def forward(self, x: Any) -> Any:
            y = self.norm_1(self.conv_1(torch.relu(self.norm_0(self.conv_0(x)))))
            return torch.relu(y + self.skip(x))

    del side
    blocks = [Block(16, 16, 1), Block(16, 32, 2), Block(32, 64, 2)]
    stem = [nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, CLASSES))


def torch_vit(torch: Any, side: int) -> Any:
    """A vision transformer of two pre-norm blocks, patches of 4 pixels, width 32."""
    nn = torch.nn

    class Transformer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.patches = nn.Conv2d(3, 32, 4, 4)
            self.positions = nn.Parameter(0.02 * torch.randn(1, (side // 4) ** 2, 32))
            layer = nn.TransformerEncoderLayer(32, 4, 64, 0.0, "gelu", batch_first=True, norm_first=True)
            self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
            self.norm, self.head = nn.LayerNorm(32), nn.Linear(32, CLASSES)

        def forward(self, x: Any) -> Any:
            x = self.patches(x).flatten(2).transpose(1, 2) + self.positions
            return self.head(self.norm(self.encoder(x)).mean(1))

    return Transformer()


class LinenViT(linen.Module):
    """`torch_vit` in linen."""

    @linen.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Images `[B, H, W, 3]` to logits."""
        x = linen.Conv(32, (4, 4), strides=4, name="patches")(x)
        x = x.reshape(len(x), -1, 32)
        x = x + self.param("positions", linen.initializers.normal(0.02), (1, x.shape[1], 32))
        for _ in range(2):
            x = x + linen.MultiHeadDotProductAttention(4)(linen.LayerNorm(epsilon=1e-5)(x))
            y = linen.gelu(linen.Dense(64)(linen.LayerNorm(epsilon=1e-5)(x)), approximate=False)
            x = x + linen.Dense(32)(y)
        return linen.Dense(CLASSES, name="head")(linen.LayerNorm(epsilon=1e-5)(x).mean(axis=1))


def linen_vit(side: int) -> models.Model:
    """The vision transformer in linen."""
    net = models.from_linen(LinenViT(), name="vit", input_shape=(side, side, 3), num_classes=CLASSES)
    return net._replace(apply=fast_convolutions(net.apply))


def linen_resnet(mode: str) -> Callable[[int], models.Model]:
    """ResNet-8 in linen, as the zoo has it."""
    return lambda side: models.create("resnet8-1", input_shape=(side, side, 3), batch_norm=mode)


NETWORKS: dict[str, Callable[[int], Network]] = {
    "PyTorch": of_torch(torch_small, small),
    "NNX": of_nnx,
    "Haiku": of_haiku,
    "Equinox": of_equinox,
    "Keras": of_keras,
    "PyTorch, ResNet-8, BatchNorm eval": of_torch(torch_resnet, linen_resnet("eval")),
    "PyTorch, ResNet-8, BatchNorm train": of_torch(torch_resnet, linen_resnet("train"), "train"),
    "PyTorch, ViT": of_torch(torch_vit, linen_vit),
}
"""Name of a row -> `side -> network`."""
