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

from jaxinvert.trees import leaves_by_path, tree_norm
from jaxinvert.types import Array, Batch, ClientUpdateFn, LossFn, Params, Update


class Verdict(enum.IntEnum):
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


WORDS = {
    Verdict.CERTIFIED: "certified: the re-simulated update equals the observed one",
    Verdict.NOT_FINITE: "not certified: the update holds values that are not finite",
    Verdict.ZERO: "not certified: the layer's update is zero",
    Verdict.LOW_RANK: "not certified: the layer's update has a lower rank than the batch has examples",
    Verdict.HIGH_RANK: "not certified: the layer's update has a higher rank than the batch has examples",
    Verdict.INCOMPLETE: "not certified: not every example was told apart",
    Verdict.DIFFERENT: "not certified: the re-simulated update differs from the observed one",
    Verdict.UNDETERMINED: "not certified: the update's equations have a lower rank than there are unknowns",
    Verdict.SPAN_FULL: "not certified: everything lies in the span of the layer's update, which tells nothing apart",
    Verdict.AMBIGUOUS: "not certified: more candidates lie in the span of the layer's update than it has dimensions",
}
"""Verdicts for people."""


_DOUBTS = (Verdict.INCOMPLETE, Verdict.AMBIGUOUS)
"""What an equal update removes."""


class Certificate(NamedTuple):
    """Result of a re-simulation.

    Attributes:
      certified: `[]` bool.
      verdict: `[]` int32, a `Verdict`.
      relative_error: `[]` distance of simulated and observed update over the length of the observed one; infinite
        where there is none.
    """

    certified: Array
    verdict: Array
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


def first_problem(problems: Mapping[Verdict, Array]) -> Array:
    """The first verdict whose condition `[]` holds, `CERTIFIED` if none does: `[]` int32."""
    verdict = jnp.int32(Verdict.CERTIFIED)
    for problem, holds in reversed(list(problems.items())):
        verdict = jnp.where(holds, jnp.int32(problem), verdict)
    return verdict


def certify(
    client_update: ClientUpdateFn, params: Params, update: Update, batch: Batch, *, tolerance: float, problem: Array
) -> Certificate:
    """Simulates the client on a reconstruction and compares the updates.

    Args:
      client_update: the attacker's simulation of the client.
      params: the parameters that the client received.
      update: the observed update.
      batch: the reconstruction.
      tolerance: relative error up to which two updates are equal.
      problem: `[]` int32, the `Verdict` on what is known without a simulation. An equal update overrules
        `INCOMPLETE` and `AMBIGUOUS`, the others stand.
    """
    simulated = client_update(params, batch)
    length = tree_norm(update)
    error = tree_norm(jax.tree.map(jnp.subtract, simulated, update)) / jnp.where(length > 0, length, 1.0)
    error = jnp.where(jnp.isfinite(error) & (length > 0), error, jnp.inf)
    simulation = jnp.where(error <= tolerance, jnp.int32(Verdict.CERTIFIED), jnp.int32(Verdict.DIFFERENT))
    doubt = jnp.any(problem == jnp.array(_DOUBTS))
    stands = (problem != Verdict.CERTIFIED) & (~doubt | (error > tolerance))
    verdict = jnp.where(stands, problem, simulation).astype(jnp.int32)
    return Certificate(verdict == Verdict.CERTIFIED, verdict, error)
