"""BatchNorm leakage: the running statistics that a client sends hold the mean and variance of its private features.

    minimize over x, y:   a sum_l |g_l - g*_l|  +  b sum_BN (|mu - mu*| + |var - var*|)
                          +  tv (|dx| + |dy|)  +  norm mean_i |x_i|

`g` is the client's mean gradient, its update over rate and number of its steps, simulated from the server's model
in train mode; `mu, var` are the batch statistics behind the running ones that the simulated client sends, and
`mu*, var*` those behind the ones that came back (`running_statistics.recover`).

Ali Hatamizadeh, Hongxu Yin, Pavlo Molchanov, Andriy Myronenko, Wenqi Li, Prerna Dogra, Andrew Feng, Mona G. Flores,
Jan Kautz, Daguang Xu, Holger R. Roth: "Do Gradient Inversion Attacks Make Federated Learning Unsafe?", IEEE
Transactions on Medical Imaging 2023, arXiv:2202.06924.
"""

from collections.abc import Callable

import jax
import optax

from jaxinvert.attacks import objectives
from jaxinvert.attacks.matching import search_inputs, statistics_distance
from jaxinvert.attacks.schedules import warmup_cosine
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
    Scalar,
    Shape,
)


def batch_norm_leakage(
    client_update: ClientUpdateFn,
    sent_statistics: Callable[[Params, Batch], ArrayTree],
    *,
    batch_shape: Shape,
    momentum: Scalar,
    joint_labels: int | None = None,
    prior: Array | None = None,
    mean: PerChannel = 0.0,
    std: PerChannel = 1.0,
    matching: Scalar = 1e-3,
    batch_norm: Scalar = 0.1,
    tv: Scalar = 1e-4,
    norm: Scalar = 1e-5,
    learning_rate: Scalar = 0.1,
    warmup: Scalar = 100,
    horizon: Scalar = 40_000,
) -> Attack:
    """Returns the attack with the constants of the authors' program.

    Three deviations, on purpose. That program detaches the simulated gradient, which leaves its matching term without
    effect; here the whole local training is differentiated. It measures `mu, var` in the client's updated model; here
    the client is simulated in this, too, which is exact for any local training. The total variation leaves out
    diagonals. As in the paper priors see the images as the model does, normalized.

    Args:
      client_update: the attacker's simulation of the client, BatchNorm in train mode.
      sent_statistics: the running statistics that the simulated client sends, `(params, batch) -> statistics`.
      batch_shape: `(B, H, W, C)`.
      momentum: of the running statistics, the share of the old value (Flax's convention).
      joint_labels: `K`, to optimize soft labels along with the images, through a sigmoid as in the paper; by default
        `observation.labels` are read.
      prior: `[H, W, C]` in [0, 1], a public image to start from; by default normal noise.
      mean: scalar or `[C]`, the normalization that the model applies.
      std: scalar or `[C]`.
      matching: weight of the update.
      batch_norm: weight of the statistics.
      tv: weight of the total variation.
      norm: weight of the mean Euclidean norm of an image.
      learning_rate: of Adam, in units of `std`.
      warmup: steps until the full learning rate.
      horizon: the number of steps that the learning-rate decay is laid out for.
    """
    images = parametrizations.pixels(batch_shape, mean=mean, std=std)
    if prior is not None:
        images = parametrizations.start_at(images, prior, batch_shape=batch_shape, mean=mean, std=std)
    if joint_labels is not None:
        images = parametrizations.with_soft_labels(
            images, batch_size=batch_shape[0], num_classes=joint_labels, squash=jax.nn.sigmoid
        )

    statistics_gap = statistics_distance(
        sent_statistics, objectives.tensor_norms, momentum=momentum, name="batch_norm_leakage"
    )

    def distance(observation: Observation, batch: Batch) -> Array:
        params = require(observation, "params", attack="batch_norm_leakage")
        rate, num_steps = require(observation, "local_training", attack="batch_norm_leakage")
        update_gap = objectives.tensor_norms(client_update(params, batch), observation.update)
        return matching * update_gap / (rate * num_steps) + batch_norm * statistics_gap(observation, batch)

    mean_image, std_image = (
        parametrizations.per_channel(name, value, batch_shape) for name, value in (("mean", mean), ("std", std))
    )
    priors = regularizers.weighted((tv, regularizers.total_variation_norm), (norm, regularizers.mean_norm))
    return search_inputs(
        distance,
        regularizer=lambda inputs: priors((inputs - mean_image) / std_image),
        optimizer=optax.adam(warmup_cosine(learning_rate, horizon, warmup=warmup), b1=0.9, b2=0.9),
        parametrization=images,
        name="batch_norm_leakage",
    )
