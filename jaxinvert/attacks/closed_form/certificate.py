"""Certificates: a reconstruction is certified if the client, re-simulated on it, sends the observed update.

A perceptron has far more parameters than a batch has pixels, so another batch does not cause the same update by
chance. The check uses only what the server knows. Labels are found as the classes whose gradients at the layer's
outputs have the direction of the observed gradients.
"""

import enum
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxinvert.trees import leaves_by_path, of_what_was_sent, tree_norm
from jaxinvert.types import Array, Batch, ClientUpdateFn, LossFn, Params, Update


class Status(enum.IntEnum):
    """What is known of a reconstruction; all but the first leave it uncertified."""

    CERTIFIED = 0
    NOT_FINITE = 1
    ZERO = 2
    LOW_RANK = 3
    HIGH_RANK = 4
    INCOMPLETE = 5
    DIFFERENT = 6
    UNDETERMINED = 7
    SPAN_FULL = 8
    AMBIGUOUS = 9
    NOISY = 10


WORDS = {
    Status.CERTIFIED: "certified: the re-simulated update equals the observed one",
    Status.NOT_FINITE: "not certified: the update holds values that are not finite",
    Status.ZERO: "not certified: the layer's update is zero",
    Status.LOW_RANK: "not certified: the layer's update has a lower rank than the batch has examples",
    Status.HIGH_RANK: "not certified: the layer's update has a higher rank than the batch has examples",
    Status.INCOMPLETE: "not certified: not every example was recovered separately",
    Status.DIFFERENT: "not certified: the re-simulated update differs from the observed one",
    Status.UNDETERMINED: "not certified: the update's equations have a lower rank than there are unknowns",
    Status.SPAN_FULL: "not certified: the layer's update spans the whole space, so the span check accepts everything",
    Status.AMBIGUOUS: "not certified: more candidates lie in the span of the layer's update than it has dimensions",
    Status.NOISY: "not certified: the layer's update holds noise, which no re-simulation reproduces",
}
"""Each status in words, for reports."""


_NEARLY = 0.05
_REMOVABLE = (Status.INCOMPLETE, Status.AMBIGUOUS, Status.NOISY)
"""Doubts that are removed if the re-simulated update equals the observed one."""


class Certificate(NamedTuple):
    """Result of a re-simulation.

    Attributes:
      certified: `[]` bool.
      status: `[]` int32, a `Status`.
      relative_error: `[]` distance of simulated and observed update over the length of the observed one; infinite
        where there is none.
    """

    certified: Array
    status: Array
    relative_error: Array


def labels_by_layer(
    loss_fn: LossFn, params: Params, inputs: Array, output_gradients: Array, *, layer: str, num_classes: int
) -> Array:
    """Finds each example's label from its gradient at a layer's outputs, known up to a positive scale.

    Args:
      loss_fn: the client's loss.
      params: the model's parameters.
      inputs: `[B, H, W, C]`.
      output_gradients: `[B, units]`.
      layer: path of the layer.
      num_classes: `K`.

    Returns:
      `[B]` int32.
    """

    def similarity(example: Array, output_gradient: Array, label: Array) -> Array:
        gradient = jax.grad(loss_fn)(params, Batch(example[None], label[None]))
        simulated = leaves_by_path(gradient)[f"{layer}/bias"]  # a sum over one example
        length = jnp.linalg.norm(simulated) * jnp.linalg.norm(output_gradient)
        return jnp.dot(simulated, output_gradient) / jnp.maximum(length, jnp.finfo(length.dtype).tiny)

    def label(example: tuple[Array, Array]) -> Array:
        classes = jnp.arange(num_classes, dtype=jnp.int32)
        similarities = jax.vmap(similarity, (None, None, 0))(*example, classes)
        return lax.argmax(similarities.astype(jnp.float32), 0, jnp.int32)

    return lax.map(label, (inputs, output_gradients))


def first_doubt(doubts: Mapping[Status, Array]) -> Array:
    """The first status whose condition `[]` holds, `CERTIFIED` if none does: `[]` int32."""
    status = jnp.int32(Status.CERTIFIED)
    for doubt, holds in reversed(list(doubts.items())):
        status = jnp.where(holds, jnp.int32(doubt), status)
    return status


def certify(
    client_update: ClientUpdateFn, params: Params, update: Update, batch: Batch, *, tolerance: float, doubt: Array
) -> Certificate:
    """Simulates the client on a reconstruction and compares the updates.

    Args:
      client_update: the attacker's simulation of the client.
      params: the parameters that the client received.
      update: the observed update.
      batch: the reconstruction.
      tolerance: relative error up to which two updates are equal.
      doubt: `[]` int32, the `Status` that is known without a simulation. An equal update overrules `INCOMPLETE`,
        `AMBIGUOUS` and `NOISY`, the others stand.
    """
    simulated = of_what_was_sent(client_update(params, batch), update)
    length = tree_norm(update)
    error = tree_norm(jax.tree.map(jnp.subtract, simulated, update)) / jnp.where(length > 0, length, 1.0)
    error = jnp.where(jnp.isfinite(error) & (length > 0), error, jnp.inf)
    simulation = jnp.where(error <= tolerance, jnp.int32(Status.CERTIFIED), jnp.int32(Status.DIFFERENT))
    removable = jnp.any(doubt == jnp.array(_REMOVABLE))
    stands = (doubt != Status.CERTIFIED) & (~removable | (error > tolerance))
    status = jnp.where(stands, doubt, simulation).astype(jnp.int32)
    return Certificate(status == Status.CERTIFIED, status, error)


def certify_within(
    client_update: ClientUpdateFn,
    params: Params,
    update: Update,
    batch: Batch,
    nudges: Array,
    *,
    tolerance: float,
    doubt: Array,
) -> Certificate:
    """`certify`, also for inputs that differ from the reconstruction by rounding errors: the best certificate.

    A unit whose ReLU is at its threshold up to rounding may be on for the client and off in the simulation, which
    changes the update by more than the tolerance. Inputs next to the reconstruction turn such units independently.

    Args:
      client_update: the attacker's simulation of the client.
      params: the parameters that the client received.
      update: the observed update.
      batch: the reconstruction, in [0, 1].
      nudges: `[n, B, ...]` changes of the inputs, tried if the reconstruction's own update is nearly equal.
      tolerance: see `certify`.
      doubt: see `certify`.
    """
    first = certify(client_update, params, update, batch, tolerance=tolerance, doubt=doubt)

    def nearby() -> Certificate:
        def one(nudge: Array) -> Certificate:
            nudged = batch._replace(inputs=jnp.clip(batch.inputs + nudge, 0.0, 1.0))
            return certify(client_update, params, update, nudged, tolerance=tolerance, doubt=doubt)

        tried = lax.map(one, nudges)
        best = lax.argmin(tried.relative_error.astype(jnp.float32), 0, jnp.int32)
        return jax.tree.map(lambda leaf: leaf[best], tried)

    nearly = ~first.certified & (first.relative_error < _NEARLY)
    return lax.cond(nearly, nearby, lambda: first)
