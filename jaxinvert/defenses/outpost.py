r"""OUTPOST: prune every local gradient, and add noise where it tells most, the less often the longer it goes on.

In local step `t = 1, 2 ...`, with probability `1 / (1 + decay t)`, every tensor `g_l` of the gradient becomes

    prune(g_l) + 1[F_l >= P] n_l,    n_l ~ N(0, (noise min(1, Var w_l))^2):

entries below the tensor's percentile `prune` are zeroed; `F_l` is the mean of `g_l^2` over the outputs of the layer,
for the diagonal of the empirical Fisher information; and `P` is the percentile `100 - phi` of all of these. The
spread of a tensor's weights `w_l` stands for its risk to leak.

The rule is that of the authors' program, apart from two points. There the step number of later epochs is the product
of epoch and batch, and a released version computes all this and then returns the gradient as it was.

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
    """OUTPOST as a change of the gradients of local training, step by step; the defaults are the authors'.

    Args:
      key: of all steps.
      phi: 0 ... 100, percent of the Fisher information's entries that get noise. May be traced, as all others.
      prune: 0 ... 100, percent of a tensor's entries that are zeroed.
      noise: standard deviation, in units of the variance of a tensor's weights, or of 1 where that is more.
      decay: positive, how fast it gets rare.
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
    """What OUTPOST does to one gradient, where it does anything.

    Args:
      params: that the gradient is of.
      phi: as in `outpost`, and so are the others.
      prune: percent.
      noise: relative.
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
    """Standard deviation of the noise in every tensor: `noise min(1, Var w_l)`, of the unbiased variance."""

    def scale(weights: Array) -> Array:
        return noise * jnp.minimum(1.0, jnp.var(weights, ddof=1)) if weights.size > 1 else jnp.zeros(())

    return jax.tree.map(scale, params)


def _information(leaf: Array) -> Array:
    """Mean square over the last axis, which counts outputs; it stays, with length 1."""
    return jnp.mean(jnp.square(leaf), axis=-1, keepdims=True) if leaf.ndim else jnp.square(leaf)
