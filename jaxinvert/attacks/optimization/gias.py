"""GIAS, gradient inversion with a generator: optimizes the generator's latents, then its weights for each image.

    GI-z:   minimize over z             log D(G_w(z)) + prior mean z^2 + tv TV(G_w(z)),   D = 1 - cos(g(x), g*)
    GI-w:   minimize over w_1 ... w_B   log D(G_w1(z_1) ... G_wB(z_B)) + tv TV(...)

The first stage searches the images that are likely under the generator. The second fits a separate copy of the
generator's weights to each image, to explain the rest of the update. `gias_in_two_searches` is the paper's
composition, two consecutive runs; `gias` does the same in one run, with progress, resumption and sweeps. GI-w alone
with an untrained generator is the deep image prior. If the attacker sees the running statistics that clients with
BatchNorm in train mode send, `D` has a second term for them, see `spectral`.

The paper uses the cosine distance, the norm of z, starts from `N(0, 1)` and lowers the learning rate in steps. Here
the logarithm of the distance keeps the prior's influence constant while the distance decreases
(`likelihoods.of_unknown_scale`); latents start near zero, the generator's mean, and learning rates follow a cosine.
Each of these improves results (`experiments.gias`). The paper matches features to the network's running statistics;
here they are matched to the batch statistics of the private batch, recovered from the observed running statistics.

Jinwoo Jeon, Jaechang Kim, Kangwook Lee, Sewoong Oh, Jungseul Ok: "Gradient Inversion with Generative Image Prior",
NeurIPS 2021, arXiv:2110.14962.
"""

from collections.abc import Callable

import jax
import optax

from jaxinvert.attacks import likelihoods, objectives
from jaxinvert.attacks.matching import observation_distance, search_inputs
from jaxinvert.attacks.problem import Problem, declare
from jaxinvert.attacks.schedules import cosine_decay
from jaxinvert.attacks.transformations import scale_by_rates
from jaxinvert.priors import parametrizations, regularizers
from jaxinvert.priors.generators import Latents, Prior, check_fits
from jaxinvert.priors.parametrizations import LatentsAndWeights
from jaxinvert.search import best_of, run
from jaxinvert.types import (
    Array,
    Attack,
    AttackState,
    Batch,
    Key,
    Observation,
    Reconstruction,
    Regularizer,
    Scalar,
    SolveFn,
)


@declare("labels", every_round=True, adapts=True, generates=True)
def gias_latents(
    problem: Problem,
    *,
    batch_norm: Scalar = 1.0,
    tv: Scalar = 0.0,
    prior_weight: Scalar = 4.0,
    learning_rate: Scalar = 0.1,
    spread: Scalar = 0.1,
    horizon: Scalar = 600,
) -> Attack:
    """First stage of GIAS: optimizes only the latents of a generator, see --generator (Jeon et al. 2021, GI-z).

    The generator's weights stay fixed. Usually better than `gias` in the same time. The reconstruction's
    `info["latents"]` are the best iterate.

    Works: on single images and small batches, with a generator of similar images.

    Fails: on batches of 16 and more, where it gains little, and without a generator of similar images.

    Args:
      problem: with a `prior`, the generator and its parameters.
      batch_norm: weight of the running statistics, if the attacker sees them.
      tv: weight of the total variation, per unit of the model's `std`.
      prior_weight: weight of `mean z^2`, relative to the logarithm of the distance.
      learning_rate: of Adam.
      spread: standard deviation of the coarsest latents at the start; the paper's is 1.
      horizon: number of steps over which the learning rate decays.

    Raises:
      ValueError: if there is no generator, or its images do not fit the batch.
    """
    attack = search_inputs(
        _log_distance(problem, batch_norm, "gias_latents"),
        regularizer=_total_variation(problem, tv),
        optimizer=optax.adam(cosine_decay(learning_rate, horizon)),
        parametrization=parametrizations.latents(
            _fitting_prior(problem), batch_size=problem.num_examples, prior_weight=prior_weight, spread=spread
        ),
        name="gias_latents",
    )

    def decode(state: AttackState, observation: Observation) -> Reconstruction:
        found = attack.decode(state, observation)
        return found._replace(info={**found.info, "latents": state.best_variables})

    return attack._replace(decode=decode)


def gias_weights(
    problem: Problem,
    *,
    batch_norm: Scalar = 1.0,
    tv: Scalar = 0.0,
    prior_weight: Scalar = 4.0,
    learning_rate: Scalar = 1e-3,
    horizon: Scalar = 600,
    start: Latents | None = None,
) -> Attack:
    """Second stage of GIAS (GI-w): fixed latents; optimizes separate weights for each image, starting at the prior's.

    Args:
      problem: with a `prior`.
      batch_norm: see `gias_latents`.
      tv: weight of the total variation.
      prior_weight: weight of `mean z^2`, a constant here, which makes losses comparable with `gias_latents`.
      learning_rate: of Adam.
      horizon: number of steps over which the learning rate decays.
      start: the latents of `B` images; by default drawn as in the paper.

    Raises:
      ValueError: if there is no generator, or its images do not fit the batch.
    """
    rates = LatentsAndWeights(latents=_still, weights=cosine_decay(learning_rate, horizon))
    return search_inputs(
        _log_distance(problem, batch_norm, "gias_weights"),
        regularizer=_total_variation(problem, tv),
        optimizer=optax.chain(optax.scale_by_adam(), scale_by_rates(rates)),
        parametrization=parametrizations.generator_weights(
            _fitting_prior(problem), batch_size=problem.num_examples, prior_weight=prior_weight, start=start
        ),
        name="gias_weights",
    )


