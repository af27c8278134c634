r"""Surrogate model extension: many local steps matched by one gradient at a model between those sent and returned.

    minimize over x in [0, 1]^n and a in [0, 1]:   1 - cos(g(x; w_0 - a dW), dW)  +  tv * TV(x)

`dW = w_0 - w_T` is the client's update, and `g(x; w)` the mean gradient of all its examples at the parameters `w`.
On a short path from `w_0` to `w_T`, gradients sum to a vector along dW; at some point near the segment between both,
one gradient has that direction. No local training is simulated: a step costs as much as against a single gradient,
for any number of local steps, and neither the learning rate nor the order of the examples need be known.

Junyi Zhu, Ruicong Yao, Matthew B. Blaschko: "Surrogate Model Extension (SME): A Fast and Accurate Weight Update
Attack on Federated Learning", ICML 2023, arXiv:2306.00127.
"""

from typing import NamedTuple

import jax.numpy as jnp
import optax

from jaxinvert.attacks import objectives
from jaxinvert.attacks.matching import search_inputs
from jaxinvert.attacks.problem import Problem, declare
from jaxinvert.attacks.schedules import step_decay
from jaxinvert.attacks.transformations import signed_adam
from jaxinvert.clients import fedsgd
from jaxinvert.observation.observe import require
from jaxinvert.priors import regularizers
from jaxinvert.trees import moved, of_what_was_sent
from jaxinvert.types import (
    Array,
    ArrayTree,
    Attack,
    AttackState,
    Batch,
    Key,
    Observation,
    Parametrization,
    Reconstruction,
    Scalar,
)


class SurrogateBatch(NamedTuple):
    """A candidate: `inputs [B, H, W, C]`, soft `labels [B, K]` or `None` for known ones, and the position a, `[]`."""

    inputs: Array
    labels: Array | None
    position: Array


@declare("labels", joint_labels=True, simulates=False, reports=("position",))
def surrogate_model(
    problem: Problem,
    *,
    tv: Scalar = 1e-2,
    learning_rate: Scalar = 0.1,
    position_rate: Scalar = 1e-3,
    start_position: Scalar = 0.5,
    horizon: Scalar = 4800,
) -> Attack:
    """Surrogate model: matches many local steps by one gradient between both models (SME, Zhu et al. 2023).

    Optimizer, prior and normalized space are those of `inverting_gradients`; Adam moves the position a, which
    `info["position"]` tells.

    Works: after many local steps of plain SGD on the same examples, where simulating them is slow or impossible.
    Neither the learning rate nor the order of the examples need be known.

    Fails: where the path of the parameters bends far off the segment: large rates, momentum, Adam. Where rate and
    order are known, simulating the steps finds far more detail, in more time.

    Args:
      problem: any batch size; `joint_labels` optimizes soft labels. Its `client_update` is not used.
      tv: weight of the total variation.
      learning_rate: of Adam on gradient signs, for the images, in units of `std`.
      position_rate: learning rate of Adam for a.
      start_position: initial a, 0 (the model sent) ... 1 (the model returned); the paper starts at the middle.
      horizon: number of steps over which the learning rate of the images decays.
    """
    pixels = problem.pixels()
    images = problem.with_soft_labels(pixels) if problem.joint_labels else pixels
    gradient = fedsgd(problem.model.loss, chunk_size=problem.gradient_chunk)

    def init(key: Key) -> tuple[ArrayTree, Array]:
        return images.init(key), jnp.asarray(start_position, jnp.float32)

    def decode(variables: tuple[ArrayTree, Array]) -> SurrogateBatch:
        decoded, position = images.decode(variables[0]), variables[1]
        inputs, labels = decoded if problem.joint_labels else (decoded, None)
        return SurrogateBatch(inputs, labels, position)

    def project(variables: tuple[ArrayTree, Array]) -> tuple[ArrayTree, Array]:
        return images.project(variables[0]), jnp.clip(variables[1], 0.0, 1.0)

    def used_labels(soft: Array | None, observation: Observation) -> Array:
        return require(observation, "labels", attack="surrogate_model") if soft is None else soft

    def distance(observation: Observation, batch: SurrogateBatch) -> Array:
        params = require(observation, "params", attack="surrogate_model")
        between = moved(params, observation.update, batch.position)
        found = gradient(between, Batch(batch.inputs, used_labels(batch.labels, observation)))
        return objectives.cosine(of_what_was_sent(found, observation.update), observation.update)

    of_images = signed_adam(step_decay(learning_rate, horizon))
    attack = search_inputs(
        distance,
        regularizer=regularizers.weighted((tv, lambda x: regularizers.total_variation(x / problem.std_image))),
        optimizer=optax.partition(
            {"images": of_images, "position": optax.adam(position_rate)}, ("images", "position")
        ),
        parametrization=Parametrization(init, decode, project),
        name="surrogate_model",
    )

    def with_labels(state: AttackState, observation: Observation) -> Reconstruction:
        found = attack.decode(state, observation)
        return found._replace(labels=used_labels(found.labels, observation))

    return attack._replace(decode=with_labels)
