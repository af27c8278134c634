r"""Surrogate model extension: many local steps matched by one gradient at a model between those sent and returned.

    minimize over x in [0, 1]^n and a in [0, 1]:   1 - cos(g(x; w_0 - a dW), dW)  +  tv * TV(x)

`dW = w_0 - w_T` is the client's update, and `g(x; w)` the mean gradient of all its examples at the parameters `w`.
On a short path from `w_0` to `w_T`, gradients sum to a vector along dW; at some point near the segment between both,
one gradient has that direction. No local training is simulated: a step costs as much as against a single gradient,
for any number of local steps, and neither the learning rate nor the order of the examples need be known.

Junyi Zhu, Ruicong Yao, Matthew B. Blaschko: "Surrogate Model Extension (SME): A Fast and Accurate Weight Update
Attack on Federated Learning", ICML 2023, arXiv:2306.00127.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, cast

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
    Params,
    Reconstruction,
    Scalar,
)


class SurrogateBatch(NamedTuple):
    """A candidate: `inputs [B, H, W, C]`, soft `labels [B, K]` or `None` for known ones, and variables of a point."""

    inputs: Array
    labels: Array | None
    place: Any


class Surrogates(NamedTuple):
    """The models at which a gradient may be matched to the update, for `match_at_a_surrogate`.

    Attributes:
      start: `observation -> place`, the variables of a point, a tuple.
      at: `(observation, place) -> params`.
      penalty: `place -> []`, added to the distance.
      project: `place -> place`, onto the admissible ones.
      rates: learning rates of Adam, a prefix of `place`.
      report: `place -> info` of the reconstruction.
    """

    start: Callable[[Observation], tuple]
    at: Callable[[Observation, tuple], Params]
    penalty: Callable[[tuple], Scalar]
    project: Callable[[tuple], tuple]
    rates: tuple[Scalar, ...]
    report: Callable[[tuple], dict[str, ArrayTree]]


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
    segment = Surrogates(
        start=lambda observation: (jnp.asarray(start_position, jnp.float32),),
        at=lambda observation, place: moved(observation.params, observation.update, place[0]),
        penalty=lambda place: 0.0,
        project=lambda place: (jnp.clip(place[0], 0.0, 1.0),),
        rates=(position_rate,),
        report=lambda place: {"position": place[0]},
    )
    return match_at_a_surrogate(
        problem, segment, tv=tv, learning_rate=learning_rate, horizon=horizon, name="surrogate_model"
    )


def match_at_a_surrogate(
    problem: Problem, surrogates: Surrogates, *, tv: Scalar, learning_rate: Scalar, horizon: Scalar, name: str
) -> Attack:
    """Searches for images and a model at which their gradient has the direction of the update."""
    pixels = problem.pixels()
    images = problem.with_soft_labels(pixels) if problem.joint_labels else pixels
    gradient = fedsgd(problem.model.loss, chunk_size=problem.gradient_chunk)

    def start(key: Key, observation: Observation) -> tuple[ArrayTree, tuple]:
        return images.init(key), surrogates.start(observation)

    def decode(variables: tuple[ArrayTree, tuple]) -> SurrogateBatch:
        decoded, place = images.decode(variables[0]), variables[1]
        inputs, labels = decoded if problem.joint_labels else (decoded, None)
        return SurrogateBatch(inputs, labels, place)

    def project(variables: Any) -> tuple[ArrayTree, tuple]:
        return images.project(variables[0]), surrogates.project(variables[1])

    def used_labels(soft: Array | None, observation: Observation) -> Array:
        return require(observation, "labels", attack=name) if soft is None else soft

    def distance(observation: Observation, batch: SurrogateBatch) -> Array:
        params = surrogates.at(observation, batch.place)
        found = gradient(params, Batch(batch.inputs, used_labels(batch.labels, observation)))
        matched = objectives.cosine(of_what_was_sent(found, observation.update), observation.update)
        return matched + surrogates.penalty(batch.place)

    names = tuple(str(number) for number in range(len(surrogates.rates)))
    rates = {each: optax.adam(rate) for each, rate in zip(names, surrogates.rates)}
    attack = search_inputs(
        distance,
        regularizer=regularizers.weighted((tv, lambda x: regularizers.total_variation(x / problem.std_image))),
        optimizer=optax.partition(
            {"images": signed_adam(step_decay(learning_rate, horizon)), **rates}, ("images", names)
        ),
        parametrization=Parametrization(images.init, decode, project),
        start=start,
        name=name,
    )

    def reported(state: AttackState, observation: Observation) -> Reconstruction:
        found = attack.decode(state, observation)
        info = surrogates.report(cast(tuple, found.info["place"]))
        return found._replace(labels=used_labels(found.labels, observation), info=info)

    return attack._replace(decode=reported)
