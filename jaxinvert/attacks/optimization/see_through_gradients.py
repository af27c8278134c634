"""GradInversion: a group of jointly optimized seeds, each penalized by its distance from the registered group mean.

    minimize over x:   a sum_l |g_l - g*_l|  +  tv TV(x) + l2 |x|  +  bn BN(x)
                       +  group |x - mean of registered seeds|

BN is the distance of the batch statistics from the running statistics, or from the client's own if it sends them
(exact after one step on all examples). Labels are read from the observation; the paper restores them by `labels.yin`.
The optimizer is Adam with warm-up, cosine decay and Langevin noise.

Hongxu Yin, Arun Mallya, Arash Vahdat, Jose M. Alvarez, Jan Kautz, Pavlo Molchanov: "See Through Gradients: Image
Batch Recovery via GradInversion", CVPR 2021, arXiv:2104.07586.
"""

import jax
import optax

from jaxinvert.attacks import objectives
from jaxinvert.attacks.group_consistency import consistent_group
from jaxinvert.attacks.matching import search_inputs, update_distance
from jaxinvert.attacks.problem import Problem, declare
from jaxinvert.attacks.schedules import warmup_cosine
from jaxinvert.attacks.transformations import langevin_noise
from jaxinvert.clients import running_statistics
from jaxinvert.models import first_batch_norm
from jaxinvert.observation.observe import require
from jaxinvert.priors import regularizers
from jaxinvert.trees import leaves_by_path, path_name, tree_norm, tree_sum
from jaxinvert.types import Array, ArrayTree, Attack, Batch, Observation, Regularizer, Scalar

HEAVY_FIRST_LAYER = 10.0
"""Weight of the first BatchNorm layer, relative to the others."""


@declare("labels")
def see_through_gradients(
    problem: Problem,
    *,
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
    num_seeds: int = 8,
) -> Attack:
    """GradInversion: a consistent group of seeds, BatchNorm statistics and Langevin noise (Yin et al. 2021).

    Constants are the paper's; one restart of this attack is a whole group of seeds. Deviations: registration is by
    translation (cross-correlation) at every step, instead of optical flow at every hundredth; the result is a seed's
    best iterate by attack loss since the group term started, which is at a quarter of the horizon, as in the paper.

    Works: by its paper, on a pretrained ResNet with BatchNorm statistics and many thousand steps.

    Fails: with few steps: some hundreds reconstruct nothing recognizable through a ResNet.

    Args:
      problem: any batch size.
      matching: weight of the distance between updates.
      batch_norm: weight of the distance between batch statistics.
      tv: weight of the total variation.
      l2: weight of the batch's Euclidean norm.
      group: weight of a seed's distance from the group mean.
      registration: 0 for the plain mean of the seeds; any other value shifts them onto each other first.
      noise: standard deviation of the Langevin noise in units of the learning rate.
      learning_rate: of Adam, in units of `std`.
      warmup: steps until the full learning rate.
      horizon: number of steps over which the learning rate decays.
      num_seeds: number of seeds in the group; static.
    """
    priors = regularizers.weighted((tv, regularizers.total_variation), (l2, regularizers.l2_norm))
    first_layer = first_batch_norm(problem.model)
    update_gap = update_distance(problem.client_update, objectives.tensor_norms)

    def distance(observation: Observation, batch: Batch) -> Array:
        params = require(observation, "params", attack="see_through_gradients")
        found = update_gap(observation, batch)
        if observation.local_training is not None:  # the weights are for gradients
            found = found / (observation.local_training.learning_rate * observation.local_training.num_steps)
        statistics = problem.model.batch_statistics(params, batch.inputs)
        if not statistics:
            return matching * found
        target = params["batch_stats"]
        if observation.batch_stats is not None:
            num_steps = require(observation, "local_training", attack="see_through_gradients").num_steps
            target = running_statistics.recover(
                observation.batch_stats, target, momentum=problem.momentum, num_steps=num_steps
            )
        return matching * found + batch_norm * first_layer_heavy(statistics, target, first_layer=first_layer)

    def one_seed(group_term: Regularizer) -> Attack:
        return search_inputs(
            distance,
            regularizer=lambda inputs: (
                priors((inputs - problem.mean_image) / problem.std_image) + group * group_term(inputs)
            ),
            optimizer=optax.chain(
                optax.scale_by_adam(),
                langevin_noise(noise),
                optax.scale_by_learning_rate(warmup_cosine(learning_rate, horizon, warmup=warmup)),
            ),
            parametrization=problem.pixels(),
            name="see_through_gradients",
        )

    return consistent_group(
        one_seed, num_seeds=num_seeds, start=0.25 * horizon, unit=problem.std_image, registration=registration
    )


def first_layer_heavy(statistics: ArrayTree, target: ArrayTree, *, first_layer: str | None) -> Array:
    """`sum |mu - mu*| + |var - var*|` over BatchNorm layers, with weight 10 for the first.

    Args:
      statistics: `mu, var` as a tree of layers `{"mean": [C], "var": [C]}`.
      target: `mu*, var*` as the same tree.
      first_layer: path of the first layer, see `models.first_batch_norm`.

    Raises:
      ValueError: if there is no such layer, instead of silently omitting the weight.
    """
    paths = list(leaves_by_path(statistics))
    if first_layer is None or not any(path.startswith(f"{first_layer}/") for path in paths):
        raise ValueError(f"see_through_gradients: the first BatchNorm layer is {first_layer!r}, not among {paths}")

    def gap(path: tuple, found: Array, wanted: Array) -> Array:
        first = path_name(path).startswith(f"{first_layer}/")
        return (HEAVY_FIRST_LAYER if first else 1.0) * tree_norm(found - wanted)

    return tree_sum(jax.tree_util.tree_map_with_path(gap, statistics, target))
