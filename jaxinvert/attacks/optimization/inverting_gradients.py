"""Inverting Gradients: cosine matching by signed Adam with a total-variation prior.

    minimize over x in [0, 1]^n:   1 - <g(x), g*> / (|g(x)| |g*|)  +  tv * TV(x)

Jonas Geiping, Hartmut Bauermeister, Hannah Dröge, Michael Moeller: "Inverting Gradients -- How easy is it to
break privacy in federated learning?", NeurIPS 2020, arXiv:2003.14053.
"""

import optax

from jaxinvert.attacks import objectives
from jaxinvert.attacks.matching import gradient_matching
from jaxinvert.attacks.schedules import step_decay
from jaxinvert.attacks.transformations import median_filter
from jaxinvert.priors import parametrizations, regularizers
from jaxinvert.types import Array, Attack, ClientUpdateFn, Objective, PerChannel, Scalar, Shape


def inverting_gradients(
    client_update: ClientUpdateFn,
    *,
    batch_shape: Shape,
    mean: PerChannel = 0.0,
    std: PerChannel = 1.0,
    tv: Scalar = 1e-2,
    learning_rate: Scalar = 0.1,
    horizon: Scalar = 4800,
    objective: Objective = objectives.cosine,
    joint_labels: int | None = None,
    prior: Array | None = None,
    median_every: int | None = None,
) -> Attack:
    """Returns the attack with the paper's settings: known labels, any batch size, FedSGD or FedAvg clients.

    Everything happens in the model's normalized space, as in the paper: the start is `N(0, 1)`, the step size and
    the total variation are per unit of `std`. Two deviations: the start is clipped to the box, and a restart's
    result is its best iterate by attack loss, by which restarts compete, too; the paper keeps last iterates and
    compares them without the prior.

    Args:
      client_update: the attacker's simulation of the client.
      batch_shape: `(B, H, W, C)`.
      mean: scalar or `[C]`, the normalization that the model applies.
      std: scalar or `[C]`.
      tv: weight of the total variation; the paper uses 1e-4 ... 1e-1.
      learning_rate: of Adam, in units of `std`.
      horizon: the number of steps that the learning-rate decay is laid out for.
      objective: distance of the updates; the authors' program can also weigh layers (`objectives.layer_weighted`) or
        keep the largest tensors (`objectives.largest_tensors`).
      joint_labels: the number of classes, to optimize soft labels along with the images instead of reading
        `observation.labels`; the paper argues for known labels.
      prior: `[H, W, C]` or `[B, H, W, C]` in [0, 1], images to start from, such as an earlier reconstruction; by
        default normal noise, as in the paper.
      median_every: steps between 3 x 3 median filters; the authors' program has 500 as an option. Not with
        `joint_labels`.

    Raises:
      ValueError: for `median_every` with `joint_labels`.
    """
    if median_every is not None and joint_labels is not None:
        raise ValueError("median_every filters images, but with joint_labels the variables are images and labels")
    parametrization = parametrizations.pixels(batch_shape, mean=mean, std=std)
    if prior is not None:
        parametrization = parametrizations.start_at(
            parametrization, prior, batch_shape=batch_shape, mean=mean, std=std
        )
    if joint_labels is not None:
        parametrization = parametrizations.with_soft_labels(
            parametrization, batch_size=batch_shape[0], num_classes=joint_labels
        )
    optimizer = optax.chain(
        optax.scale_by_sign(),
        optax.scale_by_adam(),
        optax.scale_by_learning_rate(step_decay(learning_rate, horizon)),
        *([] if median_every is None else [median_filter(every=median_every)]),
    )
    std_image = parametrizations.per_channel("std", std, batch_shape)
    return gradient_matching(
        client_update,
        objective=objective,
        regularizer=regularizers.weighted((tv, lambda x: regularizers.total_variation(x / std_image))),
        optimizer=optimizer,
        parametrization=parametrization,
        name="inverting_gradients",
    )
