"""Honest networks, plain and odd: by many initializations, short trainings, and what is done to them afterwards."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxinvert import data, models
from jaxinvert.trees import leaves_by_path, path_name
from jaxinvert.types import Array, ArrayTree, Batch, Params

INITIALIZATIONS = (
    *("own", "he normal", "lecun normal", "glorot uniform", "orthogonal", "heavy tails", "zero biases"),
    *("equal biases", "sparse", "binary", "small", "large", "zero head"),
)
"""The network's own, and others that are in use; all keep the network's zeros, ones and running statistics."""

ALTERATIONS = (
    *("none", "pruned 90 %", "units pruned", "2 bits", "3 bits", "4 bits", "bfloat16", "noisy", "doubled units"),
    *("rank 8", "unseen classes"),
)
"""What is done to a finished network before it is sent."""


class Group(NamedTuple):
    """Networks of one architecture that are trained together.

    Attributes:
      model: name in the registry.
      count: number of networks.
      steps: of training; 0 for initializations only.
      adam: whether Adam trains, not SGD with momentum.
    """

    model: str
    count: int
    steps: int
    adam: bool = False


class Honest(NamedTuple):
    """One honest network: in words, and its parameters."""

    model: models.Model
    kind: str
    params: Params


def networks(group: Group, dataset: data.Dataset, *, seed: int) -> Iterator[Honest]:
    """The networks of a group; half of the perceptrons do not normalize their inputs.

    Args:
      group: which.
      dataset: what they are trained on, and the shape of their inputs.
      seed: of everything random.
    """
    for normalized in (True, False) if group.model.startswith("mlp") else (True,):
        model = network(group.model, dataset, normalized=normalized)
        init = jax.jit(model.init)
        rng = np.random.default_rng([seed, normalized, len(group.model), group.steps])
        count = group.count
        if group.model.startswith("mlp"):
            count = (count + normalized) // 2
        if not count:
            continue
        keys = jax.random.split(jax.random.key(int(rng.integers(2**31))), count)
        hows = [INITIALIZATIONS[i % len(INITIALIZATIONS)] for i in range(count)]
        own = [jax.device_get(init(key)) for key in keys]
        starts = [initialized(model, params, how, rng) for params, how in zip(own, hows)]
        if not group.steps:
            yield from (Honest(model, f"untrained: {how}", start) for how, start in zip(hows, starts))
            continue
        finished = train(model, starts, dataset, rng, num_steps=group.steps, adam=group.adam)
        for i, params in enumerate(finished):
            how = ALTERATIONS[i % len(ALTERATIONS)]
            yield Honest(model, f"trained: {how}", altered(model, params, how, rng))


def network(name: str, like: data.Dataset, *, normalized: bool) -> models.Model:
    """A network for a data set, with or without normalization of its inputs."""
    facts: dict[str, Any] = {"mean": like.mean, "std": like.std} if normalized else {}
    return models.create(name, input_shape=like.images.shape[1:], num_classes=like.num_classes, **facts)


def initialized(model: models.Model, params: Params, how: str, rng: np.random.Generator) -> Params:
    """Parameters by one of `INITIALIZATIONS`; in NumPy, which compiles nothing.

    Args:
      model: the network.
      params: its own initial parameters.
      how: which initialization.
      rng: for what is drawn.
    """

    def one(path: tuple, leaf: np.ndarray) -> np.ndarray:
        name = path_name(path)
        if name.startswith(model.head) and how == "zero head":
            return np.zeros_like(leaf)
        if name.endswith("bias"):
            return {"zero biases": np.zeros_like(leaf), "equal biases": np.full_like(leaf, 0.1)}.get(how, leaf)
        return _kernel(rng, leaf, how).astype(leaf.dtype) if name.endswith("kernel") else leaf

    return jax.tree_util.tree_map_with_path(one, params)


def _kernel(rng: np.random.Generator, leaf: np.ndarray, how: str) -> np.ndarray:
    fan_in, fan_out = leaf.size // leaf.shape[-1], leaf.size // leaf.shape[-2]
    if how in (scaled := {"small": 0.1, "large": 3.0}):
        return leaf * scaled[how]
    normal = rng.normal(size=leaf.shape)
    if how == "orthogonal":
        tall = normal.reshape(fan_in, -1)
        columns, _ = np.linalg.qr(tall if fan_in >= tall.shape[1] else tall.T)
        return np.sqrt(2) * (columns if columns.shape == tall.shape else columns.T).reshape(leaf.shape)
    drawn = {
        "he normal": lambda: normal * np.sqrt(2 / fan_in),
        "lecun normal": lambda: normal / np.sqrt(fan_in),
        "glorot uniform": lambda: rng.uniform(-1, 1, leaf.shape) * np.sqrt(6 / (fan_in + fan_out)),
        "heavy tails": lambda: rng.standard_t(3, leaf.shape) / np.sqrt(3 * fan_in),
        "sparse": lambda: normal * (rng.random(leaf.shape) < 0.1) * np.sqrt(20 / fan_in),
        "binary": lambda: np.sign(normal) / np.sqrt(fan_in),
    }
    return drawn[how]() if how in drawn else leaf


def train(
    model: models.Model,
    starts: list[Params],
    dataset: data.Dataset,
    rng: np.random.Generator,
    *,
    num_steps: int,
    adam: bool,
) -> list[Params]:
    """Trains all starts in one program, each with its own learning rate, weight decay and share of the classes.

    A third of the networks has a strong weight decay, under which rows die, a third of them sees few classes.
    """
    count, images, labels = len(starts), jnp.asarray(dataset.images), jnp.asarray(dataset.labels)
    rates = 10 ** rng.uniform(-3.5, -2, count) if adam else 10 ** rng.uniform(-2.5, -1, count)
    decays = np.where(np.arange(count) % 3 == 0, 10 ** rng.uniform(-2, -0.5, count), 1e-4)
    few = np.arange(count) % 3 == 1
    chosen = np.empty((count, num_steps, 32), np.int32)
    for i in range(count):
        seen = rng.permutation(dataset.num_classes)[: rng.integers(2, 5) if few[i] else dataset.num_classes]
        chosen[i] = rng.choice(np.flatnonzero(np.isin(dataset.labels, seen)), (num_steps, 32))
    training = _training(model, images, labels, adam=adam)
    trained = jax.jit(lambda *all_of: jax.lax.map(lambda one: training(*one), all_of))  # in the cache, one by one
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *starts)
    hyper = (jnp.asarray(each, jnp.float32) for each in (rates, decays))
    finished = jax.device_get(trained(stacked, *hyper, jnp.asarray(chosen)))
    return [jax.tree.map(lambda leaf, i=i: leaf[i], finished) for i in range(count)]


def _training(model: models.Model, images: Array, labels: Array, *, adam: bool) -> Callable[..., Params]:
    first = optax.scale_by_adam() if adam else optax.trace(0.9)

    def training(params: Params, rate: Array, decay: Array, chosen: Array) -> Params:
        def step(carry: tuple[Params, ArrayTree], places: Array) -> tuple[tuple[Params, ArrayTree], None]:
            at, state = carry
            gradient = jax.grad(model.loss)(at, Batch(images[places], labels[places]))
            gradient, state = optax.chain(optax.clip_by_global_norm(5.0), first).update(gradient, state, at)
            return (jax.tree.map(lambda p, g: p - rate * (g + decay * p), at, gradient), state), None

        state = optax.chain(optax.clip_by_global_norm(5.0), first).init(params)
        return jax.lax.scan(step, (params, state), chosen)[0][0]

    return training


def altered(model: models.Model, params: Params, how: str, rng: np.random.Generator) -> Params:
    """A finished network after one of `ALTERATIONS`."""
    leaves = {path: np.array(leaf) for path, leaf in leaves_by_path(params).items()}
    kernels = [path for path in leaves if path.endswith("kernel")]
    if how == "doubled units":
        _double(leaves, model.head)
    if how == "unseen classes":  # a head that was made for more classes than there were
        head = leaves[f"{model.head}/kernel"]
        head[:, head.shape[1] // 2 :] = 0
    for path in kernels:
        leaf = leaves[path]
        size = np.abs(leaf)
        if how == "pruned 90 %":
            leaf[size < np.quantile(size, 0.9)] = 0
        elif how == "units pruned" and not path.startswith(model.head):
            leaf[..., rng.random(leaf.shape[-1]) < 0.5] = 0
        elif how.endswith("bits"):
            most = 2 ** (int(how[0]) - 1) - 1
            step = size.max() / most
            leaves[path] = np.round(leaf / step) * step if step else leaf
        elif how == "bfloat16":
            leaves[path] = np.array(jnp.asarray(leaf, jnp.bfloat16), np.float32)
        elif how == "noisy":
            leaves[path] = leaf + rng.normal(0, 0.5 * leaf.std(), leaf.shape).astype(np.float32)
        elif how == "rank 8" and leaf.ndim == 2 and min(leaf.shape) > 8:
            u, s, v = np.linalg.svd(leaf, full_matrices=False)
            leaves[path] = (u[:, :8] * s[:8]) @ v[:8]
    return jax.tree_util.tree_map_with_path(lambda path, _: leaves[path_name(path)], params)


def _double(leaves: dict[str, np.ndarray], head: str) -> None:
    """Copies half of the units of every dense layer onto the other half, as nets do that were widened."""
    for path in [path for path in leaves if path.endswith("kernel") and not path.startswith(head)]:
        half = leaves[path].shape[-1] // 2
        for name in (path, f"{path.removesuffix('kernel')}bias"):
            if name in leaves and half:
                leaves[name][..., half : 2 * half] = leaves[name][..., :half]
