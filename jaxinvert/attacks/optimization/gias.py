"""GIAS, gradient inversion with a generator: search its latents first, then, image by image, its weights.

    GI-z:   minimize over z             log D(G_w(z)) + prior mean z^2 + tv TV(G_w(z)),   D = 1 - cos(g(x), g*)
    GI-w:   minimize over w_1 ... w_B   log D(G_w1(z_1) ... G_wB(z_B)) + tv TV(...)

The first stage looks for the images that the generator finds likely, the second lets every image have a generator of
its own where these do not explain the update. `gias` is the paper's composition, two runs one after the other;
`latents_then_weights` does the same in one, for searches that are watched, resumed and swept. GI-w alone is the deep
image prior if the generator is untrained. Clients with BatchNorm in train mode send running statistics: where the
attacker sees them, `D` has a second term for them, as in `attacks.spectral`.

The paper has the cosine distance itself, the norm of z, starts at `N(0, 1)` and lowers the rate in steps. Here its
logarithm lets the prior have the same say from the start, where the distance is large, to the end
(`likelihoods.of_unknown_scale`); latents start near zero, which is what the generator expects, and rates fall along a
cosine. Each pays (`experiments.gias`). The paper matches features to the running statistics of the network; here it
is the batch statistics behind those that came back, of the batch that is sought.

Jinwoo Jeon, Jaechang Kim, Kangwook Lee, Sewoong Oh, Jungseul Ok: "Gradient Inversion with Generative Image Prior",
NeurIPS 2021, arXiv:2110.14962.
"""

from collections.abc import Callable

import jax
import optax

from jaxinvert.attacks import likelihoods, objectives
from jaxinvert.attacks.matching import observation_distance, search_inputs
from jaxinvert.attacks.schedules import cosine_decay
from jaxinvert.attacks.transformations import scale_by_rates
from jaxinvert.models import BATCH_NORM_MOMENTUM
from jaxinvert.priors import parametrizations, regularizers
from jaxinvert.priors.generators import Latents, Prior, check_fits
from jaxinvert.priors.parametrizations import LatentsAndWeights
from jaxinvert.search import best_of, run
from jaxinvert.types import (
    Array,
    ArrayTree,
    Attack,
    AttackState,
    Batch,
    ClientUpdateFn,
    Key,
    Objective,
    Observation,
    Params,
    PerChannel,
    Reconstruction,
    Regularizer,
    Scalar,
    Shape,
    SolveFn,
)

SentStatistics = Callable[[Params, Batch], ArrayTree]
"""The running statistics that a client sends beside its update."""


def latent_search(
    client_update: ClientUpdateFn,
    prior: Prior,
    *,
    batch_shape: Shape,
    std: PerChannel = 1.0,
    tv: Scalar = 0.0,
    prior_weight: Scalar = 4.0,
    learning_rate: Scalar = 0.1,
    spread: Scalar = 0.1,
    horizon: Scalar = 600,
    objective: Objective = objectives.cosine,
    sent_statistics: SentStatistics | None = None,
    momentum: Scalar = BATCH_NORM_MOMENTUM,
    batch_norm: Scalar = 1.0,
) -> Attack:
    """GI-z: the generator stays as it is. The reconstruction's `info["latents"]` are the best iterate.

    Args:
      client_update: the attacker's simulation of the client.
      prior: generator and parameters.
      batch_shape: `(B, H, W, C)`.
      std: scalar or `[C]`, of the model's normalization: total variation is per unit of it.
      tv: weight of the total variation.
      prior_weight: of `mean z^2`, beside the logarithm of the distance.
      learning_rate: of Adam.
      spread: standard deviation of the coarsest latents at the start; the paper's is 1.
      horizon: the number of steps that the decay is laid out for.
      objective: distance of the updates, not negative.
      sent_statistics: the running statistics that the simulated client sends, `(params, batch) -> statistics`; they
        are matched where `observation.batch_stats` has those that came back.
      momentum: of the running statistics, the share of the old value (Flax's convention).
      batch_norm: weight of the statistics.

    Raises:
      ValueError: if the generator's images do not fit the batch.
    """
    check_fits(prior.generator, batch_shape[1:])
    attack = search_inputs(
        _log_distance(client_update, objective, sent_statistics, momentum, batch_norm, "latent_search"),
        regularizer=_total_variation(tv, std, batch_shape),
        optimizer=optax.adam(cosine_decay(learning_rate, horizon)),
        parametrization=parametrizations.latents(
            prior, batch_size=batch_shape[0], prior_weight=prior_weight, spread=spread
        ),
        name="latent_search",
    )

    def decode(state: AttackState, observation: Observation) -> Reconstruction:
        found = attack.decode(state, observation)
        return found._replace(info={**found.info, "latents": state.best_variables})

    return attack._replace(decode=decode)


