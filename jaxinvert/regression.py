"""A first guess of the images: what simulated updates of known pictures say of an unknown one.

The attacker draws `N` pictures that have the statistics of photographs and nothing private, simulates the client's
update `g_n` on each, and regresses the pictures' frequencies `v_n` on the updates. At the update that the client
sent,

    guess = mean v + k (K + ridge)^-1 (v - mean v),    K_nm = sum over layers of <f_n, f_m>,   k_n = <f*, f_n>

where `f` is a layer's gradient in its direction, `g / |g|`, less its mean over the simulations, and in units of its
spread over them: no scale of the update is needed, and every layer has the same say. Every frequency has its own
ridge, by generalized cross-validation among the simulations: small for large shapes, which updates tell, and so large
for details that these stay at their mean.

This is the best linear estimate over all pictures that the attacker thinks possible. The gradient of an attack loss
tells about small steps only, and behind many ReLUs hardly that; the regression is not local, and has large shapes
there that a descent may not find. It takes one gradient for each simulation and no gradient of gradients.

References:
  Wu, Chen, Guo, Weinberger: Learning to invert: simple adaptive attacks for gradient inversion in federated learning.
  UAI 2023, arXiv:2210.10880, whose regression is a network trained on photographs.
  Golub, Heath, Wahba: Generalized cross-validation as a method for choosing a good ridge parameter. Technometrics
  21, 1979.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxinvert import parametrizations
from jaxinvert.dead_leaves import dead_leaves
from jaxinvert.observe import require
from jaxinvert.types import Array, Batch, ClientUpdateFn, Key, Observation, Shape, Update

Guess = Callable[[Key, Observation], Array]
"""`(key, observation) -> inputs [B, H, W, C]` in [0, 1]."""

NUM_SIMULATIONS = 256
"""What attacks take that start at the guess."""

_ENTRIES = 4096
"""Of each tensor, at random: enough for inner products, and the simulations of large networks stay small."""
_RIDGES = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 100.0)
"""In units of the mean of the diagonal of `K`."""


def regressed(client_update: ClientUpdateFn, *, batch_shape: Shape, num_simulations: int = NUM_SIMULATIONS) -> Guess:
    """Returns the guess; it reads `observation.params`, `.update` and `.labels`.

    Args:
      client_update: the attacker's simulation of the client.
      batch_shape: `(B, H, W, C)`.
      num_simulations: `N`, at least 2; each takes as long as the client's own training.

    Raises:
      ValueError: for fewer than two simulations; at trace time, if the observation lacks a field.
    """
    if num_simulations < 2:
        raise ValueError(f"num_simulations is {num_simulations}, a regression needs at least 2")

    def guess(key: Key, observation: Observation) -> Array:
        labels = require(observation, "labels", attack="regression")
        pictures_key, entries_key = jax.random.split(key)
        entries = entries_of(entries_key, observation.update)

        def simulated(key: Key) -> tuple[Array, list[Array]]:
            pictures = dead_leaves(key, batch_shape)
            update = client_update(observation.params, Batch(pictures, labels))
            return pictures, directions(update, entries)

        pictures, features = jax.lax.map(simulated, jax.random.split(pictures_key, num_simulations))
        gram, likeness = kernel(features, directions(observation.update, entries))
        frequencies = jax.vmap(parametrizations.spectrum_of)(pictures).reshape(num_simulations, -1)
        estimate = ridge_regression(gram, likeness, frequencies).reshape(batch_shape)
        return jnp.clip(parametrizations.spectrum(batch_shape).decode(estimate), 0.0, 1.0)

    return guess


def entries_of(key: Key, update: Update) -> list[Array]:
    """Where `directions` reads each layer: everywhere, or at 4,096 random places."""
    layers = _layers(update)
    return [
        jax.random.randint(key, (_ENTRIES,), 0, layer.size) if layer.size > _ENTRIES else jnp.arange(layer.size)
        for key, layer in zip(jax.random.split(key, len(layers)), layers)
    ]


def directions(update: Update, entries: list[Array]) -> list[Array]:
    """`g / |g|` of every layer, at its `entries`."""

    def direction(layer: Array) -> Array:
        flat = layer.ravel()
        return flat / jnp.maximum(jnp.linalg.norm(flat), jnp.finfo(flat.dtype).tiny)

    return [direction(layer)[places] for layer, places in zip(_layers(update), entries, strict=True)]


def _layers(update: Update) -> list[Array]:
    """Gradients of kernels; others, such as biases', say little of a picture, and count if there is nothing else."""
    leaves = jax.tree.leaves(update)
    return [leaf for leaf in leaves if leaf.ndim > 1] or leaves


def kernel(features: list[Array], observed: list[Array]) -> tuple[Array, Array]:
    """Inner products among simulations, and with the observed update: `K [N, N]` and `k [N]`.

    Args:
      features: of each layer, `[N, D]`.
      observed: of each layer, `[D]`. Layers that no simulation changes count for nothing.
    """
    gram, likeness = 0.0, 0.0
    for simulated, seen in zip(features, observed, strict=True):
        mean = jnp.mean(simulated, axis=0)
        centered = simulated - mean[None]
        spread = jnp.sum(jnp.square(centered))
        weight = jnp.where(spread > 0, len(simulated) / jnp.where(spread > 0, spread, 1), 0)
        gram += weight * centered @ centered.T
        likeness += weight * centered @ (seen - mean)
    return jnp.asarray(gram), jnp.asarray(likeness)


def ridge_regression(gram: Array, likeness: Array, values: Array) -> Array:
    """Predicts `[M]` values at a new point, each with the ridge of its least generalized cross-validation error.

    Args:
      gram: `[N, N]` inner products among known points, centered.
      likeness: `[N]` of the new point with the known ones.
      values: `[N, M]` at the known points.
    """
    mean = jnp.mean(values, axis=0)
    scale = jnp.maximum(jnp.mean(jnp.diagonal(gram)), jnp.finfo(gram.dtype).tiny)
    eigenvalues, vectors = jnp.linalg.eigh(gram / scale)
    rotated, likeness = vectors.T @ (values - mean[None]), (likeness / scale) @ vectors

    def with_ridge(ridge: Array) -> tuple[Array, Array]:
        inverse = 1 / (jnp.maximum(eigenvalues, 0) + ridge)
        freedom = jnp.sum(ridge * inverse) - 1  # the mean takes one degree
        errors = jnp.square(ridge * inverse) @ jnp.square(rotated) / jnp.square(freedom)
        return errors, (likeness * inverse) @ rotated

    errors, deviations = jax.lax.map(with_ridge, jnp.asarray(_RIDGES, gram.dtype))
    best = jnp.argmin(errors, axis=0, keepdims=True)
    return mean + jnp.take_along_axis(deviations, best, axis=0)[0]
