r"""FedAvg with epochs in unknown order: every local pass is simulated on its own copies of the images.

    minimize over X_1 ... X_E:   1 - cos(dW(X_1 ... X_E), dW*)  +  order * mean_e |s(X_e) - mean_f s(X_f)|^2  +  tv TV

The client passes over the same `B` images `E` times, in an order that the server does not know; mini-batch `k` of one
pass holds other images than that of the next. So pass `e` is simulated on copies of its own, `X_e`. What all copies
share does not depend on the order: symmetric functions `s` of the set, here the mean and the mean square of every
pixel over the images. At the end the copies of every pass are assigned to those of the first, within a label, and
averaged. That the order-invariant functions are these two, and that the assignment is greedy, is our choice; the
paper compares several, features of networks among them.

Dimitar I. Dimitrov, Mislav Balunovic, Nikola Konstantinov, Martin Vechev: "Data Leakage in Federated Averaging",
TMLR 2022, arXiv:2206.12395.
"""

import jax
import jax.numpy as jnp
from jax import lax

from jaxinvert.attacks import objectives
from jaxinvert.attacks.matching import search_inputs, update_distance
from jaxinvert.attacks.problem import Problem, declare
from jaxinvert.attacks.schedules import step_decay
from jaxinvert.attacks.transformations import signed_adam
from jaxinvert.observation.observe import require
from jaxinvert.priors import regularizers
from jaxinvert.trees import moved
from jaxinvert.types import (
    Array,
    Attack,
    AttackState,
    Batch,
    Observation,
    Parametrization,
    Params,
    Reconstruction,
    Scalar,
    Update,
)


@declare("labels")
def fedavg_epochs(
    problem: Problem,
    *,
    order: Scalar = 1e-2,
    tv: Scalar = 1e-2,
    learning_rate: Scalar = 0.1,
    horizon: Scalar = 4800,
) -> Attack:
    """FedAvg epochs: copies of the images for every local pass, tied by what no order changes (Dimitrov et al. 2022).

    Works: on clients of a few passes in mini-batches whose order is not known, with known labels.

    Fails: where `inverting-gradients` does; its variables are as many times more as there are passes.

    Optimizer, prior and normalized space are those of `inverting_gradients`, which it is for a client of one pass.
    Memory and time grow with the passes as in `inverting_gradients`.

    Args:
      problem: `one_epoch` and `num_epochs` tell how the client trains; an optimizer with memory starts anew in every
        simulated pass. `joint_labels` is not supported: labels are in the order of the first pass.
      order: weight of the order-invariant prior, of pixels in [0, 1].
      tv: weight of the total variation.
      learning_rate: of Adam on gradient signs, in units of `std`.
      horizon: number of steps over which the learning rate decays.
    """
    num_epochs = problem.num_epochs if problem.one_epoch is not None else 1
    one_epoch = problem.one_epoch or problem.client_update
    pixels = problem._replace(num_examples=num_epochs * problem.num_examples).pixels()

    def all_epochs(params: Params, batch: Batch) -> Update:
        def epoch(sent: Update, inputs: Array) -> tuple[Update, None]:
            return moved(sent, one_epoch(moved(params, sent), Batch(inputs, batch.labels)), -1.0), None

        copies = batch.inputs.reshape(num_epochs, -1, *batch.inputs.shape[1:])
        first = one_epoch(params, Batch(copies[0], batch.labels))
        return lax.scan(epoch, first, copies[1:])[0]

    def implausible(inputs: Array) -> Array:
        copies = inputs.reshape(num_epochs, -1, *inputs.shape[1:])
        variation = regularizers.total_variation(inputs / problem.std_image)
        return tv * variation + order * order_mismatch(copies)

    attack = search_inputs(
        update_distance(all_epochs, objectives.cosine),
        regularizer=implausible,
        optimizer=signed_adam(step_decay(learning_rate, horizon)),
        parametrization=Parametrization(pixels.init, pixels.decode, pixels.project),
        name="fedavg_epochs",
    )

    def decode(state: AttackState, observation: Observation) -> Reconstruction:
        found = attack.decode(state, observation)
        labels = require(observation, "labels", attack="fedavg_epochs")
        copies = found.inputs.reshape(num_epochs, -1, *found.inputs.shape[1:])
        return found._replace(inputs=mean_of_matched(copies, labels), labels=labels)

    return attack._replace(decode=decode)


def order_mismatch(copies: Array) -> Array:
    """Mean squared deviation of symmetric functions of each pass's images `[E, B, H, W, C]` from their mean: `[]`."""
    symmetric = jnp.stack([jnp.mean(copies, axis=1), jnp.mean(jnp.square(copies), axis=1)])
    return jnp.mean(jnp.square(symmetric - jnp.mean(symmetric, axis=1, keepdims=True)))


def mean_of_matched(copies: Array, labels: Array) -> Array:
    """The mean over passes `[B, H, W, C]` of `copies [E, B, H, W, C]`, assigned to the first pass's within a label.

    Greedy: the closest pair first.
    """
    first = copies[0]
    values = labels.reshape(len(labels), -1)
    same_label = jnp.all(values[:, None] == values[None], axis=-1)
    other_label = jnp.where(same_label, 0.0, jnp.inf)

    def assigned(images: Array) -> Array:
        gaps = jnp.mean(jnp.square(first[:, None] - images[None]), axis=(2, 3, 4)) + other_label

        def pair(carry: tuple[Array, Array], _: None) -> tuple[tuple[Array, Array], None]:
            left, places = carry
            row, column = jnp.unravel_index(jnp.argmin(left), left.shape)
            left = left.at[row].set(jnp.inf).at[:, column].set(jnp.inf)
            return (left, places.at[row].set(column)), None

        (_, places), _ = lax.scan(pair, (gaps, jnp.arange(len(first))), None, length=len(first))
        return images[places]

    return jnp.mean(jax.vmap(assigned)(copies), axis=0)
