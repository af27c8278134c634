"""Training losses for clients, built from any `apply`: cross-entropies and the squared error."""

import jax
import jax.numpy as jnp

from jaxinvert.types import ApplyFn, Array, Batch, LossFn, Params


def cross_entropy(apply: ApplyFn) -> LossFn:
    """Mean softmax cross-entropy over the batch: `-1/B sum_b sum_k y_bk log softmax(apply(params, x_b))_k`.

    Args:
      apply: `(params, inputs [B, ...]) -> logits [B, K]`; a `Model.apply` or your own.

    Returns:
      `(params, batch) -> []`, differentiable in `params`, `batch.inputs` and soft `batch.labels`. Labels are `[B]`
      integers in [0, K) or `[B, K]` floats (rows need not sum to one: an attack may optimize them). An integer
      outside [0, K) cannot be detected under `jit` and counts as a row of zeros. Raises ValueError when traced with
      labels of another shape or dtype.
    """

    def loss_fn(params: Params, batch: Batch) -> Array:
        logits = apply(params, batch.inputs)
        targets = _soft_labels(batch.labels, logits)
        return -jnp.mean(jnp.sum(targets * jax.nn.log_softmax(logits), axis=-1))

    return loss_fn


def binary_cross_entropy(apply: ApplyFn) -> LossFn:
    """Mean sigmoid cross-entropy over batch and classes, for examples with several labels.

    `-1/(B K) sum_bk y_bk log sigmoid(z_bk) + (1 - y_bk) log sigmoid(-z_bk)` with logits `z = apply(params, x)`,
    numerically stable for logits of any size.

    Args:
      apply: `(params, inputs [B, ...]) -> logits [B, K]`; a `Model.apply` or your own.

    Returns:
      `(params, batch) -> []`, differentiable in `params`, `batch.inputs` and `batch.labels`. Labels are `[B, K]`
      floats in [0, 1]: 1 if the example has the label, else 0. Raises ValueError when traced with labels of another
      shape or dtype.
    """

    def loss_fn(params: Params, batch: Batch) -> Array:
        logits, labels = apply(params, batch.inputs), jnp.asarray(batch.labels)
        if labels.shape != logits.shape or not jnp.issubdtype(labels.dtype, jnp.floating):
            raise ValueError(
                f"labels must be [B, K] floats to go with logits [B, K] = {logits.shape}, "
                f"got {labels.dtype} {labels.shape}"
            )
        return -jnp.mean(labels * jax.nn.log_sigmoid(logits) + (1 - labels) * jax.nn.log_sigmoid(-logits))

    return loss_fn


def one_logit_cross_entropy(apply: ApplyFn) -> LossFn:
    """Mean sigmoid cross-entropy of one logit, for two classes: `-1/B sum_b y_b log p_b + (1 - y_b) log(1 - p_b)`.

    Args:
      apply: `(params, inputs [B, ...]) -> logits [B, 1]`.

    Returns:
      `(params, batch) -> []`, with `p = sigmoid(logit)`. Labels are `[B]` integers or floats in [0, 1]. Raises
      ValueError when traced with logits or labels of another shape.
    """

    def loss_fn(params: Params, batch: Batch) -> Array:
        logits, labels = apply(params, batch.inputs), jnp.asarray(batch.labels)
        if logits.shape[1:] != (1,) or labels.shape != logits.shape[:1]:
            raise ValueError(f"one logit needs logits [B, 1] and labels [B], got {logits.shape} and {labels.shape}")
        logit, wanted = logits[:, 0], labels.astype(logits.dtype)
        return -jnp.mean(wanted * jax.nn.log_sigmoid(logit) + (1 - wanted) * jax.nn.log_sigmoid(-logit))

    return loss_fn


def squared_error(apply: ApplyFn) -> LossFn:
    """Mean squared error over batch and outputs, for regression: `1/(B K) sum_bk (z_bk - y_bk)^2`.

    Args:
      apply: `(params, inputs [B, ...]) -> outputs [B, K]`.

    Returns:
      `(params, batch) -> []`. Labels are `[B, K]` floats, or `[B]` for one output. Raises ValueError when traced with
      labels of another shape.
    """

    def loss_fn(params: Params, batch: Batch) -> Array:
        outputs, labels = apply(params, batch.inputs), jnp.asarray(batch.labels)
        if labels.shape not in (outputs.shape, outputs.shape[:1] if outputs.shape[1:] == (1,) else ()):
            raise ValueError(f"labels must be [B, K] to go with outputs {outputs.shape}, got {labels.shape}")
        return jnp.mean(jnp.square(outputs - labels.reshape(outputs.shape)))

    return loss_fn


def _soft_labels(labels: Array, logits: Array) -> Array:
    """Labels `[B]` or `[B, K]` as `[B, K]` floats."""
    labels = jnp.asarray(labels)
    if labels.shape == logits.shape and jnp.issubdtype(labels.dtype, jnp.floating):
        return labels
    if labels.shape == logits.shape[:1] and jnp.issubdtype(labels.dtype, jnp.integer):
        return jax.nn.one_hot(labels, logits.shape[-1], dtype=logits.dtype)
    raise ValueError(
        f"labels must be [B] integers or [B, K] floats to go with logits [B, K] = {logits.shape}, "
        f"got {labels.dtype} {labels.shape}"
    )
