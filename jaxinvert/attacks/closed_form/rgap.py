"""R-GAP: recovers one image layer by layer, from the head through convolutions with invertible activations.

The head's gradient gives its input `h = dW db / (db . db)` and the gradient `da = W_head db` at it. Below, for a
convolution `z = W * x + b`, `a = f(z)` with `a` and `da = dL/da` known,

    z = f^(-1)(a),    dz = f'(z) da,    W * x = z - b    and    dL/dW = x (*) dz

are both *linear* in the layer's input `x`, which is their joint least-squares solution. The first equation is
weighted by `f'(z)`, because inverting `f` divides rounding errors of `a` by it, and the second by `1 / |dz|`. The
next layer has `da = W^T * dz`.

The system is solved in float64 by normal equations with one refinement step. It determines the input if its rank is
the number of unknowns; as evidence, equations are counted (`num_equations`) and the smallest pivot is reported.

References:
  Zhu, Blaschko: R-GAP: Recursive Gradient Attack on Privacy. ICLR 2021, arXiv:2010.07733.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxinvert.attacks.closed_form.precision import in_float64
from jaxinvert.attacks.problem import Problem, declare, require_single_example
from jaxinvert.observation.observe import require
from jaxinvert.trees import leaves_by_path
from jaxinvert.types import Array, Key, Observation, Params, Reconstruction, Shape, SolveFn, Update


class Convolution(NamedTuple):
    """A convolution with a bias.

    Attributes:
      path: path of the layer in the parameters, which holds `kernel [h, w, in, out]` and `bias [out]`.
      stride: stride of both axes.
      padding: number of zeros on every side.
    """

    path: str
    stride: int
    padding: int


class Activation(NamedTuple):
    """An invertible activation, as functions of its *output*.

    Attributes:
      inverse: `a -> z`.
      slope: `a -> f'(z)`.
    """

    inverse: Callable[[Array], Array]
    slope: Callable[[Array], Array]


def _inverse_sigmoid(outputs: Array) -> Array:
    margin = jnp.finfo(outputs.dtype).eps
    outputs = jnp.clip(outputs, margin, 1 - margin)
    return jnp.log(outputs) - jnp.log1p(-outputs)


SIGMOID = Activation(_inverse_sigmoid, lambda outputs: outputs * (1 - outputs))
LENET = (
    Convolution("params/conv_0", stride=2, padding=2),
    Convolution("params/conv_1", stride=2, padding=2),
    Convolution("params/conv_2", stride=1, padding=2),
)
"""The convolutions of `models.lenet`, from the image upward."""
_NOT_OF_ONE_EXAMPLE = 0.01
"""Relative residual of the head's gradient above which the recursion, which amplifies it, is not attempted."""


