"""Gradients of a client's loss: of the mean loss over the batch, or per example."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen
from jax import lax

from jaxinvert.models.batch_norm import refuse_train_mode
from jaxinvert.trees import is_float
from jaxinvert.types import Array, ArrayTree, Batch, ClientUpdateFn, LossFn, Params


def mean_gradient(loss_fn: LossFn, *, chunk_size: int | None = None) -> ClientUpdateFn:
    """Returns `(params, batch) -> d loss_fn / d params`, the tree of `params`; float zeros for integer leaves.

    With a `chunk_size`, the memory of the gradient and of its derivatives in the batch does not grow with the batch:
    chunks are computed sequentially and recomputed in the reverse pass, which stores only their examples.

    Args:
      loss_fn: `(params, batch) -> []`. With a `chunk_size` it must be a mean over examples and must not couple them.
        Flax's BatchNorm in train mode couples them and is rejected (unless a `jit` inside `loss_fn` traced it
        before); other losses are not checked.
      chunk_size: examples whose gradient is computed at once; `None` for all of them.

    Raises:
      ValueError: for a `chunk_size` below 1; when traced, naming the first BatchNorm layer in train mode.
    """
    grad = _gradient_of_floats(loss_fn)
    if chunk_size is None:
        return grad
    if chunk_size < 1:
        raise ValueError(f"chunk_size must be at least 1, got {chunk_size}")

    def gradient(params: Params, batch: Batch) -> ArrayTree:
        num_examples = batch.inputs.shape[0]
        size = min(chunk_size, num_examples)
        whole = num_examples - num_examples % size

        def add(total: ArrayTree, chunk: Batch) -> tuple[ArrayTree, None]:
            share = chunk.inputs.shape[0] / num_examples
            return jax.tree.map(lambda t, g: t + share * g, total, grad(params, chunk)), None

        add = jax.checkpoint(add, prevent_cse=False)
        chunks = jax.tree.map(lambda leaf: leaf[:whole].reshape(-1, size, *leaf.shape[1:]), batch)
        with linen.intercept_methods(refuse_train_mode):
            total, _ = lax.scan(add, jax.tree.map(no_update, params), chunks)
            if whole < num_examples:
                total, _ = add(total, jax.tree.map(lambda leaf: leaf[whole:], batch))
        return total

    return gradient


def per_example_gradients(loss_fn: LossFn, *, chunk_size: int | None = None) -> Callable[[Params, Batch], ArrayTree]:
    """Returns `(params, batch) -> gradients [B, ...]`, one gradient per example.

    `loss_fn` is called with every example as a batch of one, so it must not couple examples. Flax's BatchNorm in
    train mode couples them and is rejected (unless a `jit` inside `loss_fn` traced it before); other losses are not
    checked.

    Args:
      loss_fn: `(params, batch) -> []`.
      chunk_size: examples whose gradients are computed at once; `None` for all of them. Limits the memory of
        the backward pass, not of the result.

    Raises:
      ValueError: when traced, naming the first BatchNorm layer in train mode.

    >>> import jax.numpy as jnp
    >>> loss_fn = lambda params, batch: jnp.mean((batch.inputs @ params - batch.labels) ** 2)
    >>> batch = Batch(inputs=jnp.eye(2), labels=jnp.array([0.0, 1.0]))
    >>> per_example_gradients(loss_fn)(jnp.ones(2), batch).tolist()
    [[2.0, 0.0], [0.0, 0.0]]
    """
    grad = _gradient_of_floats(loss_fn)

    def gradients(params: Params, batch: Batch) -> ArrayTree:
        def one(example: Batch) -> ArrayTree:
            return grad(params, jax.tree.map(lambda leaf: leaf[None], example))

        with linen.intercept_methods(refuse_train_mode):
            if chunk_size is None:
                return jax.vmap(one)(batch)
            return lax.map(one, batch, batch_size=chunk_size)

    return gradients


def no_update(leaf: Array) -> Array:
    """The update of a leaf that is not trained: zeros, also for integers floats."""
    return jnp.zeros(leaf.shape, leaf.dtype if is_float(leaf) else jnp.float32)


def _gradient_of_floats(loss_fn: LossFn) -> ClientUpdateFn:
    """`jax.grad(loss_fn)` for parameters that may hold integers, such as counters and index tables."""

    def gradient(params: Params, batch: Batch) -> ArrayTree:
        leaves, structure = jax.tree.flatten(params)
        if all(map(is_float, leaves)):
            return jax.grad(loss_fn)(params, batch)

        def of_floats(floats: list[Array]) -> Array:
            given = iter(floats)
            filled = [next(given) if is_float(leaf) else leaf for leaf in leaves]
            return loss_fn(structure.unflatten(filled), batch)

        grads = iter(jax.grad(of_floats)([leaf for leaf in leaves if is_float(leaf)]))
        return structure.unflatten([next(grads) if is_float(leaf) else no_update(leaf) for leaf in leaves])

    return gradient
