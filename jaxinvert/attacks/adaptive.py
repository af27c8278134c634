"""Adaptive attackers: how an attack changes for an attacker who knows the client's defense and its parameters.

A `Counter` defines which client the attacker simulates and by which distance it compares updates. `COUNTERS` holds
the counters by name of the defense; a defense of `registry` may have none.
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
from jaxinvert.trees import of_what_was_sent
from jaxinvert.types import Array, Batch, ClientUpdateFn, Objective, Params, Scalar, Update


def _same_client(facts: ClientFacts, parameters: Parameters, client_update: ClientUpdateFn) -> ClientUpdateFn:
    del facts, parameters
    return client_update


def _same_objective(facts: ClientFacts, parameters: Parameters, params: Params, objective: Objective) -> Objective:
    del facts, parameters, params
    return objective


class Counter(NamedTuple):
    """How an attacker adapts to one defense.

    Attributes:
      summary: one phrase for reports.
      simulate: `(facts, parameters, client_update) -> client_update`, the simulated client.
      distance: `(facts, parameters, params) -> objective`, which replaces the attack's objective; `None` keeps it.
      restrict: `(facts, parameters, params, objective) -> objective`, restricted to what the defense did not remove.
    """

    summary: str
    simulate: Callable[[ClientFacts, Parameters, ClientUpdateFn], ClientUpdateFn] = _same_client
    distance: Callable[[ClientFacts, Parameters, Params], Objective] | None = None
    restrict: Callable[[ClientFacts, Parameters, Params, Objective], Objective] = _same_objective


def _likelihood(
    make: Callable[..., Objective], spread: Callable[..., Scalar]
) -> Callable[[ClientFacts, Parameters, Params], Objective]:
    """The likelihood `make` for noise of scale `spread(observed tensor, **parameters)`."""
    return lambda facts, parameters, params: likelihoods.relative(make(partial(spread, **parameters)))


def _constant(observed: object, scale: Scalar) -> Scalar:
    del observed
    return scale


def _noise_on_weights(facts: ClientFacts, parameters: Parameters, params: Params) -> Objective:
    """Takes the largest rows from the weights before training, which differ from the trained ones by the update."""
    del facts
    return likelihoods.relative(likelihoods.whitened_l2(row_noise_scales(params, **parameters)))


def _noise_where_it_tells(facts: ClientFacts, parameters: Parameters, params: Params) -> Objective:
    """Treats every entry as noisy, because the attacker does not know which entries are."""
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
    """Ignores weights that were zeroed: their update equals the parameter itself."""
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
    drawn = (f"params/{BOTTLENECK}/", f"{facts.model.head}/")
    return objectives.layer_weighted(objective, lambda path: float(not path.startswith(drawn)))


def _clipped_client(facts: ClientFacts, parameters: Parameters, client_update: ClientUpdateFn) -> ClientUpdateFn:
    del facts
    clip = clipped(**parameters)

    def simulated(params: Params, batch: Batch) -> Update:
        return clip(None, client_update(params, batch))

    return simulated


def _clipped_examples(facts: ClientFacts, parameters: Parameters, client_update: ClientUpdateFn) -> ClientUpdateFn:
    del client_update  # it returns the mean gradient, which cannot be clipped per example
    return per_example_clipping(facts, parameters)


def _dp_likelihood(facts: ClientFacts, parameters: Parameters, params: Params) -> Objective:
    del params
    scale = dp_scale(facts, parameters)
    return likelihoods.relative(likelihoods.gaussian_likelihood(lambda observed: scale))


_LARGEST = "matches the sent entries and bounds the others by the smallest sent entry"
COUNTERS: dict[str, Counter] = {
    "clip": Counter("clips the simulated update", simulate=_clipped_client),
    "dp-sgd": Counter(
        "clips the gradient of every simulated example, likelihood of the noise",
        simulate=_clipped_examples,
        distance=_dp_likelihood,
    ),
    "gaussian": Counter("likelihood of the noise", distance=_likelihood(likelihoods.gaussian_likelihood, _constant)),
    "laplace": Counter("likelihood of the noise", distance=_likelihood(likelihoods.laplace_likelihood, _constant)),
    "outpost": Counter(
        "matches only the sent entries, likelihood of the noise where a tensor may have noise",
        distance=_noise_where_it_tells,
        restrict=_sent_only,
    ),
    "percentile-noise": Counter(
        "likelihood of the noise, with its scale estimated per tensor",
        distance=_likelihood(likelihoods.gaussian_likelihood, percentile_noise_spread),
    ),
    "percentile-privacy": Counter(
        "matches only the sent entries, clipped entries as lower bounds", restrict=_sent_and_censored
    ),
    "precode": Counter("ignores the bottleneck and the head", restrict=_without_bottleneck_and_head),
    "qsgd": Counter(
        "likelihood of the rounding, with levels estimated per tensor",
        distance=_likelihood(likelihoods.rounding_likelihood, lambda observed, levels: qsgd_step(observed)),
    ),
    "random-k": Counter("matches only the sent entries", restrict=_sent_only),
    "row-noise": Counter(
        "likelihood of the noise, with the largest rows of the weights before training", distance=_noise_on_weights
    ),
    "sign": Counter(
        "hinge loss on the signs, every tensor in units of its mean absolute value",
        distance=lambda facts, parameters, params: objectives.sign_margin,
    ),
    "smallest-weights-zeroed": Counter("matches only the weights that were not zeroed", restrict=_weights_not_zeroed),
    "soteria": Counter("ignores the head's kernel", restrict=_without_head_kernel),
    "top-k": Counter(_LARGEST, restrict=partial(_largest_sent, of_tensors=False)),
    "top-k-per-tensor": Counter(_LARGEST, restrict=partial(_largest_sent, of_tensors=True)),
}


class Simulated(NamedTuple):
    """A simulated update and the parameters it was computed at, on which the distance may depend."""

    update: Update
    params: Params


def adapt(
    chain: Chain, facts: ClientFacts, parameters: Parameters, client_update: ClientUpdateFn, objective: Objective
) -> tuple[Callable[[Params, Batch], Simulated], Callable[[Simulated, Update], Array]]:
    """The simulation and distance of an attacker who knows the defenses; replaces `client_update` and `objective`.

    If several defenses define a distance, the last one is used, because its noise or rounding hides the earlier ones.
    All restrictions are applied.

    Raises:
      ValueError: for a defense without a counter.
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
        return adapted(of_what_was_sent(simulated.update, observed), observed)

    return simulate, distance


def counter_summary(chain: Chain) -> str:
    """A phrase for reports: how the attacker adapts to a chain of defenses.

    Raises:
      ValueError: for a defense without a counter.
    """
    return "; ".join(_counter(name).summary for name in chain.names)


def _counter(name: str) -> Counter:
    if name not in COUNTERS:
        raise ValueError(f"no adaptive attacker is known for defense {name!r}, only for {', '.join(COUNTERS)}")
    return COUNTERS[name]
