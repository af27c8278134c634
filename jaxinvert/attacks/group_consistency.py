"""Group consistency: several seeds are optimized jointly, each with a penalty on its distance from their mean.

Gradients determine the position of an object only weakly, so seeds place it differently. Content that the seeds share
after registration (shifting them onto each other) is likely to be real (Yin et al. 2021).
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxinvert.priors.regularizers import zero
from jaxinvert.trees import tree_norm
from jaxinvert.types import (
    Array,
    ArrayTree,
    Attack,
    AttackInfo,
    AttackState,
    Key,
    Observation,
    Reconstruction,
    Regularizer,
    Scalar,
)


class _Group(NamedTuple):
    """State of the group in addition to the seeds' variables and optimizer states.

    Attributes:
      best_losses: `[G]`, the lowest attack loss of each seed.
      count: `[]` steps so far.
      carried: the seeds' `AttackState.carried`, leaves `[G, ...]`.
    """

    best_losses: Array
    count: Array
    carried: ArrayTree


def consistent_group(
    one_seed: Callable[[Regularizer], Attack],
    *,
    num_seeds: int,
    start: Scalar,
    unit: Array | float = 1.0,
    registration: Scalar = 1.0,
) -> Attack:
    """One attack that runs `num_seeds` seeds; from step `start` on, each is penalized by its distance to the group.

    The result is that of the seed with the lowest attack loss. Losses before `start` lack the group term and are not
    comparable with later ones, so each seed's best iterate is reset at `start`.

    Args:
      one_seed: `group_term -> Attack`; the group term is `inputs [B, H, W, C] -> []`.
      num_seeds: number of seeds `G`; static.
      start: first step with the group term; may be traced.
      unit: the unit of distance in pixel values: a scalar, or `[1, 1, 1, C]` such as a model's `std`.
      registration: 0 for the plain mean of the seeds; any other value registers them first.
    """

    def agreed(images: Array) -> Array:
        return jnp.where(registration == 0, jnp.mean(images, axis=0), registered_mean(images))

    def init(key: Key, observation: Observation) -> AttackState:
        attack = one_seed(zero)
        seeds = jax.vmap(lambda seed_key: attack.init(seed_key, observation))(jax.random.split(key, num_seeds))
        return _pack(seeds, jnp.zeros((), jnp.int32))

    def step(key: Key, state: AttackState, observation: Observation) -> tuple[AttackState, AttackInfo]:
        seeds, count = _unpack(state)
        images = jax.vmap(lambda seed: one_seed(zero).decode(seed, observation).inputs)(
            seeds._replace(best_variables=seeds.variables)
        )
        consensus = jax.lax.stop_gradient(agreed(images))
        together = count >= start
        # Losses with the group term are not comparable with earlier ones: reset the best.
        forget = count == jnp.ceil(start).astype(count.dtype)
        seeds = seeds._replace(best_loss=jnp.where(forget, jnp.inf, seeds.best_loss))

        attack = one_seed(lambda inputs: jnp.where(together, tree_norm((inputs - consensus) / unit), 0.0))
        keys = jax.random.split(key, num_seeds)
        seeds, info = jax.vmap(lambda k, seed: attack.step(k, seed, observation))(keys, seeds)
        best = jnp.argmin(jnp.where(jnp.isfinite(info.attack_loss), info.attack_loss, jnp.inf))
        return _pack(seeds, count + 1), jax.tree.map(lambda leaf: leaf[best], info)

    def decode(state: AttackState, observation: Observation) -> Reconstruction:
        seeds, _ = _unpack(state)
        winner = jnp.argmin(seeds.best_loss)
        return one_seed(zero).decode(jax.tree.map(lambda leaf: leaf[winner], seeds), observation)

    return Attack(init, step, decode)


def registered_mean(images: Array) -> Array:
    """Mean over seeds after shifting every image onto the plain mean of all seeds: `[G, B, H, W, C] -> [B, H, W, C]`.

    The shift is the peak of the circular cross-correlation of the two grayscale images, computed by FFT.
    """
    mean = jnp.mean(images, axis=0)
    anchor = jnp.fft.rfft2(_centered_gray(mean))

    def onto_mean(seed: Array) -> Array:
        spectrum = jnp.fft.rfft2(_centered_gray(seed))
        correlation = jnp.fft.irfft2(anchor * jnp.conj(spectrum), s=seed.shape[1:3])
        peak = jnp.argmax(correlation.reshape(seed.shape[0], -1), axis=1)
        rows, columns = jnp.unravel_index(peak, seed.shape[1:3])
        return jax.vmap(lambda image, dy, dx: jnp.roll(image, (dy, dx), axis=(0, 1)))(seed, rows, columns)

    return jnp.mean(jax.vmap(onto_mean)(images), axis=0)


def _centered_gray(images: Array) -> Array:
    gray = jnp.mean(images, axis=-1)
    return gray - jnp.mean(gray, axis=(1, 2), keepdims=True)


def _pack(seeds: AttackState, count: Array) -> AttackState:
    group = _Group(seeds.best_loss, count, seeds.carried)
    return seeds._replace(best_loss=jnp.min(seeds.best_loss), carried=group)


def _unpack(state: AttackState) -> tuple[AttackState, Array]:
    group: _Group = state.carried
    return state._replace(best_loss=group.best_losses, carried=group.carried), group.count
