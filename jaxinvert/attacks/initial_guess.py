"""An initial guess of the images by ridge regression on the inputs of the network's last dense layer.

The gradient of this layer consists of its input for every example, `h_b`, and the error of its prediction, `e_b`:

    dL/dW = 1/B sum_b h_b e_b^T,    e_b = softmax_b - onehot(y_b)

For one example it determines `h` exactly, up to a factor. For batches, the `h_b` follow from the labels if every
example is assumed to have the same prediction, the mean over synthetic pictures; examples with the same label share
the mean of their features. The attacker draws `N` synthetic pictures with the statistics of photographs and no
private content, computes their features with the network, and regresses the pictures' frequencies `v_n` on the
directions `f = h / |h|`, less their mean. At the client's `f*`,

    guess = mean v + k (K + ridge + N sigma^2)^-1 (v - mean v),    K_nm = <f_n, f_m>,   k_n = <f*, f_n>

Every frequency has its own ridge, chosen by generalized cross-validation on the synthetic pictures: small for low
frequencies, which the features determine, and so large for details that they stay at their mean. `sigma^2`, per
feature, is the variance of `f*` beyond that of the `f_n`: noise, or the effect of a defense.

This is the best linear estimate under the distribution of the synthetic pictures. The gradient of an attack loss is
informative only for small steps, and through many ReLUs hardly for those; the regression is not local and finds large
shapes that a descent may miss. It needs one forward pass over the synthetic pictures, for any labels and any number
of clients with this model.

References:
  Wu, Chen, Guo, Weinberger: Learning to invert: simple adaptive attacks for gradient inversion in federated learning.
  UAI 2023, arXiv:2210.10880. Their regression is a network trained on photographs.
  Golub, Heath, Wahba: Generalized cross-validation as a method for choosing a good ridge parameter. Technometrics
  21, 1979.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxinvert.attacks.problem import Problem
from jaxinvert.labels.head import find_head, has_head
from jaxinvert.models import Model, as_outputs, features, mean_outputs
from jaxinvert.observation.observe import require
from jaxinvert.priors import parametrizations
from jaxinvert.priors.dead_leaves import dead_leaves
from jaxinvert.types import Array, Key, Observation, Params, Shape

Guess = Callable[[Observation], Array]
"""`observation -> inputs [B, H, W, C]` in [0, 1]."""

NUM_PICTURES = 1024

_PICTURES_AT_ONCE = 32
_SIDE = 32
"""Frequencies along each axis that are regressed, for any image size; higher frequencies are zero."""
_FEATURES = 2**14
"""Size of the random subset of features; enough for accurate inner products."""
_RIDGES = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 100.0)
"""In units of the mean of the diagonal of `K`."""


def where_readable(problem: Problem) -> Guess | None:
    """`regressed` if the problem admits a guess, else `None`, which means gray noise.

    A guess reads the head's gradient and the labels. There is none if the head is not a dense layer, if labels are
    optimized, or if the attacker adapts to a defense: it then simulates more than an update, with its own objective.
    """
    params = jax.eval_shape(problem.model.init, jax.random.key(0))
    readable = has_head(params, problem.model.head) and problem.objective is None and not problem.joint_labels
    loss = problem.model.calibration
    readable = readable and not (loss.refusal or loss.unsent)
    return regressed(problem) if readable else None


def gray_noise(problem: Problem) -> None:
    """Returns no guess: the search starts at gray noise."""
    del problem


def regressed(problem: Problem, *, num_pictures: int = NUM_PICTURES) -> Guess:
    """Returns a guess by ridge regression. It reads `observation.params`, `.update`, `.labels` and is deterministic.

    Args:
      problem: provides the client's network, the path of its last dense layer and the shape of the images.
      num_pictures: number `N` of synthetic pictures, at least 2; each takes one forward pass.

    Raises:
      ValueError: for fewer than two pictures; at trace time, if the observation lacks a field or the network lacks
        the layer.
    """
    if num_pictures < 2:
        raise ValueError(f"num_pictures is {num_pictures}, a regression needs at least 2")
    head, batch_shape = problem.model.head, problem.batch_shape

    def guess(observation: Observation) -> Array:
        params = require(observation, "params", attack="regression")
        labels = require(observation, "labels", attack="regression")
        gradient = find_head(observation.update, head).kernel
        known = _read_pictures(problem.model, params, batch_shape, num_pictures)
        read = inputs_behind(gradient, labels, known)

        places = _places(len(gradient))
        points, observed = (directions(vectors)[:, places] for vectors in (known.features, read))
        rows, columns = (min(side, _SIDE) for side in batch_shape[1:3])
        estimate = ridge_regression(points, known.frequencies, observed).reshape(-1, rows, columns, batch_shape[3])
        frequencies = jnp.zeros(batch_shape, estimate.dtype).at[:, :rows, :columns].set(estimate)
        return jnp.clip(parametrizations.spectrum(batch_shape).decode(frequencies), 0.0, 1.0)

    return guess


class KnownPictures(NamedTuple):
    """Frequencies, features and mean prediction of the attacker's synthetic pictures.

    Attributes:
      frequencies: `[N, M]`, the pictures' frequencies.
      features: `[N, F]`, the inputs of the last dense layer.
      prediction: `[K]`, the mean output: softmax, sigmoid, or the logits of a regression.
      task: the model's, see `models.tasks`.
    """

    frequencies: Array
    features: Array
    prediction: Array
    task: str = "classes"


def _read_pictures(model: Model, params: Params, batch_shape: Shape, num_pictures: int) -> KnownPictures:
    """Draws `N` pictures, rounded up to whole batches, from a fixed key: lanes with equal parameters share them."""
    apply, head, batch_size = model.apply, model.head, batch_shape[0]
    seed = jax.lax.optimization_barrier(0)  # keeps the compiler from constant-folding the pictures
    keys = jax.random.split(jax.random.key(seed), -(-num_pictures // batch_size))

    def read(key: Key) -> tuple[Array, Array]:
        pictures = dead_leaves(key, batch_shape)
        frequencies = parametrizations.spectrum_of(pictures)[:, :_SIDE, :_SIDE]
        return frequencies.reshape(batch_size, -1), features(apply, f"{head}/kernel", params, pictures)

    batches = jax.lax.map(read, keys, batch_size=max(1, _PICTURES_AT_ONCE // batch_size))
    frequencies, read_of_them = (leaf.reshape(-1, leaf.shape[-1]) for leaf in batches)
    kernel, bias = find_head(params, head)
    logits = read_of_them @ kernel + (0 if bias is None else bias[None])
    return KnownPictures(frequencies, read_of_them, jnp.mean(mean_outputs(logits, model.task), axis=0), model.task)


def inputs_behind(gradient: Array, labels: Array, known: KnownPictures) -> Array:
    """The inputs of a dense layer for every example of a batch, up to a common factor: `[B, F]`.

    Exact if every example has the mean prediction of the synthetic pictures, and always for one example. If all
    classes are in the batch, errors cancel and the mean over examples is undetermined: the synthetic mean is used.

    Args:
      gradient: `[F, K]`, gradient of the layer's kernel.
      labels: `[B]`, or `[B, K]` soft labels or several labels per example.
      known: the synthetic pictures.
    """
    targets = as_outputs(labels, task=known.task, num_logits=len(known.prediction))
    wrong = known.prediction[None] - targets
    inverse = jnp.linalg.pinv(wrong)
    told = wrong @ inverse  # projection onto what the gradient determines; examples of one class stay equal
    read = (gradient @ inverse).T

    mean = jnp.mean(known.features, axis=0)
    spread = jnp.sum(jnp.var(known.features, axis=0))
    share = jnp.sum(told, axis=1)
    expected = jnp.sum(jnp.square(share)) * jnp.sum(jnp.square(mean)) + jnp.trace(told) * spread
    scale = jnp.sqrt(jnp.sum(jnp.square(read)) / jnp.where(expected > 0, expected, 1))
    return read + scale * (1 - share)[:, None] * mean[None]


def directions(vectors: Array) -> Array:
    """`h / |h|` of every row `[N, F]`, in float32 or more."""
    vectors = vectors.astype(jnp.promote_types(vectors.dtype, jnp.float32))
    norms = jnp.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / jnp.maximum(norms, jnp.finfo(vectors.dtype).tiny)


def _places(num_features: int) -> Array:
    """Indices of the features that are used: all, or a random subset."""
    if num_features <= _FEATURES:
        return jnp.arange(num_features)
    return jax.random.choice(jax.random.key(0), num_features, (_FEATURES,), replace=False)


def ridge_regression(points: Array, values: Array, observed: Array) -> Array:
    """Predicts values `[B, M]` at new points, each with the ridge of the lowest generalized cross-validation error.

    Args:
      points: `[N, F]`, the known points.
      values: `[N, M]` at the known points.
      observed: `[B, F]`, the new points; variance beyond that of `points` is treated as noise.
    """
    num_points, num_features = points.shape
    center, mean = jnp.mean(points, axis=0, keepdims=True), jnp.mean(values, axis=0, keepdims=True)
    points, observed = points - center, observed - center
    gram = points @ points.T
    scale = jnp.maximum(jnp.mean(jnp.diagonal(gram)), jnp.finfo(gram.dtype).tiny)
    eigenvalues, vectors = jnp.linalg.eigh(gram / scale)
    eigenvalues, rotated = jnp.maximum(eigenvalues, 0), vectors.T @ (values - mean)
    ridges = jnp.asarray(_RIDGES, gram.dtype)

    def error(ridge: Array) -> Array:
        missed = ridge / (eigenvalues + ridge)
        return jnp.square(missed) @ jnp.square(rotated) / jnp.square(jnp.sum(missed) - 1)  # -1 for the mean

    best = jnp.argmin(jax.lax.map(error, ridges), axis=0)

    excess = jnp.maximum(jnp.sum(jnp.square(observed), axis=1) / scale - 1, 0)
    noise = excess[:, None] * num_points / num_features
    likeness = (observed @ points.T / scale) @ vectors

    def add(total: Array, number: Array) -> tuple[Array, None]:
        predicted = (likeness / (eigenvalues[None] + ridges[number] + noise)) @ rotated
        return total + jnp.where(best[None] == number, predicted, 0), None

    deviations, _ = jax.lax.scan(add, jnp.zeros((len(observed), values.shape[1])), jnp.arange(len(_RIDGES)))
    return mean + deviations
