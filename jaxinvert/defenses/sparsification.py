"""Sparsification: sends only the largest entries of the update, a random subset, or entries above a percentile.

Entries that are not sent arrive as exact zeros, so the attacker sees the transmitted support.

References:
  Zhu, Liu, Han: Deep leakage from gradients. NeurIPS 2019, arXiv:1906.08935 (pruning as a defense).
  Wangni, Wang, Liu, Zhang: Gradient sparsification for communication-efficient distributed optimization.
  NeurIPS 2018, arXiv:1710.09854.
  Shokri, Shmatikov: Privacy-preserving deep learning. CCS 2015 (what NVFlare calls percentile privacy).
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from jaxinvert.defenses import ranking
from jaxinvert.defenses.drawing import with_draws
from jaxinvert.defenses.ranking import among_largest
from jaxinvert.types import Array, Defense, Key, Scalar, Update


def top_k(keep: Scalar) -> Defense:
    """Keeps the largest entries of the whole update, by absolute value.

    Exactly `max(1, round(keep N))` of `N` entries are kept; among equal entries the first ones are taken.

    Args:
      keep: fraction in (0, 1]; may be traced.
    """

    def defend(key: Key | None, update: Update) -> Update:
        del key
        sizes, unravel = ravel_pytree(jax.tree.map(jnp.abs, update))
        kept = unravel(among_largest(sizes, keep).astype(sizes.dtype))
        return jax.tree.map(jnp.multiply, update, kept)

    return defend


def top_k_of_tensors(keep: Scalar) -> Defense:
    """Keeps the largest entries of every tensor; the number is computed as in `top_k`.

    Args:
      keep: fraction in (0, 1]; may be traced.
    """

    def defend(key: Key | None, update: Update) -> Update:
        del key

        def sparse(leaf: Array) -> Array:
            return jnp.where(among_largest(jnp.abs(leaf).ravel(), keep).reshape(leaf.shape), leaf, 0)

        return jax.tree.map(sparse, update)

    return defend


def random_k(keep: Scalar) -> Defense:
    """Keeps every entry with probability `keep` and divides it by `keep`: unbiased (Wangni et al. 2018, uniform).

    Args:
      keep: probability in (0, 1]; may be traced.
    """

    def defend(key: Key | None, update: Update) -> Update:
        def sparse(leaf: Array, uniform: Array) -> Array:
            return jnp.where(uniform < keep, leaf / keep, 0)

        return with_draws(sparse, jax.random.uniform, key, update, name="random_k")

    return defend


def percentile_privacy(percentile: Scalar, bound: Scalar) -> Defense:
    """Sends zero for small entries of a tensor and clips large ones (Shokri and Shmatikov 2015).

    Despite its name it is not differentially private: it is deterministic.

    Args:
      percentile: 0 ... 100, of a tensor's absolute values; entries below it are sent as zero; 10 in the literature.
        May be traced.
      bound: entries are clipped to [-bound, bound], in units of the update; 0.01 in the literature. May be traced.
    """

    def defend(key: Key | None, update: Update) -> Update:
        del key
        return jax.tree.map(partial(_within_percentiles, percentile=percentile, bound=bound), update)

    return defend


def _within_percentiles(leaf: Array, *, percentile: Scalar, bound: Scalar) -> Array:
    size = jnp.abs(leaf)
    return jnp.where(size < ranking.percentile(size, percentile), 0, jnp.clip(leaf, -bound, bound)).astype(leaf.dtype)
