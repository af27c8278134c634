"""What an attacker who knows of a defense and its numbers does otherwise than a naive one.

A `Counter` says which client it simulates, and by which distance it compares updates; `COUNTERS` has one for every
defense of `registry` to which somebody has written down how to adapt.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple

from jaxinvert import objectives
from jaxinvert.clients import dp_fedsgd
from jaxinvert.defenses.clipping import clipped
from jaxinvert.defenses.noise import dp_noise_scale, percentile_noise_spread
from jaxinvert.defenses.quantization import qsgd_step
from jaxinvert.models import Model, training_loss
from jaxinvert.types import Batch, ClientUpdateFn, Objective, Params, Scalar, Update

Numbers = Mapping[str, Scalar]
"""Strengths by name."""


class Setting(NamedTuple):
    """What a defense is built for.

    Attributes:
      model: the client's network.
      num_examples: `B`, behind one update.
      gradient_chunk: examples whose gradient is computed at once.
    """

    model: Model
    num_examples: int
    gradient_chunk: int | None = None


def same_client(setting: Setting, numbers: Numbers, client_update: ClientUpdateFn) -> ClientUpdateFn:
    """Changes nothing."""
    del setting, numbers
    return client_update


def _same_objective(setting: Setting, numbers: Numbers, objective: Objective) -> Objective:
    del setting, numbers
    return objective


class Counter(NamedTuple):
    """How an attacker adapts.

    Attributes:
      summary: for people.
      simulate: `(setting, numbers, client_update) -> client_update`, the client that it simulates.
      distance: `(setting, numbers) -> objective`, instead of the attack's own; if `None`, that one serves.
      restrict: `(setting, numbers, objective) -> objective`, to what the defense has left.
    """

    summary: str
    simulate: Callable[[Setting, Numbers, ClientUpdateFn], ClientUpdateFn] = same_client
    distance: Callable[[Setting, Numbers], Objective] | None = None
    restrict: Callable[[Setting, Numbers, Objective], Objective] = _same_objective


def per_example_clipping(setting: Setting, numbers: Numbers, client_update: ClientUpdateFn) -> ClientUpdateFn:
    """A client of one gradient that clips those of single examples to the number `norm`."""
    del client_update  # the gradient of the mean, which cannot be clipped any more
    loss_fn = training_loss(setting.model)
    return dp_fedsgd(loss_fn, clip_norm=numbers["norm"], chunk_size=setting.gradient_chunk)


def dp_scale(setting: Setting, numbers: Numbers) -> Scalar:
    """Standard deviation of the noise of DP-SGD on the mean gradient."""
    return dp_noise_scale(numbers["multiplier"], numbers["norm"], setting.num_examples)


def _likelihood(
    make: Callable[..., Objective], spread: Callable[..., Scalar]
) -> Callable[[Setting, Numbers], Objective]:
    """For noise of known law: `spread(observed tensor, **numbers)`."""
    return lambda setting, numbers: objectives.relative(make(partial(spread, **numbers)))


def _constant(observed: object, scale: Scalar) -> Scalar:
    del observed
    return scale


def _sent_only(setting: Setting, numbers: Numbers, objective: Objective) -> Objective:
    del setting, numbers
    return objectives.transmitted(objective)


def _largest_sent(setting: Setting, numbers: Numbers, objective: Objective, *, of_tensors: bool) -> Objective:
    del setting, numbers
    return objectives.largest_sent(objective, of_tensors=of_tensors)


def _sent_and_censored(setting: Setting, numbers: Numbers, objective: Objective) -> Objective:
    del setting
    return objectives.transmitted(objectives.censored(objective, numbers["bound"]))


def _without_head_kernel(setting: Setting, numbers: Numbers, objective: Objective) -> Objective:
    del numbers
    return objectives.layer_subset(objective, lambda path: path != f"{setting.model.head}/kernel")


def _clipped_client(setting: Setting, numbers: Numbers, client_update: ClientUpdateFn) -> ClientUpdateFn:
    del setting
    clip = clipped(**numbers)

    def simulated(params: Params, batch: Batch) -> Update:
        return clip(None, client_update(params, batch))

    return simulated


def _dp_likelihood(setting: Setting, numbers: Numbers) -> Objective:
    scale = dp_scale(setting, numbers)
    return objectives.relative(objectives.gaussian_likelihood(lambda observed: scale))


_LARGEST = "matches the entries that were sent, and takes the others for no larger"
COUNTERS: dict[str, Counter] = {
    "clip": Counter("clips what it simulates, too", simulate=_clipped_client),
    "dp-sgd": Counter(
        "clips every example it simulates, likelihood of the noise",
        simulate=per_example_clipping,
        distance=_dp_likelihood,
    ),
    "gaussian": Counter("likelihood of the noise", distance=_likelihood(objectives.gaussian_likelihood, _constant)),
    "laplace": Counter("likelihood of the noise", distance=_likelihood(objectives.laplace_likelihood, _constant)),
    "percentile-noise": Counter(
        "likelihood of the noise, its scale in each tensor estimated",
        distance=_likelihood(objectives.gaussian_likelihood, percentile_noise_spread),
    ),
    "percentile-privacy": Counter(
        "matches only the entries that were sent, clipped ones as lower bounds", restrict=_sent_and_censored
    ),
    "qsgd": Counter(
        "likelihood of the rounding, its levels read off each tensor",
        distance=_likelihood(objectives.rounding_likelihood, lambda observed, levels: qsgd_step(observed)),
    ),
    "random-k": Counter("matches only the entries that were sent", restrict=_sent_only),
    "sign": Counter(
        "hinge on the signs, every tensor in units of its mean",
        distance=lambda setting, numbers: objectives.sign_margin,
    ),
    "soteria": Counter("leaves the head's kernel out", restrict=_without_head_kernel),
    "top-k": Counter(_LARGEST, restrict=partial(_largest_sent, of_tensors=False)),
    "top-k-per-tensor": Counter(_LARGEST, restrict=partial(_largest_sent, of_tensors=True)),
}