@declare(simulates=False, reports=("residuals",))
def rgap(
    problem: Problem, *, layers: Sequence[Convolution] | None = None, activation: Activation = SIGMOID
) -> SolveFn:
    """R-GAP: recursive linear systems through LeNet's convolutions, for one example (Zhu and Blaschko 2021).

    Works: for one example through LeNet, trained or not: convolutions whose activations can be inverted.

    Fails: under noise and on batches.

    Args:
      problem: its network is a chain of convolutions, each with the same activation, and one dense head, which reads
        the flattened last output.
      layers: the convolutions from the image to the head; by default those of `models.lenet`, for that model only.
      activation: the activation after every convolution.

    If the head's gradient differs from `h db^T` by 1 %, it is not that of one undefended example. Then the layers
    before it are not solved (which takes seconds at 32 px), and the image is the mean.

    The reconstruction's `attack_loss` is the largest relative residual of the layers' systems, `inf` if none is
    finite. Its `info` has for each layer, from the image to the head, `residuals [layers]`, `pivots [layers]`
    (smallest over largest pivot of the Cholesky factor, squared: near the resolution 2e-16 the input is not
    determined), and `determined [layers]` bool: whether there are at least as many equations as unknowns and the
    pivots are above 1e-13.

    Raises:
      ValueError: for more than one example, or a model other than lenet without `layers`; at trace time, if the
        update lacks a layer.
    """
    require_single_example(problem, attack="rgap")
    if layers is None:
        if problem.model.name != "lenet":
            raise ValueError(
                f"rgap needs a chain of convolutions with sigmoids, lenet; this model is {problem.model.name}"
            )
        layers = LENET
    head = problem.model.head

    def recurse(params: Params, update: Update) -> Reconstruction:
        weights, gradients = leaves_by_path(params), leaves_by_path(update)
        shapes = _input_shapes(weights, layers, problem.image_shape)
        head_gradient, logits_gradient = gradients[f"{head}/kernel"], gradients[f"{head}/bias"]
        energy = jnp.dot(logits_gradient, logits_gradient)
        outputs = (head_gradient @ logits_gradient / jnp.where(energy > 0, energy, 1.0)).reshape(shapes[-1])
        outputs_gradient = (weights[f"{head}/kernel"] @ logits_gradient).reshape(shapes[-1])
        of_one_example = outputs.reshape(-1, 1) * logits_gradient[None]
        head_residual = jnp.linalg.norm(head_gradient - of_one_example) / jnp.linalg.norm(head_gradient)

        def below_the_head() -> tuple[Array, Array, Array, Array]:
            inputs, inputs_gradient, diagnoses = outputs, outputs_gradient, []
            for layer, shape in reversed(list(zip(layers, shapes))):
                slope = activation.slope(inputs)
                preactivations_gradient = slope * inputs_gradient
                kernel = weights[f"{layer.path}/kernel"]
                _, pull_back = jax.vjp(
                    partial(_convolution, kernel=kernel, layer=layer), jnp.zeros(shape, kernel.dtype)
                )
                inputs, diagnosis = _layer_input(
                    layer,
                    kernel,
                    shape,
                    slope=slope,
                    target=activation.inverse(inputs) - weights[f"{layer.path}/bias"][None, None],
                    kernel_gradient=gradients[f"{layer.path}/kernel"],
                    output_gradient=preactivations_gradient,
                )
                (inputs_gradient,) = pull_back(preactivations_gradient)
                diagnoses.append(diagnosis)
            residuals, pivots, determined = (jnp.stack(values[::-1]) for values in zip(*diagnoses))
            return inputs, residuals, pivots, determined

        def nothing() -> tuple[Array, Array, Array, Array]:
            zeros = jnp.zeros(len(layers), outputs.dtype)
            return jnp.zeros(shapes[0], outputs.dtype), zeros + head_residual, zeros, zeros > 0

        image, residuals, pivots, determined = lax.cond(head_residual < _NOT_OF_ONE_EXAMPLE, below_the_head, nothing)
        residual = jnp.maximum(head_residual, jnp.max(residuals))
        image = jnp.where(jnp.isfinite(image), image, 0.0)[None] * problem.std_image + problem.mean_image
        return Reconstruction(
            jnp.clip(image, 0.0, 1.0),
            None,
            jnp.where(jnp.isfinite(residual) & (energy > 0), residual, jnp.inf),
            info={"residuals": residuals, "pivots": pivots, "determined": determined},
        )

    def solve(key: Key, observation: Observation) -> Reconstruction:
        del key
        params = require(observation, "params", attack="rgap")
        paths = [
            f"{path}/{leaf}" for path in (*(layer.path for layer in layers), head) for leaf in ("kernel", "bias")
        ]
        if missing := [path for path in paths if path not in leaves_by_path(observation.update)]:
            raise ValueError(f"rgap needs {missing}, which the update lacks")
        return in_float64(recurse)(params, observation.update)

    return solve


def num_equations(layer: Convolution, kernel_shape: Shape, input_shape: Shape) -> tuple[int, int]:
    """Equations and unknowns of a layer's system: outputs plus weights, and inputs."""
    height, width, channels = input_shape
    rows, columns = (_output_size(size, kernel_shape[i], layer) for i, size in enumerate((height, width)))
    kernel_size = kernel_shape[0] * kernel_shape[1] * kernel_shape[2] * kernel_shape[3]
    return rows * columns * kernel_shape[3] + kernel_size, height * width * channels


