r"""Additive noise on the update: `g* = g + n`, `n` independent for every entry.

| defense          | n of tensor l                        | known to an attacker who knows the parameters |
|------------------|--------------------------------------|-----------------------------------------------|
| gaussian_noise   | `N(0, scale^2)`                      | the likelihood of g*                          |
| laplace_noise    | `Laplace(scale)`, deviation sqrt 2 s | the likelihood of g*                          |
| percentile_noise | `N(0, (scale P95(\|g_l\|))^2)`       | the likelihood, its scale estimated from g*   |

None is differentially private: noise cannot hide an example whose contribution is unbounded. DP-SGD first bounds the
contribution (`clients.dp_fedsgd`) and then adds `gaussian_noise(dp_noise_scale(...))`.

References:
  Hatamizadeh et al.: Do gradient inversion attacks make federated learning unsafe? IEEE TMI 2023, arXiv:2202.06924.
"""

import jax
import jax.numpy as jnp

from jaxinvert.defenses import ranking
from jaxinvert.defenses.drawing import with_draws
from jaxinvert.types import Array, Defense, Key, Scalar, Update

_NORMAL_P95 = 1.959963984540054
"""95th percentile of `|z|`, `z` standard normal."""


def gaussian_noise(scale: Scalar) -> Defense:
    """Adds independent `N(0, scale^2)` to every entry of every tensor.

    Without clipping this is *not* differentially private at any scale.

    Args:
      scale: standard deviation, in units of the update; may be traced.
    """

    def defend(key: Key | None, update: Update) -> Update:
        return add_normal(key, update, jax.tree.map(lambda leaf: jnp.asarray(scale), update), name="gaussian_noise")

    return defend


def laplace_noise(scale: Scalar) -> Defense:
    """Adds independent Laplace noise of density `exp(-|n| / scale) / (2 scale)`; not differentially private.

    Args:
      scale: mean absolute value, in units of the update; may be traced.
    """

    def defend(key: Key | None, update: Update) -> Update:
        def noisy(leaf: Array, noise: Array) -> Array:
            return leaf + scale * noise

        return with_draws(noisy, jax.random.laplace, key, update, name="laplace_noise")

    return defend


def percentile_noise(scale: Scalar, *, percentile: float = 95.0) -> Defense:
    """Adds `N(0, (scale P)^2)` to every tensor, `P` a percentile of its absolute values (Hatamizadeh et al. 2023).

    Not differentially private: the scale depends on the data.

    Args:
      scale: their `sigma_0`; 0 changes nothing; may be traced.
      percentile: 0 ... 100, of the absolute values of each tensor.
    """

    def defend(key: Key | None, update: Update) -> Update:
        scales = jax.tree.map(lambda leaf: scale * ranking.percentile(jnp.abs(leaf), percentile), update)
        return add_normal(key, update, scales, name="percentile_noise")

    return defend


def percentile_noise_spread(observed: Array, scale: Scalar) -> Array:
    """Estimates the standard deviation of `percentile_noise(scale)` in a tensor from the noisy tensor: `[]`.

    For normal entries, noise of `scale` times their 95th percentile `P` raises the percentile to
    `P sqrt(1 + (1.96 scale)^2)`; with little noise it stays `P` for any distribution.
    """
    return scale * jnp.percentile(jnp.abs(observed), 95.0) / jnp.sqrt(1 + jnp.square(_NORMAL_P95 * scale))


def dp_noise_scale(noise_multiplier: Scalar, clip_norm: Scalar, num_examples: int) -> Scalar:
    """Standard deviation of DP-SGD's noise on the *mean* of `B` clipped gradients: `sigma C / B`."""
    return noise_multiplier * clip_norm / num_examples


def add_normal(key: Key | None, update: Update, scales: Update, *, name: str) -> Update:
    """Adds independent normal noise to every tensor; `scales` holds one standard deviation per tensor."""

    def noisy(leaf: Array, noise: Array, scale: Array) -> Array:
        return leaf + scale * noise

    return with_draws(noisy, jax.random.normal, key, update, scales, name=name)
