"""Extracts the input features of a dense layer without changing the model; for Flax models as a feature map.

After convolutions, the layer's input is their last output, pooled or not, flattened in the order `[h, w, c]`. The map
has as many channels as the last layer output with two spatial axes, and the same aspect ratio.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen

from jaxinvert.trees import leaves_by_path, path_name
from jaxinvert.types import ApplyFn, Array, Params


def features(apply: ApplyFn, kernel_name: str, params: Params, inputs: Array) -> Array:
    """The inputs of the last dense layer, `[B, M]`: the derivative of its first output in that output's weights.

    Args:
      apply: a network that returns this layer's outputs.
      kernel_name: path of the layer's kernel `[M, K]`.
      params: the network's parameters.
      inputs: `[B, H, W, C]` in [0, 1].

    Raises:
      ValueError: if the parameters have no such kernel.
    """
    kernels = leaves_by_path(params)
    if kernel_name not in kernels:
        raise ValueError(f"the parameters have no {kernel_name!r}, the kernel of a layer that reads features")

    def first_output(column: Array) -> Array:
        moved = jax.tree_util.tree_map_with_path(
            lambda path, leaf: leaf.at[:, 0].add(column) if path_name(path) == kernel_name else leaf, params
        )
        return apply(moved, inputs)[:, 0]

    return jax.jacrev(first_output)(jnp.zeros(len(kernels[kernel_name]), inputs.dtype))


def feature_map(apply: ApplyFn, layer: str, params: Params, inputs: Array) -> Array:
    """The inputs of a dense layer as a map `[B, h, w, c]`; `[B, 1, 1, features]` if they do not form a map.

    Args:
      apply: `apply` of a Flax model.
      layer: path of the layer in `params`, such as `"params/dense"`.
      params: the network's parameters.
      inputs: `[B, H, W, C]` in [0, 1].

    Raises:
      ValueError: if the model calls no such Flax layer, or the layer's input has more than one vector per example.
    """
    path, maps, read = tuple(layer.split("/")[1:]), [inputs.shape[1:]], []

    def intercept(next_fn: Any, args: tuple, kwargs: dict[str, Any], context: Any) -> Any:
        if context.method_name == "__call__" and context.module.path == path:
            read.append(args[0])
        outputs = next_fn(*args, **kwargs)
        if not read and getattr(outputs, "ndim", 0) == 4:
            maps.append(outputs.shape[1:])
        return outputs

    with linen.intercept_methods(intercept):
        apply(params, inputs)
    if not read:
        raise ValueError(f"the inputs of layer {layer!r} are only accessible in a Flax model that calls it once")
    if read[0].ndim != 2:
        raise ValueError(f"layer {layer!r} reads {read[0].shape}, expected one vector of each example, [B, features]")
    return read[0].reshape(len(inputs), *_shape_of_map(read[0].shape[1], maps[-1]))


def _shape_of_map(num_features: int, like: tuple[int, ...]) -> tuple[int, int, int]:
    """`(h, w, c)` with `num_features` entries and the channels and aspect ratio of the map `like`."""
    height, width, channels = like
    places = num_features // channels
    rows = round(math.sqrt(places * height / width))
    if rows == 0 or places % rows or places * channels != num_features:
        return 1, 1, num_features
    return rows, places // rows, channels