def weight_search(
    client_update: ClientUpdateFn,
    prior: Prior,
    *,
    batch_shape: Shape,
    start: Latents | None = None,
    std: PerChannel = 1.0,
    tv: Scalar = 0.0,
    prior_weight: Scalar = 4.0,
    learning_rate: Scalar = 1e-3,
    horizon: Scalar = 600,
    objective: Objective = objectives.cosine,
    sent_statistics: SentStatistics | None = None,
    momentum: Scalar = BATCH_NORM_MOMENTUM,
    batch_norm: Scalar = 1.0,
) -> Attack:
    """GI-w: latents stay, every image has weights of its own; they begin as those of `prior`.

    Args:
      client_update: the attacker's simulation of the client.
      prior: generator and parameters.
      batch_shape: `(B, H, W, C)`.
      start: the latents, of `B` images; by default drawn as in the paper.
      std: scalar or `[C]`.
      tv: weight of the total variation.
      prior_weight: of `mean z^2`, constant here, so that losses compare with those of `latent_search`.
      learning_rate: of Adam.
      horizon: the number of steps that the cosine decay is laid out for.
      objective: distance of the updates; like what follows it as in `latent_search`.
      sent_statistics: what the simulated client sends.
      momentum: of the running statistics.
      batch_norm: weight of the statistics.

    Raises:
      ValueError: if the generator's images do not fit the batch.
    """
    check_fits(prior.generator, batch_shape[1:])
    rates = LatentsAndWeights(latents=_still, weights=cosine_decay(learning_rate, horizon))
    return search_inputs(
        _log_distance(client_update, objective, sent_statistics, momentum, batch_norm, "weight_search"),
        regularizer=_total_variation(tv, std, batch_shape),
        optimizer=optax.chain(optax.scale_by_adam(), scale_by_rates(rates)),
        parametrization=parametrizations.generator_weights(
            prior, batch_size=batch_shape[0], prior_weight=prior_weight, start=start
        ),
        name="weight_search",
    )


def gias(
    client_update: ClientUpdateFn,
    prior: Prior,
    *,
    batch_shape: Shape,
    num_latent_steps: int,
    num_weight_steps: int,
    num_restarts: int = 1,
    std: PerChannel = 1.0,
    tv: Scalar = 0.0,
    prior_weight: Scalar = 4.0,
    latent_rate: Scalar = 0.1,
    weight_rate: Scalar = 1e-3,
    objective: Objective = objectives.cosine,
    sent_statistics: SentStatistics | None = None,
    momentum: Scalar = BATCH_NORM_MOMENTUM,
    batch_norm: Scalar = 1.0,
) -> SolveFn:
    """The paper's composition: the best of several latent searches, then one weight search from there.

    Args:
      client_update: the attacker's simulation of the client.
      prior: generator and parameters.
      batch_shape: `(B, H, W, C)`.
      num_latent_steps: static; of each latent search. The paper takes 1,000.
      num_weight_steps: static; the paper takes 8,000.
      num_restarts: of the latent search, compared by attack loss; the paper takes 4.
      std: as in `latent_search`, and so are the others.
      tv: weight of the total variation.
      prior_weight: of `mean z^2`.
      latent_rate: of Adam in the first stage.
      weight_rate: of Adam in the second.
      objective: distance of the updates.
      sent_statistics: what the simulated client sends.
      momentum: of the running statistics.
      batch_norm: weight of the statistics.
    """
    common = {"batch_shape": batch_shape, "std": std, "tv": tv, "prior_weight": prior_weight, "objective": objective}
    common |= {"sent_statistics": sent_statistics, "momentum": momentum, "batch_norm": batch_norm}
    first = latent_search(client_update, prior, learning_rate=latent_rate, horizon=num_latent_steps, **common)
    first_run = best_of(run(first, num_steps=num_latent_steps), num_restarts=num_restarts)

    def solve(key: Key, observation: Observation) -> Reconstruction:
        first_key, second_key = jax.random.split(key)
        found = first_run(first_key, observation)
        second = weight_search(
            client_update,
            prior,
            start=found.info["latents"],  # type: ignore[arg-type]
            learning_rate=weight_rate,
            horizon=num_weight_steps,
            **common,
        )
        return run(second, num_steps=num_weight_steps)(second_key, observation)

    return solve


