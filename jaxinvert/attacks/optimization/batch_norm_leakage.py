"""BatchNorm leakage: matches the update and the BatchNorm statistics that a client's running statistics reveal.

    minimize over x, y:   a sum_l |g_l - g*_l|  +  b sum_BN (|mu - mu*| + |var - var*|)
                          +  tv (|dx| + |dy|)  +  norm mean_i |x_i|

`g` is the client's mean gradient: its update divided by learning rate and number of steps, simulated from the
server's model in train mode. `mu, var` are the batch statistics computed from the running statistics that the
simulated client sends, and `mu*, var*` those computed from the observed ones (`running_statistics.recover`).

Ali Hatamizadeh, Hongxu Yin, Pavlo Molchanov, Andriy Myronenko, Wenqi Li, Prerna Dogra, Andrew Feng, Mona G. Flores,
Jan Kautz, Daguang Xu, Holger R. Roth: "Do Gradient Inversion Attacks Make Federated Learning Unsafe?", IEEE
Transactions on Medical Imaging 2023, arXiv:2202.06924.
"""

import jax
import optax

from jaxinvert.attacks import objectives
from jaxinvert.attacks.matching import search_inputs, statistics_distance, update_distance
from jaxinvert.attacks.problem import Problem, declare
from jaxinvert.attacks.schedules import warmup_cosine
from jaxinvert.observation.observe import require
from jaxinvert.priors import regularizers
from jaxinvert.types import Array, Attack, Batch, Observation, Scalar


@declare("labels", "local_training", "batch_stats", joint_labels=True)
def batch_norm_leakage(
    problem: Problem,
    *,
    matching: Scalar = 1e-3,
    batch_norm: Scalar = 0.1,
    tv: Scalar = 1e-4,
    norm: Scalar = 1e-5,
    learning_rate: Scalar = 0.1,
    warmup: Scalar = 100,
    horizon: Scalar = 40_000,
    start_images: Array | None = None,
) -> Attack:
    """Matches the update and the sent BatchNorm statistics, BatchNorm in train mode (Hatamizadeh et al. 2023).

    Constants are those of the authors' program. There are three deliberate deviations. The program detaches the
    simulated gradient, so its matching term has no effect; here the whole local training is differentiated. The
    program measures `mu, var` in the client's updated model; here the simulated client measures them, which is exact
    for any local training. The total variation omits diagonals. As in the paper, priors apply to normalized images.

    Works: on networks of few layers with BatchNorm in train mode, whose clients send running statistics.

    Fails: on a ResNet, where no attack here reconstructs a recognizable image.

    Args:
      problem: its clients have BatchNorm in train mode and send running statistics. With `joint_labels`, soft labels
        are optimized through a sigmoid, as in the paper.
      matching: weight of the distance between updates.
      batch_norm: weight of the distance between batch statistics.
      tv: weight of the total variation.
      norm: weight of the mean Euclidean norm of an image.
      learning_rate: of Adam, in units of `std`.
      warmup: steps until the full learning rate.
      horizon: number of steps over which the learning rate decays.
      start_images: a public image to start from, `[H, W, C]` in [0, 1]; by default normal noise.

    Raises:
      ValueError: if the clients send no running statistics.
    """
    if problem.sent_statistics is None:
        raise ValueError("batch_norm_leakage needs clients that send running statistics: problem.sent_statistics")
    statistics_gap = statistics_distance(
        problem.sent_statistics, objectives.tensor_norms, momentum=problem.momentum, name="batch_norm_leakage"
    )

    update_gap = update_distance(problem.client_update, objectives.tensor_norms)

    def distance(observation: Observation, batch: Batch) -> Array:
        rate, num_steps = require(observation, "local_training", attack="batch_norm_leakage")
        found = update_gap(observation, batch) / (rate * num_steps)
        return matching * found + batch_norm * statistics_gap(observation, batch)

    images = problem.pixels(start_images)
    priors = regularizers.weighted((tv, regularizers.total_variation_norm), (norm, regularizers.mean_norm))
    return search_inputs(
        distance,
        regularizer=lambda inputs: priors((inputs - problem.mean_image) / problem.std_image),
        optimizer=optax.adam(warmup_cosine(learning_rate, horizon, warmup=warmup), b1=0.9, b2=0.9),
        parametrization=problem.with_soft_labels(images, squash=jax.nn.sigmoid) if problem.joint_labels else images,
        name="batch_norm_leakage",
    )
