"""The unrolled local training of a client: steps of its optimizer on mini-batches, measured before each step."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import optax
from jax import lax

from jaxinvert.clients.gradients import mean_gradient, no_update
from jaxinvert.models.roles import trained_leaves
from jaxinvert.trees import moved
from jaxinvert.types import Array, ArrayTree, Batch, Key, Params, Update

AnyLossFn = Callable[..., Array]
"""A `LossFn`, or `(params, batch, key) -> []` for a loss that draws random numbers, such as those of dropout."""
AnyClientUpdateFn = Callable[..., Update]
"""A `ClientUpdateFn`, or `(params, batch, key) -> update` for a client that draws random numbers."""


def only_trained(optimizer: optax.GradientTransformation, frozen: Sequence[str] = ()) -> optax.GradientTransformation:
    """Excludes from the optimizer what is not trained: running statistics, buffers, integers, frozen layers.

    Their gradients are zero, but weight decay would still shrink them, and Adam's square root would make derivatives
    NaN. See `models.roles`.

    Args:
      optimizer: any.
      frozen: paths of leaves or layers that are not trained, `Model.frozen`.
    """

    def labels(params: Params) -> ArrayTree:
        return jax.tree.map(lambda trained: "trained" if trained else "kept", trained_leaves(params, frozen))

    return optax.partition({"trained": optimizer, "kept": optax.set_to_zero()}, labels)


_Carry = tuple[Update, ArrayTree]
"""The pseudo-gradient so far, and the state of the client's optimizer."""


def local_training(
    loss_fn: AnyLossFn,
    measure: Callable[..., ArrayTree],
    optimizer: optax.GradientTransformation,
    batch_size: int | None,
    num_epochs: int,
    order_key: Key | None,
    dropout_key: Key | None = None,
    *,
    chunk_size: int | None = None,
    frozen: Sequence[str] = (),
) -> Callable[[Params, Batch], tuple[Update, ArrayTree]]:
    """`(params, batch) -> (update, measured [S, ...])`: the unrolled training, with `measure` before each step."""
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    if num_epochs < 1:
        raise ValueError(f"num_epochs must be at least 1, got {num_epochs}")
    optimizer = only_trained(optimizer, frozen)

    def train(params: Params, batch: Batch) -> tuple[Update, ArrayTree]:
        num_examples = batch.inputs.shape[0]
        size = min(num_examples, num_examples if batch_size is None else batch_size)
        order, num_steps = _example_order(num_examples, num_epochs, order_key), num_epochs * -(-num_examples // size)

        def step(carry: _Carry, step_input: tuple[Batch, tuple[Key, ...]]) -> tuple[_Carry, ArrayTree]:
            (update, state), (minibatch, key_of_loss) = carry, step_input
            local_params = moved(params, update)
            gradient = mean_gradient(lambda p, b: loss_fn(p, b, *key_of_loss), chunk_size=chunk_size)
            grad = gradient(local_params, minibatch)
            change, state = optimizer.update(grad, state, local_params)
            update = moved(update, change)
            return (update, state), measure(local_params, minibatch, *key_of_loss)

        if num_steps > 1:
            # Store only each step's parameters for the reverse pass and recompute its activations there.
            step = jax.checkpoint(step, prevent_cse=False)
        keys = () if dropout_key is None else (jax.random.split(dropout_key, num_steps),)
        start = (jax.tree.map(no_update, params), optimizer.init(params))
        if num_examples % size == 0:
            minibatches = jax.tree.map(lambda leaf: jnp.asarray(leaf)[order.reshape(-1, size)], batch)
            (update, _), measured = lax.scan(step, start, (minibatches, keys))
            return update, measured
        passes = jax.tree.map(lambda leaf: jnp.asarray(leaf)[order], batch)
        keys = jax.tree.map(lambda k: k.reshape(num_epochs, -1, *k.shape[1:]), keys)
        (update, _), measured = lax.scan(_uneven_pass(step, size), start, (passes, keys))
        return update, jax.tree.map(lambda leaf: leaf.reshape(num_steps, *leaf.shape[2:]), measured)

    return train


def _uneven_pass(step: Callable, size: int) -> Callable:
    """One pass over the examples: all whole mini-batches of `size`, then the smaller one that is left."""

    def one_pass(carry: _Carry, inputs: tuple[Batch, tuple[Key, ...]]) -> tuple[_Carry, ArrayTree]:
        examples, keys = inputs
        whole = len(examples.inputs) // size * size

        def cut(leaf: Array) -> Array:
            return leaf[:whole].reshape(-1, size, *leaf.shape[1:])

        carry, measured = lax.scan(step, carry, (jax.tree.map(cut, examples), jax.tree.map(lambda k: k[:-1], keys)))
        left = jax.tree.map(lambda leaf: leaf[whole:], examples)
        carry, last = step(carry, (left, jax.tree.map(lambda k: k[-1], keys)))
        return carry, jax.tree.map(lambda many, one: jnp.concatenate([many, one[None]]), measured, last)

    return one_pass


def _example_order(num_examples: int, num_epochs: int, order_key: Key | None) -> Array:
    """Indices `[num_epochs, num_examples]` of the examples in training order."""
    if order_key is None:
        return jnp.tile(jnp.arange(num_examples), (num_epochs, 1))
    epoch_keys = jax.random.split(order_key, num_epochs)
    return jax.vmap(lambda key: jax.random.permutation(key, num_examples))(epoch_keys)
