"""What an attacker would show without the update: pictures made of prior knowledge alone.

Leakage is what an attack scores above the strongest of these null controls:

| control        | the "reconstruction" of a private image                                               |
|----------------|---------------------------------------------------------------------------------------|
| mean image     | the mean of the other clients' candidates                                             |
| class mean     | the mean of those of the same class, where the attacker knows the labels              |
| prior only     | the same attack, blind to the update: its start and its image prior                   |
| random update  | the same attack on normal noise in place of the update, tensor by tensor of its norm  |
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
    """`[T, B, H, W, C]`: for every client the mean of all candidates but its own."""
    return np.stack(
        [_mean_without(ground, own, np.ones(len(ground.candidates.labels), bool)) for own in ground.private]
    )[:, None].repeat(ground.private.shape[1], axis=1)


def class_mean(ground: Ground) -> np.ndarray:
    """`[T, B, H, W, C]`: for every image the mean of the other candidates of its class; of all, if there is none."""
    return np.stack(
        [
            np.stack([_mean_without(ground, own, ground.candidates.labels == label) for label in labels])
            for own, labels in zip(ground.private, ground.truth.labels)
        ]
    )


def other_client(found: np.ndarray) -> np.ndarray:
    """`[T, B, H, W, C]`: what the attack made of the next client's update, the last client's being the first's."""
    return np.roll(found, -1, axis=0)


def random_update(key: Key, observations: Observation) -> Observation:
    """Observations that hold nothing private: normal noise in place of updates, each tensor of the same norm.

    Running statistics are those that the server sent itself, and labels stay, where they are granted.

    Args:
      key: of the noise.
      observations: of all targets, see `observe_targets`.
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
    """The attacker whose simulated client, and network, does not see the images: what remains is the prior."""

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
        client_update=constant, model=problem.model._replace(apply=no_logits), sent_statistics=sent
    )


@partial(jax.jit, static_argnames="lead")
def _noise(key: Key, tree: ArrayTree, *, lead: int) -> ArrayTree:
    """Normal noise with the norm of every tensor, for every index of its `lead` leading axes."""
    leaves, structure = jax.tree.flatten(tree)
    ends = list(accumulate(leaf.size for leaf in leaves))
    draws = jnp.split(jax.random.normal(key, (ends[-1],)), ends[:-1])  # one draw for all: each takes long to compile

    def of_same_norm(draw: jax.Array, leaf: jax.Array) -> jax.Array:
        rows, wanted = draw.reshape(*leaf.shape[:lead], -1), leaf.reshape(*leaf.shape[:lead], -1)
        scale = jnp.linalg.norm(wanted, axis=-1, keepdims=True) / jnp.linalg.norm(rows, axis=-1, keepdims=True)
        return (rows * scale).reshape(leaf.shape).astype(leaf.dtype)

    return structure.unflatten(map(of_same_norm, draws, leaves))


def _mean_without(ground: Ground, own: np.ndarray, eligible: np.ndarray) -> np.ndarray:
    """`[H, W, C]`: the mean of the eligible candidates but for a client's own; of all others, if there is none."""
    others = np.ones(len(ground.candidates.labels), bool)
    others[own] = False
    chosen = others & eligible
    pool = ground.candidates.inputs[chosen if chosen.any() else others]
    return pool.mean(axis=0) if len(pool) else np.full(ground.candidates.inputs.shape[1:], 0.5, np.float32)
