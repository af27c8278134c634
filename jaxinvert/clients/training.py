"""Clients: functions `(params, batch) -> update`, differentiable in the inputs, for FedSGD, FedAvg and DP-SGD.

A client starts at the server's parameters `w_0`, takes `S` steps of its optimizer on mini-batches, and sends the
pseudo-gradient

    update = w_0 - w_S,    w_(s+1) = w_s + optimizer(grad loss(w_s, mini-batch s)).

One full-batch step of gradient descent with learning rate 1 is FedSGD: the update is the gradient. More steps are
FedAvg, whose update is differentiated through the whole unrolled training. An attacker simulates the client with the
same functions and substitutes its own values for unknown settings (learning rate, batch size, order).

References:
  McMahan, Moore, Ramage, Hampson, Aguera y Arcas: Communication-efficient learning of deep networks from
  decentralized data. AISTATS 2017, arXiv:1602.05629.
  Abadi et al.: Deep learning with differential privacy. CCS 2016, arXiv:1607.00133.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import optax

from jaxinvert.clients.gradients import mean_gradient, per_example_gradients
from jaxinvert.clients.local_training import AnyLossFn, local_training, only_trained
from jaxinvert.trees import tree_norm
from jaxinvert.types import ArrayTree, Batch, ClientUpdateFn, Key, LossFn, Params, Scalar, Update


def fedsgd(
    loss_fn: AnyLossFn,
    *,
    dropout_key: Key | None = None,
    chunk_size: int | None = None,
    change: optax.GradientTransformation | None = None,
) -> ClientUpdateFn:
    """One full-batch gradient: the update is `d loss_fn / d params` (McMahan et al. 2017, FedSGD).

    The pseudo-gradient of one step with learning rate 1 is the gradient itself.

    Args:
      loss_fn: `(params, batch) -> []`, or `(params, batch, key) -> []` with `dropout_key`.
      dropout_key: passed to `loss_fn`; secret unless the attacker's client is built with the same key.
      chunk_size: examples whose gradient is computed at once, to save memory for large batches; see
        `gradients.mean_gradient`. Not allowed with `dropout_key`.
      change: transformation that the client applies to the gradient, from its initial state and given the parameters;
        for `fedavg`, chain it before the optimizer.
    """
    _check_dropout_in_chunks(dropout_key, chunk_size)
    if dropout_key is None:
        gradient = mean_gradient(loss_fn, chunk_size=chunk_size)
    else:
        gradient = mean_gradient(lambda params, batch: loss_fn(params, batch, dropout_key))
    if change is None:
        return gradient
    trained = only_trained(change)

    def changed(params: Params, batch: Batch) -> Update:
        update, _ = trained.update(gradient(params, batch), trained.init(params), params)
        return update

    return changed


def dp_fedsgd(loss_fn: LossFn, *, clip_norm: Scalar, chunk_size: int | None = None) -> ClientUpdateFn:
    """DP-SGD's gradient before the noise: the mean of clipped per-example gradients (Abadi et al. 2016).

    `1/B sum_b g_b min(1, C / |g_b|)`, differentiable in the batch, so that an adaptive attacker can simulate it. The
    noise is a separate defense, `defenses.gaussian_noise(defenses.dp_noise_scale(...))`.

    | case                    | behavior                                          |
    |-------------------------|---------------------------------------------------|
    | `clip_norm = inf`       | the FedSGD update of a loss that is a mean        |
    | a gradient that is zero | stays zero, with finite derivatives in the inputs |
    | memory                  | `B` gradients                                     |

    Args:
      loss_fn: `(params, batch) -> []`; called with every example as a batch of one; must not couple examples.
      clip_norm: `C`, largest Euclidean norm of an example's gradient; positive, may be traced.
      chunk_size: examples whose gradients are computed at once; see `gradients.per_example_gradients`.

    Raises:
      ValueError: when traced, naming the first BatchNorm layer in train mode.
    """
    gradients = per_example_gradients(loss_fn, chunk_size=chunk_size)

    def client_update(params: Params, batch: Batch) -> Update:
        clipped = jax.vmap(clipped_to_norm, in_axes=(0, None))(gradients(params, batch), clip_norm)
        return jax.tree.map(lambda leaf: jnp.mean(leaf, axis=0), clipped)

    return client_update


def clipped_to_norm(update: Update, norm: Scalar) -> Update:
    """Scales the update down to Euclidean norm `norm` over all tensors if it is longer."""
    length = tree_norm(update)
    longer = length > norm
    factor = jnp.where(longer, norm / jnp.where(longer, length, 1.0), 1.0)
    return jax.tree.map(lambda leaf: (leaf * factor).astype(leaf.dtype), update)


def fedavg(
    loss_fn: AnyLossFn,
    *,
    optimizer: optax.GradientTransformation,
    batch_size: int | None = None,
    num_epochs: int = 1,
    order_key: Key | None = None,
    dropout_key: Key | None = None,
    chunk_size: int | None = None,
    frozen: Sequence[str] = (),
) -> ClientUpdateFn:
    """Local training over `num_epochs` passes: the update is `params - local_params` (McMahan et al. 2017, FedAvg).

    A client with `B` examples takes `S = num_epochs * ceil(B / batch_size)` steps. The update is the sum of the
    steps, not the difference of two rounded sets of parameters: one full-batch step of `optax.sgd(r)` gives exactly
    `r` times the FedSGD update, where a subtraction in float32 would lose up to 6e-8 of each *parameter*.

    | case                             | behavior                                                           |
    |----------------------------------|--------------------------------------------------------------------|
    | statistics, buffers, integers    | not trained: hidden from the optimizer; the update is zero there   |
    | `B` no multiple of `batch_size`  | the last mini-batch of every pass is smaller, so its examples weigh more |
    | memory of the reverse pass       | one step's activations; inputs, parameters and state of all steps  |
    | Adam where a gradient is 0       | NaN derivatives in the inputs, unless `optax.adam(..., eps_root=1e-12)` |

    The last row: `d sqrt(v) / dv` is infinite at `v = 0`, and dead ReLUs make gradients exactly 0. The update itself
    is finite, so a real client may train without `eps_root` while its attacker simulates it with `eps_root`.

    The order of the mini-batches is secret unless the attacker is granted it. An attacker that does not know the
    order simulates another one: build the client with its `order_key`, and pass the attack a `fedavg` with a
    different key or none. The key may be traced, so clients under `vmap` can each have their own:
    `jax.vmap(lambda key, batch: fedavg(..., order_key=key)(params, batch))(keys, batches)`.

    Args:
      loss_fn: `(params, batch) -> []`, or `(params, batch, key) -> []` with `dropout_key`.
      optimizer: the client's optimizer, reinitialized every round: SGD, momentum, Adam, weight decay, schedules, or
        chains. It is called as `update(grad, state, params)`; line searches need more arguments and are unsupported.
      batch_size: examples per step; `None` = all of them.
      num_epochs: passes over the client's examples.
      order_key: draws a new order for every pass; `None` = the order of the batch in every pass.
      dropout_key: split into one key per step for `loss_fn`; as secret as the order.
      chunk_size: examples whose gradient is computed at once, to save memory for large mini-batches; see
        `gradients.mean_gradient`.
      frozen: paths of leaves or layers that are not trained, `Model.frozen`.

    Returns:
      `(params, batch) -> update`, differentiable in `batch.inputs` and soft labels. Not jitted.

    Raises:
      ValueError: for a `batch_size` or `num_epochs` below 1.

    >>> loss_fn = lambda params, batch: jnp.mean((batch.inputs @ params - batch.labels) ** 2)
    >>> batch = Batch(inputs=jnp.eye(2), labels=jnp.array([0.0, 1.0]))
    >>> fedavg(loss_fn, optimizer=optax.sgd(0.25), batch_size=1)(jnp.ones(2), batch).tolist()
    [0.5, 0.0]
    """
    _check_dropout_in_chunks(dropout_key, chunk_size)
    train = local_training(
        loss_fn,
        _nothing,
        optimizer,
        batch_size,
        num_epochs,
        order_key,
        dropout_key,
        chunk_size=chunk_size,
        frozen=frozen,
    )

    def client_update(params: Params, batch: Batch) -> Update:
        update, _ = train(params, batch)
        return update

    return client_update


def local_batch_statistics(
    loss_fn: AnyLossFn,
    batch_statistics: Callable[..., ArrayTree],
    *,
    optimizer: optax.GradientTransformation,
    batch_size: int | None = None,
    num_epochs: int = 1,
    order_key: Key | None = None,
    dropout_key: Key | None = None,
    frozen: Sequence[str] = (),
) -> Callable[[Params, Batch], ArrayTree]:
    """BatchNorm's batch statistics at each step of the local training that `fedavg` runs.

    `running_statistics.advance` turns the result into the running statistics that a client sends with its update
    (`Observation.batch_stats`). For FedSGD, use one full-batch step with any optimizer.

    Args:
      loss_fn: `(params, batch) -> []`, of a model in train mode; or `(params, batch, key) -> []` with `dropout_key`.
      batch_statistics: `(params, inputs) -> statistics`, with `dropout_key` also of a key; see `Model`.
      optimizer: see `fedavg`.
      batch_size: examples per step; `None` = all of them.
      num_epochs: passes over the client's examples.
      order_key: draws a new order for every pass; `None` = the order of the batch.
      dropout_key: see `fedavg`; with the same key, loss and statistics have the draws of its training.
      frozen: paths of leaves or layers that are not trained, `Model.frozen`.

    Returns:
      `(params, batch) -> statistics`, the tree of `params["batch_stats"]` with a leading axis `S`. Step `s` is
      measured on its mini-batch with the parameters *before* the step.

    Raises:
      ValueError: see `fedavg`.
    """

    def measure(params: Params, batch: Batch, *key: Key) -> ArrayTree:
        return batch_statistics(params, batch.inputs, *key)

    train = local_training(loss_fn, measure, optimizer, batch_size, num_epochs, order_key, dropout_key, frozen=frozen)

    def statistics(params: Params, batch: Batch) -> ArrayTree:
        _, measured = train(params, batch)
        return measured

    return statistics


def _check_dropout_in_chunks(dropout_key: Key | None, chunk_size: int | None) -> None:
    if dropout_key is not None and chunk_size is not None:
        raise ValueError(
            f"chunk_size is {chunk_size}, but dropout draws for a whole batch; all chunks would get the same draws"
        )


def _nothing(params: Params, batch: Batch, *key: Key) -> ArrayTree:
    """Measures nothing."""
    del params, batch, key
    return ()
