"""Finds the dense layer with a bias whose inputs are the images; perceptron attacks start from its gradient."""

import math
from typing import NamedTuple

from jaxinvert.trees import leaves_by_path
from jaxinvert.types import Array, Observation


class FirstLayer(NamedTuple):
    """Parameters and gradients of the first layer.

    Attributes:
      kernel: `[features, units]`.
      bias: `[units]`.
      kernel_gradient: `[features, units]`.
      bias_gradient: `[units]`.
    """

    kernel: Array
    bias: Array
    kernel_gradient: Array
    bias_gradient: Array


def find_first_layer(
    tree: object, image_shape: tuple[int, ...], *, attack: str, layer: str | None = None
) -> tuple[str, int]:
    """Returns the path of the first layer and its number of units.

    Args:
      tree: parameters or update.
      image_shape: `(H, W, C)`.
      attack: name of the attack, for messages.
      layer: path of the layer, such as `"params/dense_0"`; by default the only one with `H * W * C` input features.

    Raises:
      ValueError: if there is no such layer, or its inputs are not images of this shape.
    """
    num_features = math.prod(image_shape)
    dense = biased_dense_layers(tree)
    readers = [name for name, shape in dense.items() if shape[0] == num_features]
    if layer is None and len(readers) != 1:
        raise ValueError(
            f"{attack} needs one biased dense layer that reads images of shape {image_shape}, {num_features} "
            f"features; this model has {len(readers)}, among {dense}"
        )
    name = readers[0] if layer is None else layer
    if name not in dense:
        raise ValueError(f"the update has no biased dense layer {name!r}; it has {sorted(dense)}")
    if name not in readers:
        raise ValueError(
            f"layer {name!r} reads {dense[name][0]} features, but images of shape {image_shape} have "
            f"{num_features}: it is not the first layer of this model"
        )
    return name, dense[name][1]


def read_first_layer(
    observation: Observation, image_shape: tuple[int, ...], *, attack: str, layer: str | None = None
) -> FirstLayer:
    """Reads parameters and gradients of the layer that `find_first_layer` finds.

    Raises:
      ValueError: see `find_first_layer`.
    """
    name, _ = find_first_layer(observation.update, image_shape, attack=attack, layer=layer)
    params, update = leaves_by_path(observation.params), leaves_by_path(observation.update)
    kernel, bias = f"{name}/kernel", f"{name}/bias"
    return FirstLayer(params[kernel], params[bias], update[kernel], update[bias])


def biased_dense_layers(tree: object) -> dict[str, tuple[int, int]]:
    """Maps the path of every dense layer with a bias to `(features, units)`."""
    leaves = leaves_by_path(tree)
    return {
        path.removesuffix("/kernel"): (leaf.shape[0], leaf.shape[1])
        for path, leaf in leaves.items()
        if path.endswith("/kernel") and leaf.ndim == 2 and path.removesuffix("kernel") + "bias" in leaves
    }
