"""Training losses for clients, built from any `apply`: cross-entropies and the squared error; losses with draws."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxinvert.types import ApplyFn, Array, Batch, Key, LossFn, Params

LossOf = Callable[[ApplyFn], LossFn]
"""A loss as a function of the network, such as `cross_entropy`: the same for logits with and without draws."""
DrawnLossFn = Callable[[Params, Batch, Key], Array]
"""`(params, batch, key) -> []`, the loss of a network that draws random numbers in training."""
DrawnLossOf = Callable[[LossOf], DrawnLossFn]
"""From any loss of logits to the same loss of logits with draws."""


def drawn_by(apply: Callable[[Params, Array, Key], Array], *, name: str) -> DrawnLossOf:
    """Returns the function from any loss of logits to the same loss of logits with draws, see `Model.drawn_loss_of`.

    Args:
      apply: `(params, inputs [B, ...], key) -> logits [B, K]`, with draws.
      name: of the network.

    Returns:
      `loss_of -> (params, batch, key) -> []`. Raises ValueError when traced with a loss that does not call the
      `apply` it is given, such as one that is a function of parameters and batch alone.
    """

    def drawn_loss_of(loss_of: LossOf) -> DrawnLossFn:
        def drawn_loss(params: Params, batch: Batch, key: Key) -> Array:
            calls = []

            def drawn_apply(params: Params, inputs: Array) -> Array:
                calls.append(None)
                return apply(params, inputs, key)

            loss = loss_of(drawn_apply)(params, batch)
            if not calls:
                raise ValueError(
                    f"the loss of model {name} is a function of parameters and batch, so the network in it cannot be "
                    "made to draw: choose dropout='eval', or declare the loss as a function of the network, "
                    "model._replace(loss_fn=None, loss_of=lambda apply: lambda params, batch: ...)"
                )
            return loss

        return drawn_loss

    return drawn_loss_of


def with_tree(loss_of: LossOf, tree: Params, theirs: Callable[[Params], Params]) -> LossOf:
    """The loss of a network at `tree`, as a loss of the network inside of it, whose parameters are `theirs(tree)`."""
    return lambda apply: lambda _, batch: loss_of(lambda t, x: apply(theirs(t), x))(tree, batch)


def drawn_with_tree(drawn_loss_of: DrawnLossOf | None, theirs: Callable[[Params], Params]) -> DrawnLossOf | None:
    """`drawn_loss_of` for a network whose parameters are another tree, of which `theirs` makes the network's own."""
    if drawn_loss_of is None:
        return None
    inner = drawn_loss_of
    return lambda loss_of: lambda tree, batch, key: inner(with_tree(loss_of, tree, theirs))(theirs(tree), batch, key)


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
