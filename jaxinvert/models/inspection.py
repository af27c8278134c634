"""Checks a user's network once: where its head is, and whether its loss is the cross-entropy of its logits.

The *head* is the dense layer `z = h W + b` whose outputs are the logits. It is found by derivatives, not by names: in
the bias, the Jacobian of the logits is the identity (or a multiple of it, with a temperature behind the head); in the
kernel, moving column k moves logit k alone, by the same amount for every k. A gate with K outputs inside of the
network does neither.

The *loss* is calibrated by its gradient in the head. For softmax cross-entropy with smoothing `a`,

    dL/db = c s sum_i (p_i - (1 - a) e_{y_i} - a / K),

with `c = f / B` for a mean over the batch and `c = f` for a sum, a factor `f`, and the temperature's `s`. Batches of
two sizes determine `c`, `f` and `a`, each with several labels, because two classes give one equation per batch. A
residual means another loss.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxinvert.models.model import Calibration, Model
from jaxinvert.trees import is_float, leaves_by_path, path_name
from jaxinvert.types import Array, ArrayTree, Batch, Params


class Head(NamedTuple):
    """A head as it was found.

    Attributes:
      kernel: path of the kernel.
      bias: path of the bias, `None` without one.
      transposed: whether the kernel is `[K, M]`.
    """

    kernel: str
    bias: str | None
    transposed: bool


_TOLERANCE = 1e-3
_BATCHES = (2, 3)


def find_heads(model: Model, params: Params) -> list[Head]:
    """All layers whose outputs are the logits, by derivatives; usually one, none for a head that is no dense layer.

    Args:
      model: the network.
      params: its parameters.
    """
    leaves = {path: leaf for path, leaf in leaves_by_path(params).items() if is_float(leaf)}
    inputs, num_classes = _images(model, _BATCHES[-1]), model.num_classes
    direction = np.random.default_rng(0).normal(size=num_classes).astype(np.float32)
    tangents: dict[tuple[str, bool], np.ndarray] = {}
    for path, leaf in leaves.items():
        if leaf.shape == (num_classes,):
            tangents[path, False] = direction
        for transposed in (False, True):
            if leaf.ndim == 2 and leaf.shape[0 if transposed else 1] == num_classes:
                features = np.random.default_rng(1).normal(size=leaf.shape[1 if transposed else 0])
                tangents[path, transposed] = (
                    np.outer(direction, features) if transposed else np.outer(features, direction)
                )

    @jax.jit
    def all_moved(params: Params) -> list[Array]:
        return [_moved(model, params, inputs, path, jnp.asarray(t)) for (path, _), t in tangents.items()]

    along = {place: _multiple(np.asarray(rows), direction) for place, rows in zip(tangents, all_moved(params))}
    biases = [
        path
        for (path, _), by in along.items()
        if leaves[path].ndim == 1 and by is not None and np.ptp(by) < _TOLERANCE * by[0] and by[0] > 0
    ]
    heads: dict[str, Head] = {}
    for (path, transposed), by in along.items():
        bias = next((b for b in biases if _layer(b) == _layer(path)), None)
        if leaves[path].ndim == 2 and by is not None and path not in heads and (num_classes > 1 or bias):
            heads[path] = Head(path, bias, transposed)
    with_bias = [head for head in heads.values() if head.bias is not None]
    return with_bias or list(heads.values())


def _multiple(rows: np.ndarray, direction: np.ndarray) -> np.ndarray | None:
    """The multiples `[B]` of `direction [K]` that the rows `[B, K]` are, or `None` if they are none, or all zero."""
    by = rows @ direction / (direction @ direction)
    largest = np.abs(rows).max()
    is_multiple = np.allclose(rows, by[:, None] * direction[None], atol=_TOLERANCE * largest, rtol=0)
    return by if largest > 0 and np.isfinite(largest) and is_multiple else None


def calibrated(model: Model, params: Params, head: Head) -> Calibration:
    """How the gradient of the model's loss in its head relates to that of the mean cross-entropy of its logits.

    The result's `refusal` says why label rules cannot be used, if they cannot.
    """

    @jax.jit
    def measured(params: Params) -> list[_Measured]:
        return [_measure(model, params, head, _images(model, size)) for size in _BATCHES]

    try:
        found = measured(params)
    except (TypeError, ValueError) as error:  # a loss of other labels than classes
        return Calibration(refusal=f"the loss does not take classes as labels ({error})")
    fits = [_fitted(one) for one in found]
    scale = float(found[0].moved[0, 0])  # of the logits in the bias: the temperature
    (small, smoothing, residual), (large, other_smoothing, other_residual) = fits
    if not min(small, large) > 0 or max(residual, other_residual) > 10 * _TOLERANCE:
        return Calibration(
            refusal=f"the gradient of the loss in {head.bias or head.kernel} is not that of softmax cross-entropy of "
            f"the logits (relative difference {max(residual, other_residual):.2g})"
        )
    ratio, whole = large / small, _BATCHES[1] / _BATCHES[0]
    if min(abs(ratio - 1), abs(ratio - whole)) > 10 * _TOLERANCE or abs(smoothing - other_smoothing) > 0.02:
        return Calibration(refusal="the loss scales with the batch neither like a mean nor like a sum over examples")
    summed = abs(ratio - whole) < abs(ratio - 1)
    factor = large / _BATCHES[1] if summed else large
    return Calibration(
        factor=1.0 if abs(factor - 1) < _TOLERANCE else float(factor),
        summed=bool(summed),
        smoothing=0.0 if abs(smoothing) < 10 * _TOLERANCE else round(float(smoothing), 3),
        tempered=head.bias is not None and abs(scale - 1) > _TOLERANCE,
    )


class _Measured(NamedTuple):
    """What the calibration compares, of one batch.

    Attributes:
      gradients: `[N, K]` gradient of the loss in the bias, or in the kernel along some features, for N labelings.
      moved: `[B, K]` derivative of the logits along ones in the bias, or in the kernel along these features.
      probabilities: `[B, K]` softmax outputs.
      labels: `[N, B]`.
    """

    gradients: Array
    moved: Array
    probabilities: Array
    labels: Array


def _measure(model: Model, params: Params, head: Head, images: Array) -> _Measured:
    path, size = head.bias or head.kernel, len(images)
    leaf = leaves_by_path(params)[path]
    labels = jnp.stack([jnp.zeros(size, jnp.int32), jnp.arange(size) % model.num_classes, jnp.ones(size, jnp.int32)])
    labels = jnp.minimum(labels, model.num_classes - 1)

    def gradient_of(labels: Array) -> Array:
        return jax.grad(lambda value: model.loss(_with(params, path, value), Batch(images, labels)))(leaf)

    gradients = jax.vmap(gradient_of)(labels)
    tangent = jnp.ones_like(leaf)
    if head.bias is None:
        size = leaf.shape[1 if head.transposed else 0]
        features = jnp.asarray(np.random.default_rng(2).normal(size=size), leaf.dtype)
        gradients = gradients @ features if head.transposed else features @ gradients
        tangent = jnp.broadcast_to(features[None] if head.transposed else features[:, None], leaf.shape)
    moved = _moved(model, params, images, path, tangent)
    return _Measured(gradients, moved, jax.nn.softmax(model.apply(params, images)), labels)


def _fitted(one: _Measured) -> tuple[float, float, float]:
    """Factor relative to a mean over the batch, smoothing, and relative residual."""
    gradients, moved, probabilities = (np.asarray(part, np.float64) for part in one[:3])
    weights, num_classes = moved[:, 0], gradients.shape[1]
    hard = np.eye(num_classes)[np.asarray(one.labels)]  # [N, B, K]
    errors, labels = weights @ (probabilities[None] - hard), weights @ (hard - 1 / num_classes)
    columns, gradient = np.stack([errors.ravel(), labels.ravel()], axis=1) / len(weights), gradients.ravel()
    (scale, smoothed), *_ = np.linalg.lstsq(columns, gradient, rcond=None)
    residual = np.linalg.norm(columns @ [scale, smoothed] - gradient) / max(np.linalg.norm(gradient), 1e-30)
    return float(scale), float(smoothed / scale) if scale else 0.0, float(residual)


def _moved(model: Model, params: Params, inputs: Array, path: str, tangent: Array) -> Array:
    """The derivative of the logits `[B, K]` along a direction of one leaf."""
    leaf = leaves_by_path(params)[path]
    return jax.jvp(lambda value: model.apply(_with(params, path, value), inputs), (leaf,), (tangent,))[1]


def _with(params: Params, path: str, leaf: Array) -> ArrayTree:
    return jax.tree_util.tree_map_with_path(lambda p, old: leaf if path_name(p) == path else old, params)


def _layer(path: str) -> str:
    return path.rpartition("/")[0]


def _images(model: Model, size: int) -> Array:
    return jax.random.uniform(jax.random.key(3), (size, *model.input_shape))
