r"""OUTPOST: prunes local gradients and adds noise where the Fisher information is large, with decaying probability.

In local step `t = 1, 2 ...`, with probability `1 / (1 + decay t)`, every tensor `g_l` of the gradient becomes

    prune(g_l) + 1[F_l >= P] n_l,    n_l ~ N(0, (noise min(1, Var w_l))^2).

Entries below the tensor's percentile `prune` are zeroed. `F_l` is the mean of `g_l^2` over the outputs of the layer,
an approximation of the diagonal of the empirical Fisher information, and `P` is the percentile `100 - phi` over all
tensors. The variance of a tensor's weights `w_l` is the method's measure of its risk to leak.

The rule follows the authors' program, with two exceptions. There the step number of later epochs is the product of
epoch and batch, and a released version computes all this and then returns the gradient unchanged.

References:
  Wang, Hugh, Li: More than enough is too much: adaptive defenses against gradient leakage in production federated
  learning. INFOCOM 2023.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxinvert.defenses import ranking
from jaxinvert.defenses.drawing import with_draws
from jaxinvert.types import Array, Defense, Key, Params, Scalar, Update


def outpost(
    key: Key | None, *, phi: Scalar = 40.0, prune: Scalar = 80.0, noise: Scalar = 0.8, decay: Scalar = 0.125
) -> optax.GradientTransformation:
    """OUTPOST as a transformation of the gradients of local training; the defaults are the authors'.

    Args:
      key: draws for all steps.
      phi: 0 ... 100, percentage of the Fisher information's entries that get noise. May be traced, as all others.
      prune: 0 ... 100, percentage of a tensor's entries that are zeroed.
      noise: standard deviation, in units of `min(1, variance of the tensor's weights)`.
      decay: positive, how fast the probability decays.
    """

    def init(params: Params) -> Array:
        del params
        return jnp.zeros((), jnp.int32)

    def update(updates: Update, state: Any, params: Params | None = None) -> tuple[Update, Any]:
        step = state + 1
        if key is None:
            raise ValueError("a random defense needs a key: outpost was handed None")
        chance_key, noise_key = jax.random.split(jax.random.fold_in(key, step))
        perturbed = perturbation(params, phi=phi, prune=prune, noise=noise)(noise_key, updates)
        happens = jax.random.uniform(chance_key) < 1 / (1 + decay * step)
        return jax.tree.map(lambda new, old: jnp.where(happens, new, old), perturbed, updates), step

    return optax.GradientTransformation(init, update)


def perturbation(params: Params, *, phi: Scalar, prune: Scalar, noise: Scalar) -> Defense:
    """OUTPOST's pruning and noise for one gradient, without the random decision to apply them.

    Args:
      params: parameters at which the gradient was computed.
      phi: see `outpost`.
      prune: see `outpost`.
      noise: see `outpost`.
    """

    def defend(key: Key | None, gradient: Update) -> Update:
        information = jax.tree.map(_information, gradient)
        entries = jnp.concatenate([leaf.astype(jnp.float32).ravel() for leaf in jax.tree.leaves(information)])
        least = ranking.percentile(entries, 100 - jnp.asarray(phi))

        def perturbed(leaf: Array, drawn: Array, told: Array, scale: Array) -> Array:
            size = jnp.abs(leaf)
            pruned = jnp.where(size < ranking.percentile(size, prune), 0, leaf)
            return pruned + jnp.where(told >= least, scale * drawn, 0)

        scales = noise_scales(params, noise)
        return with_draws(perturbed, jax.random.normal, key, gradient, information, scales, name="outpost")

    return defend


def noise_scales(params: Params, noise: Scalar) -> Params:
    """Standard deviation of the noise in every tensor: `noise min(1, Var w_l)`, with the unbiased variance."""

    def scale(weights: Array) -> Array:
        return noise * jnp.minimum(1.0, jnp.var(weights, ddof=1)) if weights.size > 1 else jnp.zeros(())

    return jax.tree.map(scale, params)


def _information(leaf: Array) -> Array:
    """Mean square over the last axis, the layer's outputs, which is kept with length 1."""
    return jnp.mean(jnp.square(leaf), axis=-1, keepdims=True) if leaf.ndim else jnp.square(leaf)
