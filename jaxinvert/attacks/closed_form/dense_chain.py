"""The closed form through several dense layers, of which some have no bias, and a consistency check of all layers.

For `h_l = act(W_l h_(l-1) + b_l)`, `l = 1 ... L`, every gradient is `dL/dW_l = sum_b d_(l,b) h_(l-1,b)^T`. A layer
with a bias gives its input, see `dense`. A layer without bias gives only the span of its inputs, orthonormal rows
`Q`. Its output is already known from the layer above, and

    h_(l-1) = Q^T c,    (W_l Q^T c)_i = act^-1(h_l)_i    on the units i where act can be inverted,

is linear in as many unknowns as there are examples. For one example, the unknown is the scale of a known direction.
The recursion starts at the first layer with a bias and proceeds toward the input. ReLU can be inverted on active
units.

The check proceeds from the input: for the right inputs, the rows of every layer's gradient lie in the span of the
forward pass's `(h_(l-1,b), 1)`. It needs no labels. Unlike a check of the first layer alone, it detects mixtures of
the inputs, because the activation does not map them to mixtures of its outputs.

References:
  Geiping, Bauermeister, Droege, Moeller: Inverting Gradients. NeurIPS 2020, arXiv:2003.14053: Proposition 3.1, for
  the input of every dense layer.
  Zhu, Blaschko: R-GAP: Recursive Gradient Attack on Privacy. ICLR 2021, arXiv:2010.07733: the recursion through
  layers with invertible activations.
"""

import math
import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxinvert.attacks.closed_form.dense import distinct_inputs, single_input, unexplained_share, unit_inputs
from jaxinvert.attacks.closed_form.sparse_directions import OVERSAMPLING, factorize
from jaxinvert.attacks.problem import Problem, declare
from jaxinvert.observation.observe import check_update, require
from jaxinvert.trees import leaves_by_path
from jaxinvert.types import Array, Key, Observation, Reconstruction, SolveFn


class Activation(NamedTuple):
    """A layer's activation and its partial inverse.

    Attributes:
      apply: the elementwise activation.
      invert: `outputs -> (inputs, known)`, both of the same shape; inputs that are not known are ignored.
    """

    apply: Callable[[Array], Array]
    invert: Callable[[Array], tuple[Array, Array]]


RELU = Activation(jax.nn.relu, lambda outputs: (outputs, outputs > 1e-4 * jnp.max(jnp.abs(outputs))))
"""Invertible on active units; smaller outputs may be rounding errors of zero."""


class Layer(NamedTuple):
    """Parameters and gradients of one dense layer; bias and its gradient are `None` for a layer without bias."""

    kernel: Array
    bias: Array | None
    kernel_gradient: Array
    bias_gradient: Array | None


@declare(simulates=False, any_loss=True, reports=("valid", "unexplained"))
def dense_chain(problem: Problem, *, layers: Sequence[str] | None = None, activation: Activation = RELU) -> SolveFn:
    """Closed form through all layers of a ReLU perceptron, not all with bias; one example (Geiping et al. 2020).

    Exact for one example. From a batch it recovers the examples that are alone in activating some unit of the first
    layer with a bias; below that layer, those with at least `B` invertible units. Reads `observation.params` and
    `.update`; no labels.

    Works: for one example, through a perceptron whose activations can be inverted, of which at least one layer has a
    bias.

    Fails: on batches.

    Args:
      problem: its network is a perceptron that reads the (normalized, flattened) inputs.
      layers: paths of the dense layers from the input on, such as `("params/dense_0", "params/head")`; at least one
        of them has a bias, and `activation` is between any two. By default all layers, in the order of their names.
      activation: the activation between the layers.

    The reconstruction's `attack_loss` is the largest of `info["unexplained"]` `[L]`, the `unexplained_share` of each
    layer in `layers`; `info["valid"]` is `[B]`.

    Raises:
      ValueError: if the network is not a perceptron; at trace time, if a layer is missing, if the layers' shapes do
        not match each other or the images, or if none of them has a bias.
    """
    if layers is None:
        params = jax.eval_shape(problem.model.init, jax.random.key(0))
        layers = layers_in_order(params, head=problem.model.head)
    batch_shape, batch_size = problem.batch_shape, problem.num_examples

    def solve(key: Key, observation: Observation) -> Reconstruction:
        check_update(require(observation, "params", attack="dense_chain"), observation.update)
        chain = read_chain(observation, layers, num_features=math.prod(problem.image_shape))
        lowest = next(number for number, layer in enumerate(chain) if layer.bias_gradient is not None)
        keys = jax.random.split(key, lowest + 1)
        found, valid = biased_layer_inputs(keys[lowest], chain[lowest], batch_size)
        for number in reversed(range(lowest)):
            found = inputs_of_outputs(keys[number], chain[number], found, activation) * valid[:, None]
        unexplained = unexplained_by_layer(chain, found, valid, activation)
        images = found.reshape(batch_shape) * problem.std_image + problem.mean_image
        return Reconstruction(
            inputs=jnp.clip(images, 0.0, 1.0),
            labels=None,  # candidates come in an order of their own
            attack_loss=jnp.max(unexplained),
            info={"valid": valid, "unexplained": unexplained},
        )

    return solve


