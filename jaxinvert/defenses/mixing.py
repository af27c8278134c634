"""MixUp: the client trains on mixtures of its images, and of their labels in the same shares.

    x'_b = sum_j s_bj x_(p_j(b)),    y'_b = sum_j s_bj y_(p_j(b)),    j = 1 ... k,

`p_1` is the identity, the other `p_j` are random permutations of the batch, and the shares of an image are uniform on
the simplex. Whoever inverts the update finds mixtures at best. Nobody is known to undo them from one update, and no
attacker here tries; models of early rounds, where attacks are strongest, leak the mixtures all the same.

References:
  Zhang, Cisse, Dauphin, Lopez-Paz: mixup: beyond empirical risk minimization. ICLR 2018, arXiv:1710.09412.
  Huang, Gupta, Song, Li, Arora: Evaluating gradient inversion attacks and defenses in federated learning. NeurIPS
  2021, arXiv:2112.00059 (as a defense, k = 4; they also bound every share by 0.65).
"""

import jax
import jax.numpy as jnp

from jaxinvert.types import Array, Batch, ClientUpdateFn, Key, Params, Update


def mixup(client_update: ClientUpdateFn, *, key: Key | None, num_classes: int, num_images: int = 4) -> ClientUpdateFn:
    """The client with MixUp: it computes its update on mixtures, drawn once for all of its local steps.

    Args:
      client_update: the client without it; its loss must take soft labels.
      key: of the shares and partners.
      num_classes: `K`, of integer labels.
      num_images: `k`, in each mixture; where a batch has fewer, some count twice.

    Raises:
      ValueError: when traced, without a key.
    """

    def protected(params: Params, batch: Batch) -> Update:
        return client_update(params, mixed(key, batch, num_classes=num_classes, num_images=num_images))

    return protected


def mixed(key: Key | None, batch: Batch, *, num_classes: int, num_images: int = 4) -> Batch:
    """The mixtures of a batch, as many as it has images, with soft labels `[B, K]`.

    Args:
      key: of the shares and partners.
      batch: integer labels `[B]` or soft ones `[B, K]`.
      num_classes: `K`, of integer labels.
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
