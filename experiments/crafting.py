"""Parameters as a malicious server crafts them: the attack side of the test of `jaxinvert inspect`, and nothing else.

    imprint     w_i = s_i (h + rho n_i),  b_i = -s_i t_i,  t_i quantiles of h x over public images
    trap        w_i: half the entries negative, the positive ones the same in another order, times a factor below 1
    fishing     class: head columns of all other classes zero;  feature: one weight of one class, a bias that cuts it

References: see `jaxinvert.inspection.weights`.
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen

from jaxinvert import models
from jaxinvert.trees import leaves_by_path, path_name
from jaxinvert.types import Array, ArrayTree, Key, Params

DIRECTIONS = ("mean", "cosine", "random")


def behind_imprint(network: models.Model, bins: int) -> models.Model:
    """A network behind an imprint module: a dense layer with a unit per bin, ReLU, and one back to its inputs.

    Its parameters are the network's and the layers `imprint_in` and `imprint_out`, to be crafted by `imprint`.
    """
    size = math.prod(network.input_shape)
    into, back = linen.Dense(bins), linen.Dense(size)

    def init(key: Key) -> Params:
        params = network.init(key)
        layers = {
            "imprint_in": into.init(jax.random.fold_in(key, 1), jnp.zeros((1, size)))["params"],
            "imprint_out": back.init(jax.random.fold_in(key, 2), jnp.zeros((1, bins)))["params"],
        }
        return {**params, "params": {**params["params"], **layers}}

    def apply(params: Params, inputs: Array) -> Array:
        own = params["params"]
        pixels = network.normalized(inputs).reshape(-1, size)
        hidden = jax.nn.relu(pixels @ own["imprint_in"]["kernel"] + own["imprint_in"]["bias"][None])
        passed = (hidden @ own["imprint_out"]["kernel"] + own["imprint_out"]["bias"][None]).reshape(inputs.shape)
        rest = {name: layer for name, layer in own.items() if not name.startswith("imprint")}
        return network.apply({**params, "params": rest}, passed)

    return network._replace(name=f"imprint-{bins}-{network.name}", init=init, apply=apply)


def imprint(
    params: Params,
    layer: str,
    features: np.ndarray,
    rng: np.random.Generator,
    *,
    bins: int,
    direction: str = "mean",
    scaled: bool = False,
    noise: float = 0.0,
) -> Params:
    """Rewrites the first `bins` units of a dense layer that reads the images, and what reads these units.

    Args:
      params: of the network.
      layer: path of the layer, such as "params/dense_0".
      features: `[N, D]` public images as the layer reads them.
      rng: for the random parts.
      bins: number of units that become bins, at most the layer's.
      direction: one of `DIRECTIONS`: brightness, a wave across the inputs, or a random direction.
      scaled: whether every unit has a scale of its own.
      noise: norm of the noise in each unit's weights, relative to the direction: camouflage.
    """
    leaves = _copied(params)
    kernel, bias = leaves[f"{layer}/kernel"], leaves[f"{layer}/bias"]
    size = len(kernel)
    line = {
        "mean": np.ones(size),
        "cosine": np.cos(np.pi * (np.arange(size) + 0.5) / size),
        "random": rng.normal(size=size),
    }[direction]
    line /= np.linalg.norm(line)
    camouflage = rng.normal(size=(size, bins))
    rows = line[:, None] + noise * camouflage / np.linalg.norm(camouflage, axis=0)
    thresholds = np.quantile(features @ line, (np.arange(bins) + 0.5) / bins)
    # The noise moves every unit's mean over images, which its threshold makes up for.
    thresholds = thresholds + (features @ (rows - line[:, None])).mean(axis=0)
    scales = 10 ** rng.uniform(-1, 1, bins) if scaled else np.full(bins, np.linalg.norm(kernel, axis=0).mean())
    kernel[:, :bins], bias[:bins] = rows * scales, -thresholds * scales
    for reader in _readers(leaves, layer, kernel.shape[1]):
        column = rng.normal(size=reader.shape[1:]) / np.sqrt(bins * reader.shape[1])
        reader[:bins] = column / np.exp(np.log(scales).mean())  # the same for all: differences hold one example
    return _tree(params, leaves)


def read_bins(update: ArrayTree, layer: str, *, bins: int) -> np.ndarray:
    """What a server reads of an imprinted layer's update: `[bins, D]`, differences of adjacent bins."""
    leaves = {path: np.asarray(leaf, np.float64) for path, leaf in leaves_by_path(update).items()}
    kernel, bias = leaves[f"{layer}/kernel"][:, :bins], leaves[f"{layer}/bias"][:bins]
    rows, weights = np.diff(kernel, append=0.0).T, np.diff(bias, append=0.0)
    return rows / np.where(np.abs(weights) > 1e-12, weights, np.inf)[:, None]


def trap(params: Params, layers: Sequence[str], rng: np.random.Generator, *, factor: float, mirrored: bool) -> Params:
    """Trap weights in dense layers.

    Args:
      params: of the network.
      layers: paths of the layers.
      rng: for the random parts.
      factor: of the positive weights, below 1.
      mirrored: whether the positive weights are the negative ones, as published; else drawn anew.
    """
    leaves = _copied(params)
    for layer in layers:
        kernel = leaves[f"{layer}/kernel"]
        half, spread = len(kernel) // 2, np.std(kernel)
        for unit in range(kernel.shape[1]):
            down = np.abs(rng.normal(0, spread, half))
            up = factor * (down if mirrored else np.abs(rng.normal(0, spread, half)))
            kernel[rng.permutation(len(kernel))[: 2 * half], unit] = np.concatenate([-down, up])
        leaves[f"{layer}/bias"][:] = 0
    return _tree(params, leaves)


def fish_class(params: Params, head: str, target: int, *, boost: float | None = None) -> Params:
    """All columns of the head but the target's are zero, and their biases large; or the target's are boosted only."""
    leaves = _copied(params)
    kernel, bias = leaves[f"{head}/kernel"], leaves[f"{head}/bias"]
    if boost is not None:
        kernel[:, target] *= boost
        return _tree(params, leaves)
    others = np.arange(kernel.shape[1]) != target
    kernel[:, others], bias[others] = 0, 1000.0
    return _tree(params, leaves)


def fish_feature(
    params: Params, head: str, target: int, feature: int, cut: float, *, steepness: float = 1000.0
) -> Params:
    """Only one feature counts, for one class: examples below the cut have all of the gradient."""
    leaves = _copied(params)
    kernel, bias = leaves[f"{head}/kernel"], leaves[f"{head}/bias"]
    kernel[:], bias[:] = 0, 0
    kernel[feature, target], bias[target] = steepness, -steepness * cut
    return _tree(params, leaves)


def _readers(leaves: dict[str, np.ndarray], layer: str, units: int) -> list[np.ndarray]:
    """The dense kernels that read a layer's units, by their size: the one after it in the perceptron."""
    after = {"dense_0": ("dense_1", "head"), "imprint_in": ("imprint_out",)}[layer.rpartition("/")[2]]
    paths = [f"{layer.rpartition('/')[0]}/{name}/kernel" for name in after]
    return [leaves[path] for path in paths if path in leaves and len(leaves[path]) == units][:1]


def _copied(params: Params) -> dict[str, np.ndarray]:
    return {path: np.array(leaf) for path, leaf in leaves_by_path(params).items()}


def _tree(params: Params, leaves: dict[str, np.ndarray]) -> Params:
    return jax.tree_util.tree_map_with_path(lambda path, _: jnp.asarray(leaves[path_name(path)]), params)