def layers_in_order(tree: object, *, head: str) -> tuple[str, ...]:
    """The paths of a perceptron's dense layers from input to head, sorted by name in natural order, head last.

    Args:
      tree: parameters or update of a network that consists of dense layers only.
      head: path of the last layer.

    Raises:
      ValueError: naming tensors that belong to no dense layer, or the head if it is missing.
    """
    leaves = leaves_by_path(tree)
    layers = {path.removesuffix("/kernel") for path, leaf in leaves.items() if path.endswith("/kernel")}
    dense = {layer for layer in layers if leaves[f"{layer}/kernel"].ndim == 2}
    if others := [path for path in leaves if path.removesuffix("/kernel").removesuffix("/bias") not in dense]:
        raise ValueError(f"dense_chain needs a network with only dense layers; this one also has {others}")
    if head not in dense:
        raise ValueError(f"the head {head!r} is no dense layer of this network, which has {sorted(dense)}")

    def natural(layer: str) -> list[str | int]:
        return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", layer)]

    return (*sorted(dense - {head}, key=natural), head)


def biased_layer_inputs(key: Key, layer: Layer, batch_size: int) -> tuple[Array, Array]:
    """The inputs `[B, features]` of a layer with a bias, in any order, and whether each was found, `[B]`."""
    assert layer.bias_gradient is not None
    if batch_size == 1:
        only, valid = single_input(layer.kernel_gradient, layer.bias_gradient)
        return only[None], valid[None]
    units = unit_inputs(layer.kernel_gradient, layer.bias_gradient)
    best = distinct_inputs(key, units, num_candidates=batch_size)
    return best.inputs, best.valid


def inputs_of_outputs(key: Key, layer: Layer, outputs: Array, activation: Activation) -> Array:
    """The inputs `[B, features]` of a layer without bias, from its outputs after the activation.

    Args:
      key: for the range finder.
      layer: a layer whose gradient has rank `B` or less.
      outputs: `[B, units]`.
      activation: the activation after the layer.
    """
    gradient = layer.kernel_gradient.T.astype(outputs.dtype)
    rank = min(len(outputs), *gradient.shape)
    sketch = jax.random.normal(key, (gradient.shape[1], rank + OVERSAMPLING), outputs.dtype)
    rows = factorize(gradient, sketch, rank=rank).right
    sizes = jnp.linalg.norm(rows, axis=1, keepdims=True)
    there = sizes > 1e3 * jnp.finfo(rows.dtype).eps * jnp.max(sizes)
    directions = jnp.where(there, rows / jnp.where(there, sizes, 1.0), 0.0)
    responses = jnp.matmul(directions, layer.kernel, precision="highest").T

    def coefficients(outputs: Array) -> Array:
        before, known = activation.invert(outputs)
        solution, *_ = jnp.linalg.lstsq(responses * known[:, None], jnp.where(known, before, 0.0))
        return solution

    return jnp.matmul(jax.vmap(coefficients)(outputs), directions, precision="highest")


def unexplained_by_layer(chain: Sequence[Layer], inputs: Array, valid: Array, activation: Activation) -> Array:
    """`dense.unexplained_share` of each layer, with its inputs from a forward pass: `[L]` in [0, 1].

    Args:
      chain: all layers, from the input on.
      inputs: `[B, features]` of the first layer.
      valid: `[B]` bool; invalid inputs are ignored.
      activation: the activation between the layers.
    """
    shares = []
    for layer in chain:
        shares.append(unexplained_share(layer.kernel_gradient, layer.bias_gradient, inputs, valid))
        outputs = jnp.matmul(inputs, layer.kernel, precision="highest")
        inputs = activation.apply(outputs if layer.bias is None else outputs + layer.bias[None])
    return jnp.stack(shares)


def read_chain(observation: Observation, layers: Sequence[str], *, num_features: int) -> list[Layer]:
    """Reads parameters and gradients of the layers and checks that their shapes match.

    Raises:
      ValueError: naming a missing layer or one whose shape does not match, or if no layer has a bias.
    """
    params, update = leaves_by_path(observation.params), leaves_by_path(observation.update)
    chain, width = [], num_features
    for name in layers:
        kernel = params.get(f"{name}/kernel")
        if kernel is None or kernel.ndim != 2:
            raise ValueError(f"the update has no dense layer {name!r}; its tensors are {sorted(params)}")
        if kernel.shape[0] != width:
            raise ValueError(f"layer {name!r} reads {kernel.shape[0]} features, but the layer before it has {width}")
        width = kernel.shape[1]
        bias = f"{name}/bias"
        chain.append(Layer(kernel, params.get(bias), update[f"{name}/kernel"], update.get(bias)))
    if all(layer.bias is None for layer in chain):
        raise ValueError(
            f"dense_chain needs a layer with a bias among {tuple(layers)}: without one the inputs' scale is unknown"
        )
    return chain
