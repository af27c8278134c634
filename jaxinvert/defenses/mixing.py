"""MixUp: the client trains on mixtures of its images, and of their labels with the same weights.

    x'_b = sum_j s_bj x_(p_j(b)),    y'_b = sum_j s_bj y_(p_j(b)),    j = 1 ... k,

`p_1` is the identity, the other `p_j` are random permutations of the batch, and the shares of an image are uniform on
the simplex. An inversion recovers mixtures at best. No published attack separates them from one update, and none here
tries; models of early rounds, where attacks are strongest, still leak the mixtures.

References:
  Zhang, Cisse, Dauphin, Lopez-Paz: mixup: beyond empirical risk minimization. ICLR 2018, arXiv:1710.09412.
  Huang, Gupta, Song, Li, Arora: Evaluating gradient inversion attacks and defenses in federated learning. NeurIPS
  2021, arXiv:2112.00059 (as a defense, k = 4; they also bound every share by 0.65).
"""

import jax
import jax.numpy as jnp

from jaxinvert.types import Array, Batch, ClientUpdateFn, Key, Params, Update


def mixup(client_update: ClientUpdateFn, *, key: Key | None, num_classes: int, num_images: int = 4) -> ClientUpdateFn:
    """Returns the client with MixUp: its update is computed on mixtures, drawn once for all local steps.

    Args:
      client_update: the client without MixUp; its loss must take soft labels.
      key: draws the shares and partners.
      num_classes: `K`, for integer labels.
      num_images: `k`, images per mixture; in a smaller batch some count twice.

    Raises:
      ValueError: when traced, without a key.
    """

    def protected(params: Params, batch: Batch) -> Update:
        return client_update(params, mixed(key, batch, num_classes=num_classes, num_images=num_images))

    return protected


def mixed(key: Key | None, batch: Batch, *, num_classes: int, num_images: int = 4) -> Batch:
    """Mixes a batch: `B` mixtures of its `B` images, with soft labels `[B, K]`.

    Args:
      key: draws the shares and partners.
      batch: integer labels `[B]` or soft ones `[B, K]`.
      num_classes: `K`, for integer labels.
      num_images: `k`, at least 1.

    Raises:
      ValueError: without a key.
    """
    if key is None:
        raise ValueError("a random defense needs a key: mixup was handed None")
    size = batch.inputs.shape[0]
    share_key, partner_key = jax.random.split(key)
    drawn = jax.random.exponential(share_key, (size, num_images))
    shares = drawn / jnp.sum(drawn, axis=1, keepdims=True)
    partners = [jax.random.permutation(one, size) for one in jax.random.split(partner_key, num_images)[1:]]
    places = jnp.stack([jnp.arange(size), *partners], axis=1)
    weights = jnp.sum(shares[..., None] * jax.nn.one_hot(places, size), axis=1)  # [B, B]
    labels = batch.labels if batch.labels.ndim > 1 else jax.nn.one_hot(batch.labels, num_classes)

    def blend(examples: Array) -> Array:
        return jnp.tensordot(weights.astype(examples.dtype), examples, axes=1)

    return Batch(blend(batch.inputs), blend(labels))
