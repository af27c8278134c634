"""Null controls of an audit: reconstructions that do not use the client's update.

An attack leaks as far as its scores exceed those of the strongest control:

| control        | the "reconstruction" of a private image                                               |
|----------------|---------------------------------------------------------------------------------------|
| mean image     | the mean of the other clients' candidates                                             |
| class mean     | the mean of those of the same class, if the attacker is granted the labels            |
| prior only     | the same attack without access to the update: its start and its image prior           |
| random update  | the same attack on normal noise with the norm of each tensor of the update            |
| other client   | the same attack on the next client's update                                           |
"""

from collections.abc import Callable
from functools import partial
from itertools import accumulate

import jax
import jax.numpy as jnp
import numpy as np

from jaxinvert.attacks.problem import Problem
from jaxinvert.audit.scoring import Ground
from jaxinvert.types import Array, ArrayTree, Batch, Key, Observation, Params


def mean_image(ground: Ground) -> np.ndarray:
    """`[T, B, H, W, C]`: for every client, the mean of all candidates except its own."""
    return np.stack(
        [_mean_without(ground, own, np.ones(len(ground.candidates.labels), bool)) for own in ground.private]
    )[:, None].repeat(ground.private.shape[1], axis=1)


def class_mean(ground: Ground) -> np.ndarray:
    """`[T, B, H, W, C]`: for every image, the mean of other clients' candidates of its class, or of all if none."""
    return np.stack(
        [
            np.stack([_mean_without(ground, own, ground.candidates.labels == label) for label in labels])
            for own, labels in zip(ground.private, ground.truth.labels)
        ]
    )


def other_client(found: np.ndarray) -> np.ndarray:
    """`[T, B, H, W, C]`: reconstructions from the next client's update; the last client gets the first's."""
    return np.roll(found, -1, axis=0)


def random_update(key: Key, observations: Observation) -> Observation:
    """Observations without private information: each tensor of an update is normal noise of the same norm.

    Running statistics are replaced by those that the server sent. Labels are kept where they are granted.

    Args:
      key: PRNG key of the noise.
      observations: observations of all targets, see `observe_targets`.
    """
    own_key, earlier_key = jax.random.split(key)

    replaced = observations._replace(update=_noise(own_key, observations.update, lead=1))
    if observations.earlier_updates is not None:
        replaced = replaced._replace(earlier_updates=_noise(earlier_key, observations.earlier_updates, lead=2))
    if observations.batch_stats is not None and observations.params is not None:
        sent = observations.params["batch_stats"]
        replaced = replaced._replace(
            batch_stats=jax.tree.map(
                lambda mine, theirs: jnp.broadcast_to(mine, theirs.shape), sent, replaced.batch_stats
            )
        )
    return replaced


def blind(problem: Problem) -> Problem:
    """The problem with a client update and logits that ignore the images, so that only the image prior remains."""

    def constant(params: Params, batch: Batch) -> ArrayTree:
        del batch
        return jax.tree.map(jnp.ones_like, params)

    def no_logits(params: Params, inputs: Array) -> Array:
        del params
        return jnp.zeros((len(inputs), problem.model.num_classes))

    sent: Callable[[Params, Batch], ArrayTree] | None = None
    if problem.sent_statistics is not None:
        sent = lambda params, batch: jax.tree.map(jnp.ones_like, params["batch_stats"])  # noqa: E731
    return problem._replace(
        client_update=constant, one_epoch=None, model=problem.model._replace(apply=no_logits), sent_statistics=sent
    )


@partial(jax.jit, static_argnames="lead")
def _noise(key: Key, tree: ArrayTree, *, lead: int) -> ArrayTree:
    """Normal noise with the norm of each tensor, separately for every index of the `lead` leading axes."""
    leaves, structure = jax.tree.flatten(tree)
    ends = list(accumulate(leaf.size for leaf in leaves))
    draws = jnp.split(jax.random.normal(key, (ends[-1],)), ends[:-1])  # a single draw, as each one is slow to compile

    def of_same_norm(draw: jax.Array, leaf: jax.Array) -> jax.Array:
        rows, wanted = draw.reshape(*leaf.shape[:lead], -1), leaf.reshape(*leaf.shape[:lead], -1)
        scale = jnp.linalg.norm(wanted, axis=-1, keepdims=True) / jnp.linalg.norm(rows, axis=-1, keepdims=True)
        return (rows * scale).reshape(leaf.shape).astype(leaf.dtype)

    return structure.unflatten(map(of_same_norm, draws, leaves))


def _mean_without(ground: Ground, own: np.ndarray, eligible: np.ndarray) -> np.ndarray:
    """`[H, W, C]`: the mean of eligible candidates except the client's own, or of all others if none is eligible."""
    others = np.ones(len(ground.candidates.labels), bool)
    others[own] = False
    chosen = others & eligible
    pool = ground.candidates.inputs[chosen if chosen.any() else others]
    return pool.mean(axis=0) if len(pool) else np.full(ground.candidates.inputs.shape[1:], 0.5, np.float32)
