r"""Noise on the update: `g* = g + n`, `n` independent for every entry.

| defense          | n of tensor l                        | known to whom knows the parameters            |
|------------------|--------------------------------------|-----------------------------------------------|
| gaussian_noise   | `N(0, scale^2)`                      | the likelihood of g*                          |
| laplace_noise    | `Laplace(scale)`, deviation sqrt 2 s | the likelihood of g*                          |
| percentile_noise | `N(0, (scale P95(\|g_l\|))^2)`       | the likelihood, its spread estimated from g*  |

None is differentially private: without a bound on what one example can contribute, no noise hides it. DP-SGD bounds
it first (`clients.dp_fedsgd`) and adds `gaussian_noise(dp_noise_scale(...))`.

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

    Without clipping this is *not* differentially private, whatever the scale.

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
    """What standard deviation `percentile_noise(scale)` had in a tensor, estimated from what it left: `[]`.

    If the tensor's entries were normal, noise of `scale` times their 95th percentile `P` made it
    `P sqrt(1 + (1.96 scale)^2)`; where there is little noise, it is `P` whatever they were.
    """
    return scale * jnp.percentile(jnp.abs(observed), 95.0) / jnp.sqrt(1 + jnp.square(_NORMAL_P95 * scale))


def dp_noise_scale(noise_multiplier: Scalar, clip_norm: Scalar, num_examples: int) -> Scalar:
    """Standard deviation of DP-SGD's noise on the *mean* of `B` clipped gradients: `sigma C / B`."""
    return noise_multiplier * clip_norm / num_examples


def add_normal(key: Key | None, update: Update, scales: Update, *, name: str) -> Update:
    """Independent normal noise on every tensor; `scales` holds its standard deviations, one for each tensor."""

    def noisy(leaf: Array, noise: Array, scale: Array) -> Array:
        return leaf + scale * noise

    return with_draws(noisy, jax.random.normal, key, update, scales, name=name)