def _layer_input(
    layer: Convolution,
    kernel: Array,
    shape: Shape,
    *,
    slope: Array,
    target: Array,
    kernel_gradient: Array,
    output_gradient: Array,
) -> tuple[Array, tuple[Array, Array, Array]]:
    """The least-squares input `[H, W, C]` for outputs and gradient; its residual, pivot and whether it is unique."""
    equations, unknowns = num_equations(layer, kernel.shape, shape)
    size = jnp.linalg.norm(output_gradient)
    scale = 1 / jnp.where(size > 0, size, 1.0)

    # Row j holds the coefficients of input j in all equations; the last row is the padding's, which is no unknown.
    places = _patches(layer, kernel.shape, shape)
    flat_kernel, positions = kernel.reshape(-1, kernel.shape[3]), jnp.arange(len(places))[:, None]
    taps, channels = jnp.arange(places.shape[1])[None], kernel.shape[3]
    forward = jnp.zeros((unknowns + 1, len(places), channels), kernel.dtype)
    forward = forward.at[places, positions].add(jnp.broadcast_to(flat_kernel[None], (*places.shape, channels)))
    backward = jnp.zeros((unknowns + 1, places.shape[1], channels), kernel.dtype)
    spread = (output_gradient * scale).reshape(len(places), 1, channels)
    backward = backward.at[places, taps].add(jnp.broadcast_to(spread, (*places.shape, channels)))
    forward = forward * slope.reshape(1, len(places), channels)
    matrix = jnp.concatenate([part[:-1].reshape(unknowns, -1) for part in (forward, backward)], axis=1)
    right_side = jnp.concatenate([(slope * target).ravel(), (kernel_gradient * scale).ravel()])
    factor = jax.scipy.linalg.cho_factor(matrix @ matrix.T, lower=True)
    found = jax.scipy.linalg.cho_solve(factor, matrix @ right_side)
    found = found + jax.scipy.linalg.cho_solve(factor, matrix @ (right_side - found @ matrix))
    residual = jnp.linalg.norm(right_side - found @ matrix) / jnp.linalg.norm(right_side)
    pivots = jnp.diagonal(factor[0]) ** 2
    pivot = jnp.nan_to_num(jnp.min(pivots) / jnp.max(pivots))
    determined = (pivot > 1e-13) & (equations >= unknowns)
    return found.reshape(shape), (residual, pivot, determined)


def _patches(layer: Convolution, kernel_shape: Shape, input_shape: Shape) -> np.ndarray:
    """Index of the input at each output position and tap, `[positions, taps]`; padding has index `H * W * C`."""
    height, width, channels = input_shape
    inputs = np.arange(height * width * channels).reshape(height, width, channels)
    padding = (layer.padding, layer.padding)
    padded = np.pad(inputs, (padding, padding, (0, 0)), constant_values=inputs.size)
    windows = np.lib.stride_tricks.sliding_window_view(padded, kernel_shape[:2], axis=(0, 1))
    windows = windows[:: layer.stride, :: layer.stride].transpose(0, 1, 3, 4, 2)  # rows, columns, h, w, channels
    return windows.reshape(windows.shape[0] * windows.shape[1], -1)


def _convolution(inputs: Array, kernel: Array, layer: Convolution) -> Array:
    """`[H, W, C]` to `[H', W', C']`."""
    padding = [(layer.padding, layer.padding)] * 2
    dimensions = ("NHWC", "HWIO", "NHWC")
    strides = (layer.stride, layer.stride)
    return lax.conv_general_dilated(inputs[None], kernel, strides, padding, dimension_numbers=dimensions)[0]


def _input_shapes(weights: dict[str, Array], layers: Sequence[Convolution], shape: Shape) -> list[tuple[int, ...]]:
    """Shapes `(H, W, C)` of every layer's input, and of the last one's output."""
    shapes = [tuple(shape)]
    for layer in layers:
        kernel = weights[f"{layer.path}/kernel"]
        height, width = (_output_size(shapes[-1][i], kernel.shape[i], layer) for i in range(2))
        shapes.append((height, width, kernel.shape[3]))
    return shapes


def _output_size(size: int, kernel_size: int, layer: Convolution) -> int:
    return (size + 2 * layer.padding - kernel_size) // layer.stride + 1
