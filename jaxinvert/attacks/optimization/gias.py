"""GIAS, gradient inversion with a generator: search its latents first, then, image by image, its weights.

    GI-z:   minimize over z             log D(G_w(z)) + prior mean z^2 + tv TV(G_w(z)),   D = 1 - cos(g(x), g*)
    GI-w:   minimize over w_1 ... w_B   log D(G_w1(z_1) ... G_wB(z_B)) + tv TV(...)

The first stage looks for the images that the generator finds likely, the second gives every image a generator of its
own where these do not explain the update. `gias_in_two_searches` is the paper's composition, two runs one after the
other; `gias` does the same in one, for searches that are watched, resumed and swept. GI-w alone is the deep image
prior if the generator is untrained. Clients with BatchNorm in train mode send running statistics: where the attacker
sees them, `D` has a second term for them, as in `spectral`.

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
    """First stage of GIAS only, a generator's latents: usually better in the same time; see --generator.

    The generator stays as it is (GI-z). The reconstruction's `info["latents"]` are the best iterate.

    Args:
      problem: with a `prior`, generator and parameters.
      batch_norm: weight of the running statistics, where the attacker sees those that came back.
      tv: weight of the total variation, per unit of the model's `std`.
      prior_weight: of `mean z^2`, beside the logarithm of the distance.
      learning_rate: of Adam.
      spread: standard deviation of the coarsest latents at the start; the paper's is 1.
      horizon: the number of steps that the decay is laid out for.

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
    """Second stage of GIAS only, GI-w: latents stay, every image has weights of its own; they begin as the prior's.

    Args:
      problem: with a `prior`.
      batch_norm: see `gias_latents`.
      tv: weight of the total variation.
      prior_weight: of `mean z^2`, constant here, so that losses compare with those of `gias_latents`.
      learning_rate: of Adam.
      horizon: the number of steps that the cosine decay is laid out for.
      start: the latents, of `B` images; by default drawn as in the paper.

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
    """The paper's composition: the best of several latent searches, then one weight search from there.

    Args:
      problem: with a `prior`.
      num_latent_steps: static; of each latent search. The paper takes 1,000.
      num_weight_steps: static; the paper takes 8,000.
      num_restarts: of the latent search, compared by attack loss; the paper takes 4.
      latent_rate: of Adam in the first stage.
      weight_rate: of Adam in the second.
      batch_norm: see `gias_latents`.
      tv: weight of the total variation.
      prior_weight: of `mean z^2`.
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
    """GIAS: a generator's latents, then its weights, image by image (Jeon et al. 2021); see --generator.

    Both stages as one iterative attack: latents move for a share of the steps, then weights do. Every step computes
    both gradients, of which one is used: a step of the first stage costs as much as one of the second.

    Args:
      problem: with a `prior`.
      batch_norm: see `gias_latents`.
      tv: weight of the total variation.
      prior_weight: of `mean z^2`.
      latent_rate: of Adam in the first stage.
      weight_rate: of Adam in the second.
      latent_share: of the steps, for the first stage.
      spread: standard deviation of the coarsest latents at the start.
      horizon: the number of steps of both stages.

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
    """`log D`, of all rounds that were observed together."""
    objective = problem.objective or objectives.cosine
    return likelihoods.of_unknown_scale(observation_distance(problem, objective, batch_norm=batch_norm, name=name))


def _fitting_prior(problem: Problem) -> Prior:
    """The generator and its parameters, checked."""
    if problem.prior is None:
        raise ValueError("this attack searches with a generator: the problem needs a prior")
    check_fits(problem.prior.generator, problem.image_shape)
    return problem.prior


def _still(count: object) -> float:
    """A rate of zero."""
    del count
    return 0.0


def _total_variation(problem: Problem, weight: Scalar) -> Regularizer:
    return regularizers.weighted((weight, lambda x: regularizers.total_variation(x / problem.std_image)))
