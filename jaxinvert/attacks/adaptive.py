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
from jaxinvert.defenses.recipe import ClientFacts, Parameters, dp_scale, per_example_clipping
from jaxinvert.defenses.registry import Chain
from jaxinvert.defenses.weights import row_noise_scales
from jaxinvert.types import Array, Batch, ClientUpdateFn, Objective, Params, Scalar, Update


def _same_client(facts: ClientFacts, parameters: Parameters, client_update: ClientUpdateFn) -> ClientUpdateFn:
    del facts, parameters
    return client_update


def _same_objective(facts: ClientFacts, parameters: Parameters, params: Params, objective: Objective) -> Objective:
    del facts, parameters, params
    return objective


class Counter(NamedTuple):
    """How an attacker adapts.

    Attributes:
      summary: for people.
      simulate: `(facts, parameters, client_update) -> client_update`, the client that it simulates.
      distance: `(facts, parameters, params) -> objective`, instead of the attack's own; if `None`, that one serves.
      restrict: `(facts, parameters, params, objective) -> objective`, to what the defense has left.
    """

    summary: str
    simulate: Callable[[ClientFacts, Parameters, ClientUpdateFn], ClientUpdateFn] = _same_client
    distance: Callable[[ClientFacts, Parameters, Params], Objective] | None = None
    restrict: Callable[[ClientFacts, Parameters, Params, Objective], Objective] = _same_objective


def _likelihood(
    make: Callable[..., Objective], spread: Callable[..., Scalar]
) -> Callable[[ClientFacts, Parameters, Params], Objective]:
    """For noise of known law: `spread(observed tensor, **parameters)`."""
    return lambda facts, parameters, params: likelihoods.relative(make(partial(spread, **parameters)))


def _constant(observed: object, scale: Scalar) -> Scalar:
    del observed
    return scale


def _noise_on_weights(facts: ClientFacts, parameters: Parameters, params: Params) -> Objective:
    """The largest rows are those of the weights before training, which differ by the update alone."""
    del facts
    return likelihoods.relative(likelihoods.whitened_l2(row_noise_scales(params, **parameters)))


def _noise_where_it_tells(facts: ClientFacts, parameters: Parameters, params: Params) -> Objective:
    """Which entries have noise is not known: all count as if they had."""
    del facts
    return likelihoods.relative(likelihoods.whitened_l2(noise_scales(params, parameters["noise"])))


def _sent_only(facts: ClientFacts, parameters: Parameters, params: Params, objective: Objective) -> Objective:
    del facts, parameters, params
    return likelihoods.transmitted(objective)


def _largest_sent(
    facts: ClientFacts, parameters: Parameters, params: Params, objective: Objective, *, of_tensors: bool
) -> Objective:
    del facts, parameters, params
    return likelihoods.largest_sent(objective, of_tensors=of_tensors)


def _sent_and_censored(facts: ClientFacts, parameters: Parameters, params: Params, objective: Objective) -> Objective:
    del facts, params
    return likelihoods.transmitted(likelihoods.censored(objective, parameters["bound"]))


def _weights_not_zeroed(
    facts: ClientFacts, parameters: Parameters, params: Params, objective: Objective
) -> Objective:
    """Weights sent as zero are those whose update is the parameter itself."""
    del facts, parameters

    def restricted(simulated: Update, observed: Update) -> Array:
        sent = jax.tree.map(lambda g_star, start: (g_star != start).astype(g_star.dtype), observed, params)
        return objectives.masked(objective, sent)(simulated, observed)

    return restricted


def _without_head_kernel(
    facts: ClientFacts, parameters: Parameters, params: Params, objective: Objective
) -> Objective:
    del parameters, params
    return objectives.layer_weighted(objective, lambda path: float(path != f"{facts.model.head}/kernel"))


def _without_bottleneck_and_head(
    facts: ClientFacts, parameters: Parameters, params: Params, objective: Objective
) -> Objective:
    del parameters, params
    drawn = (f"{BOTTLENECK}/", f"{facts.model.head}/")
    return objectives.layer_weighted(objective, lambda path: float(not path.startswith(drawn)))


def _clipped_client(facts: ClientFacts, parameters: Parameters, client_update: ClientUpdateFn) -> ClientUpdateFn:
    del facts
    clip = clipped(**parameters)

    def simulated(params: Params, batch: Batch) -> Update:
        return clip(None, client_update(params, batch))

    return simulated


def _clipped_examples(facts: ClientFacts, parameters: Parameters, client_update: ClientUpdateFn) -> ClientUpdateFn:
    del client_update  # the gradient of the mean, which cannot be clipped any more
    return per_example_clipping(facts, parameters)


def _dp_likelihood(facts: ClientFacts, parameters: Parameters, params: Params) -> Objective:
    del params
    scale = dp_scale(facts, parameters)
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
        distance=lambda facts, parameters, params: objectives.sign_margin,
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
    chain: Chain, facts: ClientFacts, parameters: Parameters, client_update: ClientUpdateFn, objective: Objective
) -> tuple[Callable[[Params, Batch], Simulated], Callable[[Simulated, Update], Array]]:
    """What an attacker who knows the defenses simulates and compares by, instead of `client_update` and `objective`.

    The last defense that suggests a distance has its way: noise on noise, or a sign after noise, hides what was
    before. All restrictions hold.

    Raises:
      ValueError: for a defense without counter.
    """
    counters = [(_counter(name), own) for name, (_, own) in zip(chain.names, chain.with_own(parameters))]
    for counter, own in counters:
        client_update = counter.simulate(facts, own, client_update)

    def simulate(params: Params, batch: Batch) -> Simulated:
        return Simulated(client_update(params, batch), params)

    def distance(simulated: Simulated, observed: Update) -> Array:
        adapted = objective
        for counter, own in counters:
            adapted = adapted if counter.distance is None else counter.distance(facts, own, simulated.params)
        for counter, own in counters:
            adapted = counter.restrict(facts, own, simulated.params, adapted)
        return adapted(simulated.update, observed)

    return simulate, distance


def counter_summary(chain: Chain) -> str:
    """How an attacker adapts to a chain, in words.

    Raises:
      ValueError: for a defense without counter.
    """
    return "; ".join(_counter(name).summary for name in chain.names)


def _counter(name: str) -> Counter:
    if name not in COUNTERS:
        raise ValueError(f"no attacker here adapts to defense {name!r}; there are some for {', '.join(COUNTERS)}")
    return COUNTERS[name]
