"""What an attacker who knows of a defense and its numbers does otherwise than a naive one.

A `Counter` says which client it simulates, and by which distance it compares updates; `COUNTERS` has one for every
defense of `registry` to which somebody has written down how to adapt.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax

from jaxinvert.attacks import likelihoods, objectives
from jaxinvert.defenses.bottleneck import BOTTLENECK
from jaxinvert.defenses.clipping import clipped
from jaxinvert.defenses.noise import percentile_noise_spread
from jaxinvert.defenses.outpost import noise_scales
from jaxinvert.defenses.quantization import qsgd_step
from jaxinvert.defenses.recipe import Numbers, Setting, dp_scale, per_example_clipping
from jaxinvert.defenses.registry import names_in, recipes_in
from jaxinvert.defenses.weights import row_noise_scales
from jaxinvert.types import Array, Batch, ClientUpdateFn, Objective, Params, Scalar, Update


def _same_client(setting: Setting, numbers: Numbers, client_update: ClientUpdateFn) -> ClientUpdateFn:
    del setting, numbers
    return client_update


def _same_objective(setting: Setting, numbers: Numbers, params: Params, objective: Objective) -> Objective:
    del setting, numbers, params
    return objective


class Counter(NamedTuple):
    """How an attacker adapts.

    Attributes:
      summary: for people.
      simulate: `(setting, numbers, client_update) -> client_update`, the client that it simulates.
      distance: `(setting, numbers, params) -> objective`, instead of the attack's own; if `None`, that one serves.
      restrict: `(setting, numbers, params, objective) -> objective`, to what the defense has left.
    """

    summary: str
    simulate: Callable[[Setting, Numbers, ClientUpdateFn], ClientUpdateFn] = _same_client
    distance: Callable[[Setting, Numbers, Params], Objective] | None = None
    restrict: Callable[[Setting, Numbers, Params, Objective], Objective] = _same_objective


def _likelihood(
    make: Callable[..., Objective], spread: Callable[..., Scalar]
) -> Callable[[Setting, Numbers, Params], Objective]:
    """For noise of known law: `spread(observed tensor, **numbers)`."""
    return lambda setting, numbers, params: likelihoods.relative(make(partial(spread, **numbers)))


def _constant(observed: object, scale: Scalar) -> Scalar:
    del observed
    return scale


def _noise_on_weights(setting: Setting, numbers: Numbers, params: Params) -> Objective:
    """The largest rows are those of the weights before training, which differ by the update alone."""
    del setting
    return likelihoods.relative(likelihoods.whitened_l2(row_noise_scales(params, **numbers)))


def _noise_where_it_tells(setting: Setting, numbers: Numbers, params: Params) -> Objective:
    """Which entries have noise is not known: all count as if they had."""
    del setting
    return likelihoods.relative(likelihoods.whitened_l2(noise_scales(params, numbers["noise"])))


def _sent_only(setting: Setting, numbers: Numbers, params: Params, objective: Objective) -> Objective:
    del setting, numbers, params
    return likelihoods.transmitted(objective)


def _largest_sent(
    setting: Setting, numbers: Numbers, params: Params, objective: Objective, *, of_tensors: bool
) -> Objective:
    del setting, numbers, params
    return likelihoods.largest_sent(objective, of_tensors=of_tensors)


def _sent_and_censored(setting: Setting, numbers: Numbers, params: Params, objective: Objective) -> Objective:
    del setting, params
    return likelihoods.transmitted(likelihoods.censored(objective, numbers["bound"]))


def _weights_not_zeroed(setting: Setting, numbers: Numbers, params: Params, objective: Objective) -> Objective:
    """Weights sent as zero are those whose update is the parameter itself."""
    del setting, numbers

    def restricted(simulated: Update, observed: Update) -> Array:
        sent = jax.tree.map(lambda g_star, start: (g_star != start).astype(g_star.dtype), observed, params)
        return objectives.masked(objective, sent)(simulated, observed)

    return restricted


def _without_head_kernel(setting: Setting, numbers: Numbers, params: Params, objective: Objective) -> Objective:
    del numbers, params
    return objectives.layer_weighted(objective, lambda path: float(path != f"{setting.model.head}/kernel"))


def _without_bottleneck_and_head(
    setting: Setting, numbers: Numbers, params: Params, objective: Objective
) -> Objective:
    del numbers, params
    drawn = (f"{BOTTLENECK}/", f"{setting.model.head}/")
    return objectives.layer_weighted(objective, lambda path: float(not path.startswith(drawn)))


def _clipped_client(setting: Setting, numbers: Numbers, client_update: ClientUpdateFn) -> ClientUpdateFn:
    del setting
    clip = clipped(**numbers)

    def simulated(params: Params, batch: Batch) -> Update:
        return clip(None, client_update(params, batch))

    return simulated


def _clipped_examples(setting: Setting, numbers: Numbers, client_update: ClientUpdateFn) -> ClientUpdateFn:
    del client_update  # the gradient of the mean, which cannot be clipped any more
    return per_example_clipping(setting, numbers)


def _dp_likelihood(setting: Setting, numbers: Numbers, params: Params) -> Objective:
    del params
    scale = dp_scale(setting, numbers)
    return likelihoods.relative(likelihoods.gaussian_likelihood(lambda observed: scale))


_LARGEST = "matches the entries that were sent, and takes the others for no larger"
COUNTERS: dict[str, Counter] = {
    "clip": Counter("clips what it simulates, too", simulate=_clipped_client),
    "dp-sgd": Counter(
        "clips every example it simulates, likelihood of the noise",
        simulate=_clipped_examples,
        distance=_dp_likelihood,
    ),
    "gaussian": Counter("likelihood of the noise", distance=_likelihood(likelihoods.gaussian_likelihood, _constant)),
    "laplace": Counter("likelihood of the noise", distance=_likelihood(likelihoods.laplace_likelihood, _constant)),
    "outpost": Counter(
        "matches only the entries that were sent, by the likelihood of the noise where there may be some",
        distance=_noise_where_it_tells,
        restrict=_sent_only,
    ),
    "percentile-noise": Counter(
        "likelihood of the noise, its scale in each tensor estimated",
        distance=_likelihood(likelihoods.gaussian_likelihood, percentile_noise_spread),
    ),
    "percentile-privacy": Counter(
        "matches only the entries that were sent, clipped ones as lower bounds", restrict=_sent_and_censored
    ),
    "precode": Counter("leaves the bottleneck and the head out", restrict=_without_bottleneck_and_head),
    "qsgd": Counter(
        "likelihood of the rounding, its levels read off each tensor",
        distance=_likelihood(likelihoods.rounding_likelihood, lambda observed, levels: qsgd_step(observed)),
    ),
    "random-k": Counter("matches only the entries that were sent", restrict=_sent_only),
    "row-noise": Counter(
        "likelihood of the noise, the largest rows taken from the weights before training", distance=_noise_on_weights
    ),
    "sign": Counter(
        "hinge on the signs, every tensor in units of its mean",
        distance=lambda setting, numbers, params: objectives.sign_margin,
    ),
    "smallest-weights-zeroed": Counter("matches only the weights that were not zeroed", restrict=_weights_not_zeroed),
    "soteria": Counter("leaves the head's kernel out", restrict=_without_head_kernel),
    "top-k": Counter(_LARGEST, restrict=partial(_largest_sent, of_tensors=False)),
    "top-k-per-tensor": Counter(_LARGEST, restrict=partial(_largest_sent, of_tensors=True)),
}


class Simulated(NamedTuple):
    """A simulated update, and the parameters that it is of, which the distance to an observed one may depend on."""

    update: Update
    params: Params


def adapt(
    defense: str, setting: Setting, numbers: Numbers, client_update: ClientUpdateFn, objective: Objective
) -> tuple[Callable[[Params, Batch], Simulated], Callable[[Simulated, Update], Array]]:
    """What an attacker who knows the defenses simulates and compares by, instead of `client_update` and `objective`.

    The last defense that suggests a distance has its way: noise on noise, or a sign after noise, hides what was
    before. All restrictions hold.

    Raises:
      ValueError: for a defense without counter.
    """
    counters = [(_counter(name), own) for name, (_, own) in zip(names_in(defense), recipes_in(defense, numbers))]
    for counter, own in counters:
        client_update = counter.simulate(setting, own, client_update)

    def simulate(params: Params, batch: Batch) -> Simulated:
        return Simulated(client_update(params, batch), params)

    def distance(simulated: Simulated, observed: Update) -> Array:
        adapted = objective
        for counter, own in counters:
            adapted = adapted if counter.distance is None else counter.distance(setting, own, simulated.params)
        for counter, own in counters:
            adapted = counter.restrict(setting, own, simulated.params, adapted)
        return adapted(simulated.update, observed)

    return simulate, distance


def counter_summary(defense: str) -> str:
    """How an attacker adapts to a chain, in words.

    Raises:
      ValueError: for a defense without counter.
    """
    return "; ".join(_counter(name).summary for name in names_in(defense))


def _counter(name: str) -> Counter:
    if name not in COUNTERS:
        raise ValueError(f"no attacker here adapts to defense {name!r}; there are some for {', '.join(COUNTERS)}")
    return COUNTERS[name]
