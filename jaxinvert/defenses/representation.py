"""Soteria: zeros rows of the head's gradient, those of the features that reveal most about the input.

The gradient of the head, `dL/dW = h^T (p - y)`, reveals the features `h` that are its input. The client sends zeros
for the rows whose features have the largest

    |h_m| / |dh_m / dx|,

features that change little, relative to their size, when the input changes. All other layers are unchanged.

References:
  Sun, Li, Wang, Yang, Li, Chen: Soteria: provable defense against privacy leakage in federated learning from
  representation perspective. CVPR 2021, arXiv:2012.06043.
"""

import math

import jax
import jax.numpy as jnp
from jax import lax

from jaxinvert.models.feature_map import features
from jaxinvert.trees import path_name
from jaxinvert.types import ApplyFn, Array, Batch, ClientUpdateFn, Params, Scalar, Update

_PIXELS_AT_ONCE = 16


def soteria(client_update: ClientUpdateFn, apply: ApplyFn, *, head: str, share: Scalar) -> ClientUpdateFn:
    """Returns the client with Soteria: zeros in the gradient of the head for a fraction of its input features.

    Features are ranked by the sum of their scores over the batch, as in the authors' program. Costs one forward-mode
    derivative per input pixel and channel.

    Args:
      client_update: the client without Soteria.
      apply: the network; it must not couple examples.
      head: path of the dense layer after the defended representation; see `Model.head`.
      share: fraction of the features, in [0, 1]; the authors prune 80 %. May be traced.

    Returns:
      `(params, batch) -> update`; the choice of features is not differentiated.

    Raises:
      ValueError: when traced, if the parameters have no such layer.
    """
    kernel_name = f"{head}/kernel"

    def protected(params: Params, batch: Batch) -> Update:
        scores = lax.stop_gradient(jnp.sum(_scores(apply, kernel_name, params, batch.inputs), axis=0))
        rank = jnp.argsort(jnp.argsort(scores, descending=True))
        kept = rank >= jnp.round(share * scores.size)
        update = client_update(params, batch)
        return _with(update, kernel_name, lambda kernel: kernel * kept[:, None].astype(kernel.dtype))

    return protected


def _scores(apply: ApplyFn, kernel_name: str, params: Params, inputs: Array) -> Array:
    """`|h_m| / |dh_m / dx|`, `[B, M]`; 0 for features that do not depend on the input, such as dead ReLUs."""
    shape = inputs.shape[1:]
    num_pixels = math.prod(shape)

    def read(images: Array) -> Array:
        return features(apply, kernel_name, params, images)

    def along(pixel: Array) -> Array:
        direction = jax.nn.one_hot(pixel, num_pixels, dtype=inputs.dtype).reshape(1, *shape)
        return jax.jvp(read, (inputs,), (jnp.broadcast_to(direction, inputs.shape),))[1]

    def add(total: Array, pixels: Array) -> tuple[Array, None]:
        return total + jnp.sum(jnp.square(jax.vmap(along)(pixels)), axis=0), None

    values = read(inputs)
    num_chunks = -(-num_pixels // _PIXELS_AT_ONCE)  # the one-hot of an index beyond the last pixel is zero
    pixels = jnp.arange(num_chunks * _PIXELS_AT_ONCE).reshape(num_chunks, _PIXELS_AT_ONCE)
    squared, _ = lax.scan(add, jnp.zeros_like(values), pixels)
    return jnp.where(squared > 0, jnp.abs(values) / jnp.sqrt(jnp.where(squared > 0, squared, 1)), 0)


def _with(tree: Params, name: str, change) -> Params:
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: change(leaf) if path_name(path) == name else leaf, tree
    )
