"""Quantization of every entry of an update: its sign, or randomized rounding to a few levels.

References:
  Bernstein, Wang, Azizzadenesheli, Anandkumar: signSGD. ICML 2018, arXiv:1802.04434.
  Alistarh, Grubic, Li, Tomioka, Vojnovic: QSGD. NeurIPS 2017, arXiv:1610.02132.
"""

import jax
import jax.numpy as jnp

from jaxinvert.defenses.drawing import with_draws
from jaxinvert.trees import tree_norm
from jaxinvert.types import Array, Defense, Key, Scalar, Update


def sign(key: Key | None, update: Update) -> Update:
    """Sends -1, 0 or 1 for every entry (Bernstein et al. 2018)."""
    del key
    return jax.tree.map(jnp.sign, update)


def qsgd(levels: Scalar) -> Defense:
    """Rounds every entry at random to multiples of `|g_l| / levels`, without bias (Alistarh et al. 2017).

    `|g_l|` is the Euclidean norm of the tensor, which is not divided into the authors' buckets.

    Args:
      levels: their `s`, at least 1; may be traced.
    """

    def defend(key: Key | None, update: Update) -> Update:
        def quantized(leaf: Array, uniform: Array) -> Array:
            step = tree_norm(leaf) / levels
            size = jnp.abs(leaf) / jnp.where(step > 0, step, 1)
            level = jnp.floor(size) + (uniform < size - jnp.floor(size))
            return jnp.sign(leaf) * level * step

        return with_draws(quantized, jax.random.uniform, key, update, name="qsgd")

    return defend


def qsgd_step(observed: Array) -> Array:
    """Estimates the distance between two levels as a tensor's smallest non-zero magnitude: `[]`; 0 if all are zero.

    The estimate is a multiple of the distance if no entry was rounded to the first level.
    """
    size = jnp.abs(observed)
    smallest = jnp.min(jnp.where(size > 0, size, jnp.inf))
    return jnp.where(jnp.isinf(smallest), 0.0, smallest)
