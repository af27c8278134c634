"""A first guess of the images: what the last dense layer read of them, regressed on what it reads of known pictures.

The gradient of this layer is made of what it read of every example, `h_b`, and of how wrong it was, `e_b`:

    dL/dW = 1/B sum_b h_b e_b^T,    e_b = softmax_b - onehot(y_b)

For one example it is `h` but for a factor, exactly. For batches, `h_b` follow from the labels if the same prediction
is assumed for all, the mean over known pictures; examples of one label get the mean of what was read of them. The
attacker draws `N` pictures that have the statistics of photographs and nothing private, lets the network read them,
and regresses their frequencies `v_n` on directions `f = h / |h|`, less their mean. At the client's `f*`,

    guess = mean v + k (K + ridge + N sigma^2)^-1 (v - mean v),    K_nm = <f_n, f_m>,   k_n = <f*, f_n>

Every frequency has its own ridge, by generalized cross-validation among known pictures: small for large shapes, which
features tell, and so large for details that these stay at their mean. `sigma^2`, by feature, is the variance of `f*`
beyond that of the `f_n`: noise, or what a defense did to the update.

This is the best linear estimate over all pictures that the attacker thinks possible. The gradient of an attack loss
tells about small steps only, and behind many ReLUs hardly that; the regression is not local, and has large shapes
there that a descent may not find. Known pictures pass the network once, forwards, whatever the labels and however
many clients have this model.

References:
  Wu, Chen, Guo, Weinberger: Learning to invert: simple adaptive attacks for gradient inversion in federated learning.
  UAI 2023, arXiv:2210.10880, whose regression is a network trained on photographs.
  Golub, Heath, Wahba: Generalized cross-validation as a method for choosing a good ridge parameter. Technometrics
  21, 1979.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxinvert.attacks.problem import Problem
from jaxinvert.labels.head import find_head, has_head
from jaxinvert.models import features
from jaxinvert.observation.observe import require
from jaxinvert.priors import parametrizations
from jaxinvert.priors.dead_leaves import dead_leaves
from jaxinvert.types import ApplyFn, Array, Key, Observation, Params, Shape

Guess = Callable[[Observation], Array]
"""`observation -> inputs [B, H, W, C]` in [0, 1]."""

NUM_PICTURES = 1024

_PICTURES_AT_ONCE = 32
_SIDE = 32
"""Frequencies along each axis: as many as large shapes have, however large the images."""
_FEATURES = 2**14
"""Of those that a layer reads, at random: enough for inner products."""
_RIDGES = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 100.0)
"""In units of the mean of the diagonal of `K`."""


def where_readable(problem: Problem) -> Guess | None:
    """`regressed` where the problem admits a guess, else `None`: gray noise.

    A guess reads the head's gradient and the labels. There is none for a network whose head is no dense layer, for
    labels that are optimized, and for an attacker who adapts to a defense, who simulates more than an update and
    compares by an objective of its own.
    """
    params = jax.eval_shape(problem.model.init, jax.random.key(0))
    readable = has_head(params, problem.model.head) and problem.objective is None and not problem.joint_labels
    return regressed(problem) if readable else None


def gray_noise(problem: Problem) -> None:
    """No guess: the search starts at gray noise."""
    del problem


def regressed(problem: Problem, *, num_pictures: int = NUM_PICTURES) -> Guess:
    """Returns the guess; it reads `observation.params`, `.update` and `.labels`, and is the same at every call.

    Args:
      problem: gives the client's network, the path of its last dense layer and the shape of the images.
      num_pictures: `N`, at least 2; each takes one forward pass.

    Raises:
      ValueError: for fewer than two pictures; at trace time, if the observation lacks a field or the network the
        layer.
    """
    if num_pictures < 2:
        raise ValueError(f"num_pictures is {num_pictures}, a regression needs at least 2")
    apply, head, batch_shape = problem.model.apply, problem.model.head, problem.batch_shape

    def guess(observation: Observation) -> Array:
        params = require(observation, "params", attack="regression")
        labels = require(observation, "labels", attack="regression")
        gradient = find_head(observation.update, head).kernel
        known = _read_pictures(apply, head, params, batch_shape, num_pictures)
        read = inputs_behind(gradient, labels, known)

        places = _places(len(gradient))
        points, observed = (directions(vectors)[:, places] for vectors in (known.features, read))
        rows, columns = (min(side, _SIDE) for side in batch_shape[1:3])
        estimate = ridge_regression(points, known.frequencies, observed).reshape(-1, rows, columns, batch_shape[3])
        frequencies = jnp.zeros(batch_shape, estimate.dtype).at[:, :rows, :columns].set(estimate)
        return jnp.clip(parametrizations.spectrum(batch_shape).decode(frequencies), 0.0, 1.0)

    return guess


class KnownPictures(NamedTuple):
    """What a network makes of pictures that the attacker drew.

    Attributes:
      frequencies: `[N, M]` of the pictures.
      features: `[N, F]`, what the last dense layer reads of them.
      prediction: `[K]`, their mean softmax.
    """

    frequencies: Array
    features: Array
    prediction: Array


def _read_pictures(apply: ApplyFn, head: str, params: Params, batch_shape: Shape, num_pictures: int) -> KnownPictures:
    """`N` pictures, rounded up to whole batches. Their key is fixed: lanes that share parameters share the result."""
    batch_size = batch_shape[0]
    seed = jax.lax.optimization_barrier(0)  # else a compiler may try to draw the pictures itself
    keys = jax.random.split(jax.random.key(seed), -(-num_pictures // batch_size))

    def read(key: Key) -> tuple[Array, Array]:
        pictures = dead_leaves(key, batch_shape)
        frequencies = parametrizations.spectrum_of(pictures)[:, :_SIDE, :_SIDE]
        return frequencies.reshape(batch_size, -1), features(apply, f"{head}/kernel", params, pictures)

    batches = jax.lax.map(read, keys, batch_size=max(1, _PICTURES_AT_ONCE // batch_size))
    frequencies, read_of_them = (leaf.reshape(-1, leaf.shape[-1]) for leaf in batches)
    kernel, bias = find_head(params, head)
    logits = read_of_them @ kernel + (0 if bias is None else bias[None])
    return KnownPictures(frequencies, read_of_them, jnp.mean(jax.nn.softmax(logits), axis=0))


def inputs_behind(gradient: Array, labels: Array, known: KnownPictures) -> Array:
    """What a dense layer read of every example of a batch, but for a common factor: `[B, F]`.

    Exact where every example has the mean prediction of known pictures, and for one example whatever it has. If all
    classes are in the batch, errors cancel, and a mean over examples cannot be told: it is that of known pictures.

    Args:
      gradient: of the layer's kernel, `[F, K]`.
      labels: `[B]`, or `[B, K]` soft or several of an example.
      known: what the layer reads of known pictures.
    """
    targets = jax.nn.one_hot(labels, len(known.prediction)) if labels.ndim == 1 else labels
    wrong = known.prediction[None] - targets
    inverse = jnp.linalg.pinv(wrong)
    told = wrong @ inverse  # projects on what the gradient tells; adds nothing within a class
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
    """Which features count: all, or as many as is enough."""
    if num_features <= _FEATURES:
        return jnp.arange(num_features)
    return jax.random.choice(jax.random.key(0), num_features, (_FEATURES,), replace=False)


def ridge_regression(points: Array, values: Array, observed: Array) -> Array:
    """Predicts values at new points `[B, M]`, each value with its ridge of least generalized cross-validation error.

    Args:
      points: `[N, F]`, known.
      values: `[N, M]` there.
      observed: `[B, F]`; what varies more than `points` is taken for noise.
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
        return jnp.square(missed) @ jnp.square(rotated) / jnp.square(jnp.sum(missed) - 1)  # the mean is one, too

    best = jnp.argmin(jax.lax.map(error, ridges), axis=0)

    excess = jnp.maximum(jnp.sum(jnp.square(observed), axis=1) / scale - 1, 0)
    noise = excess[:, None] * num_points / num_features
    likeness = (observed @ points.T / scale) @ vectors

    def add(total: Array, number: Array) -> tuple[Array, None]:
        predicted = (likeness / (eigenvalues[None] + ridges[number] + noise)) @ rotated
        return total + jnp.where(best[None] == number, predicted, 0), None

    deviations, _ = jax.lax.scan(add, jnp.zeros((len(observed), values.shape[1])), jnp.arange(len(_RIDGES)))
    return mean + deviations