def gias_in_two_searches(
    problem: Problem,
    *,
    num_latent_steps: int,
    num_weight_steps: int,
    num_restarts: int = 1,
    latent_rate: Scalar = 0.1,
    weight_rate: Scalar = 1e-3,
    batch_norm: Scalar = 1.0,
    tv: Scalar = 0.0,
    prior_weight: Scalar = 4.0,
) -> SolveFn:
    """GIAS as published: the best of several latent searches, followed by one weight search.

    Args:
      problem: with a `prior`.
      num_latent_steps: steps of each latent search, static; 1,000 in the paper.
      num_weight_steps: steps of the weight search, static; 8,000 in the paper.
      num_restarts: restarts of the latent search, of which the one with the lowest attack loss is used; 4 in the
        paper.
      latent_rate: learning rate of Adam in the first stage.
      weight_rate: learning rate of Adam in the second stage.
      batch_norm: see `gias_latents`.
      tv: weight of the total variation.
      prior_weight: weight of `mean z^2`.
    """
    weights = {"batch_norm": batch_norm, "tv": tv, "prior_weight": prior_weight}
    first = gias_latents(problem, learning_rate=latent_rate, horizon=num_latent_steps, **weights)
    first_run = best_of(run(first, num_steps=num_latent_steps), num_restarts=num_restarts)

    def solve(key: Key, observation: Observation) -> Reconstruction:
        first_key, second_key = jax.random.split(key)
        found = first_run(first_key, observation)
        second = gias_weights(
            problem,
            start=found.info["latents"],  # type: ignore[arg-type]
            learning_rate=weight_rate,
            horizon=num_weight_steps,
            **weights,
        )
        return run(second, num_steps=num_weight_steps)(second_key, observation)

    return solve


@declare("labels", every_round=True, adapts=True, generates=True)
def gias(
    problem: Problem,
    *,
    batch_norm: Scalar = 1.0,
    tv: Scalar = 0.0,
    prior_weight: Scalar = 4.0,
    latent_rate: Scalar = 0.1,
    weight_rate: Scalar = 1e-3,
    latent_share: Scalar = 0.75,
    spread: Scalar = 0.1,
    horizon: Scalar = 600,
) -> Attack:
    """GIAS: optimizes a generator's latents, then its weights for each image; see --generator (Jeon et al. 2021).

    Both stages form one iterative attack: latents are optimized for a share of the steps, then the weights. Every
    step computes both gradients and uses one, so steps of both stages have the same cost.

    Works: where `gias_latents` does: on single images and small batches, with a generator of similar images.

    Fails: where `gias_latents` fails, which usually finds more in the same time.

    Args:
      problem: with a `prior`.
      batch_norm: see `gias_latents`.
      tv: weight of the total variation.
      prior_weight: weight of `mean z^2`.
      latent_rate: learning rate of Adam in the first stage.
      weight_rate: learning rate of Adam in the second stage.
      latent_share: share of the steps in the first stage.
      spread: standard deviation of the coarsest latents at the start.
      horizon: number of steps of both stages.

    Raises:
      ValueError: if there is no generator, or its images do not fit the batch.
    """
    switch = latent_share * horizon
    rates = LatentsAndWeights(
        latents=cosine_decay(latent_rate, switch),
        weights=cosine_decay(weight_rate, horizon, begin=switch),
    )
    return search_inputs(
        _log_distance(problem, batch_norm, "gias"),
        regularizer=_total_variation(problem, tv),
        optimizer=optax.chain(optax.scale_by_adam(), scale_by_rates(rates)),
        parametrization=parametrizations.generator_weights(
            _fitting_prior(problem), batch_size=problem.num_examples, prior_weight=prior_weight, spread=spread
        ),
        name="gias",
    )


def _log_distance(problem: Problem, batch_norm: Scalar, name: str) -> Callable[[Observation, Batch], Array]:
    """`log D`, where `D` includes all observed rounds."""
    objective = problem.objective or objectives.cosine
    return likelihoods.of_unknown_scale(observation_distance(problem, objective, batch_norm=batch_norm, name=name))


def _fitting_prior(problem: Problem) -> Prior:
    """The generator and its parameters, after checking that the generator fits the images."""
    if problem.prior is None:
        raise ValueError("this attack searches with a generator: the problem needs a prior")
    check_fits(problem.prior.generator, problem.image_shape)
    return problem.prior


def _still(count: object) -> float:
    """A learning rate of zero."""
    del count
    return 0.0


def _total_variation(problem: Problem, weight: Scalar) -> Regularizer:
    return regularizers.weighted((weight, lambda x: regularizers.total_variation(x / problem.std_image)))