def latents_then_weights(
    client_update: ClientUpdateFn,
    prior: Prior,
    *,
    batch_shape: Shape,
    std: PerChannel = 1.0,
    tv: Scalar = 0.0,
    prior_weight: Scalar = 4.0,
    latent_rate: Scalar = 0.1,
    weight_rate: Scalar = 1e-3,
    latent_share: Scalar = 0.75,
    spread: Scalar = 0.1,
    horizon: Scalar = 600,
    objective: Objective = objectives.cosine,
    sent_statistics: SentStatistics | None = None,
    momentum: Scalar = BATCH_NORM_MOMENTUM,
    batch_norm: Scalar = 1.0,
) -> Attack:
    """Both stages as one iterative attack: latents move for a share of the steps, then weights do.

    Every step computes both gradients, of which one is used: a step of the first stage costs as much as one of the
    second.

    Args:
      client_update: the attacker's simulation of the client.
      prior: generator and parameters.
      batch_shape: `(B, H, W, C)`.
      std: as in `latent_search`, and so are those that are not named below.
      tv: weight of the total variation.
      prior_weight: of `mean z^2`.
      latent_rate: of Adam in the first stage.
      weight_rate: of Adam in the second.
      latent_share: of the steps, for the first stage; may be traced, as all of these.
      spread: standard deviation of the coarsest latents at the start.
      horizon: the number of steps of both stages.
      objective: distance of the updates.
      sent_statistics: what the simulated client sends.
      momentum: of the running statistics.
      batch_norm: weight of the statistics.

    Raises:
      ValueError: if the generator's images do not fit the batch.
    """
    check_fits(prior.generator, batch_shape[1:])
    switch = latent_share * horizon
    rates = LatentsAndWeights(
        latents=cosine_decay(latent_rate, switch),
        weights=cosine_decay(weight_rate, horizon, begin=switch),
    )
    return search_inputs(
        _log_distance(client_update, objective, sent_statistics, momentum, batch_norm, "gias"),
        regularizer=_total_variation(tv, std, batch_shape),
        optimizer=optax.chain(optax.scale_by_adam(), scale_by_rates(rates)),
        parametrization=parametrizations.generator_weights(
            prior, batch_size=batch_shape[0], prior_weight=prior_weight, spread=spread
        ),
        name="gias",
    )


def _log_distance(
    client_update: ClientUpdateFn,
    objective: Objective,
    sent_statistics: SentStatistics | None,
    momentum: Scalar,
    batch_norm: Scalar,
    name: str,
) -> Callable[[Observation, Batch], Array]:
    """`log D`, of all rounds that were observed together."""
    unexplained = observation_distance(
        client_update,
        objective,
        sent_statistics=sent_statistics,
        momentum=momentum,
        batch_norm=batch_norm,
        name=name,
    )
    return likelihoods.of_unknown_scale(unexplained)


def _still(count: object) -> float:
    """A rate of zero."""
    del count
    return 0.0


def _total_variation(weight: Scalar, std: PerChannel, batch_shape: Shape) -> Regularizer:
    std_image = parametrizations.per_channel("std", std, batch_shape)
    return regularizers.weighted((weight, lambda x: regularizers.total_variation(x / std_image)))
