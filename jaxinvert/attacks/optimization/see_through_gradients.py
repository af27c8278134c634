"""GradInversion: seeds that search together, each drawn to what all of them agree on.

    minimize over x:   a sum_l |g_l - g*_l|  +  tv TV(x) + l2 |x|  +  bn BN(x)
                       +  group |x - mean of registered seeds|

BN is the distance of the batch's statistics from the running ones, or from the client's own where it sends them
(exact after one step on all examples). Labels are read from the observation; the paper restores them by `labels.yin`.
Steps are Adam's with warm-up, cosine decay and Langevin noise.

Hongxu Yin, Arun Mallya, Arash Vahdat, Jose M. Alvarez, Jan Kautz, Pavlo Molchanov: "See Through Gradients: Image
Batch Recovery via GradInversion", CVPR 2021, arXiv:2104.07586.
"""

from collections.abc import Callable

import jax
import optax

from jaxinvert import trees
from jaxinvert.attacks import objectives
from jaxinvert.attacks.group_consistency import consistent_group
from jaxinvert.attacks.matching import search_inputs
from jaxinvert.attacks.schedules import warmup_cosine
from jaxinvert.attacks.transformations import langevin_noise
from jaxinvert.clients import running_statistics
from jaxinvert.models import BATCH_NORM_MOMENTUM
from jaxinvert.observation.observe import require
from jaxinvert.priors import parametrizations, regularizers
from jaxinvert.types import (
    Array,
    ArrayTree,
    Attack,
    Batch,
    ClientUpdateFn,
    Observation,
    Params,
    PerChannel,
    Regularizer,
    Scalar,
    Shape,
)

HEAVY_FIRST_LAYER = 10.0
"""How much more the first BatchNorm layer counts."""


def see_through_gradients(
    client_update: ClientUpdateFn,
    batch_statistics: Callable[[Params, Array], ArrayTree],
    *,
    batch_shape: Shape,
    mean: PerChannel = 0.0,
    std: PerChannel = 1.0,
    momentum: Scalar = BATCH_NORM_MOMENTUM,
    num_seeds: int = 8,
    matching: Scalar = 1e-3,
    batch_norm: Scalar = 0.1,
    tv: Scalar = 1e-4,
    l2: Scalar = 1e-6,
    group: Scalar = 1e-2,
    registration: Scalar = 1.0,
    noise: Scalar = 0.2,
    learning_rate: Scalar = 0.1,
    warmup: Scalar = 50,
    horizon: Scalar = 20_000,
) -> Attack:
    """Returns the attack with the paper's constants; one restart of it is a whole group of seeds.

    Deviations: registration is by translation (cross-correlation), at every step, instead of optical flow at every
    hundredth; a result is its seed's
    best iterate by attack loss since the group came together, at a quarter of the horizon as in the paper.

    Args:
      client_update: the attacker's simulation of the client.
      batch_statistics: `(params, inputs) -> statistics`, as in `Model`; `{}` for models without BatchNorm.
      batch_shape: `(B, H, W, C)`.
      mean: scalar or `[C]`, the normalization that the model applies.
      std: scalar or `[C]`.
      momentum: of the running statistics, the share of the old value (Flax's convention).
      num_seeds: static; seeds in the group.
      matching: weight of the update.
      batch_norm: weight of the statistics.
      tv: weight of the total variation.
      l2: weight of the batch's Euclidean norm.
      group: weight of the distance from what the seeds agree on.
      registration: 0 to take the plain mean of the seeds for that, anything else to shift them onto each other first.
      noise: standard deviation of the Langevin noise in units of the learning rate.
      learning_rate: of Adam, in units of `std`.
      warmup: steps until the full learning rate.
      horizon: the number of steps that the learning-rate decay is laid out for.
    """
    mean_image, std_image = (
        parametrizations.per_channel(name, value, batch_shape) for name, value in (("mean", mean), ("std", std))
    )
    priors = regularizers.weighted((tv, regularizers.total_variation), (l2, regularizers.l2_norm))

    def distance(observation: Observation, batch: Batch) -> Array:
        params = require(observation, "params", attack="see_through_gradients")
        found = objectives.tensor_norms(client_update(params, batch), observation.update)
        if observation.local_training is not None:  # the weights are meant for gradients
            found = found / (observation.local_training.learning_rate * observation.local_training.num_steps)
        statistics = batch_statistics(params, batch.inputs)
        if not statistics:
            return matching * found
        target = params["batch_stats"]
        if observation.batch_stats is not None:
            num_steps = require(observation, "local_training", attack="see_through_gradients").num_steps
            target = running_statistics.recover(
                observation.batch_stats, target, momentum=momentum, num_steps=num_steps
            )
        return matching * found + batch_norm * first_layer_heavy(statistics, target)

    def one_seed(group_term: Regularizer) -> Attack:
        return search_inputs(
            distance,
            regularizer=lambda inputs: priors((inputs - mean_image) / std_image) + group * group_term(inputs),
            optimizer=optax.chain(
                optax.scale_by_adam(),
                langevin_noise(noise),
                optax.scale_by_learning_rate(warmup_cosine(learning_rate, horizon, warmup=warmup)),
            ),
            parametrization=parametrizations.pixels(batch_shape, mean=mean, std=std),
            name="see_through_gradients",
        )

    return consistent_group(
        one_seed, num_seeds=num_seeds, start=0.25 * horizon, unit=std_image, registration=registration
    )


def first_layer_heavy(statistics: ArrayTree, target: ArrayTree) -> Array:
    """`sum |mu - mu*| + |var - var*|` over BatchNorm layers, those that read the stem ten times."""

    def gap(path: tuple, found: Array, wanted: Array) -> Array:
        first = getattr(path[0], "key", "") in ("norm_0", "stem_norm")
        return (HEAVY_FIRST_LAYER if first else 1.0) * trees.tree_norm(found - wanted)

    return trees.tree_sum(jax.tree_util.tree_map_with_path(gap, statistics, target))
