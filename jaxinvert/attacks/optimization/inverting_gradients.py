"""Inverting Gradients: cosine matching by Adam on gradient signs, with a total-variation prior.

    minimize over x in [0, 1]^n:   1 - <g(x), g*> / (|g(x)| |g*|)  +  tv * TV(x)

Jonas Geiping, Hartmut Bauermeister, Hannah Dröge, Michael Moeller: "Inverting Gradients -- How easy is it to
break privacy in federated learning?", NeurIPS 2020, arXiv:2003.14053.
"""

import optax

from jaxinvert.attacks import objectives
from jaxinvert.attacks.matching import gradient_matching
from jaxinvert.attacks.problem import Problem, declare
from jaxinvert.attacks.schedules import step_decay
from jaxinvert.attacks.transformations import median_filter, signed_adam
from jaxinvert.priors import regularizers
from jaxinvert.types import Array, Attack, Scalar


@declare("labels", joint_labels=True, every_round=True, adapts=True)
def inverting_gradients(
    problem: Problem,
    *,
    tv: Scalar = 1e-2,
    learning_rate: Scalar = 0.1,
    horizon: Scalar = 4800,
    start_images: Array | None = None,
    median_every: int | None = None,
) -> Attack:
    """Inverting Gradients: cosine matching by Adam on gradient signs, with total variation (Geiping et al. 2020).

    As in the paper, the search runs in the model's normalized space: the start is `N(0, 1)`, and step size and total
    variation are per unit of `std`. Two deviations: the start is clipped to the feasible box, and both a restart's
    result and the best restart are chosen by attack loss; the paper keeps last iterates and compares them without
    the prior.

    Works: on single images through LeNet and small convolutional networks, also after FedAvg.

    Fails: on larger batches.

    Args:
      problem: any batch size, FedSGD or FedAvg clients. The paper argues for known labels; `joint_labels` optimizes
        soft labels instead. The authors' program can also weight layers: set `objective` to
        `objectives.layer_weighted` or `objectives.largest_tensors`.
      tv: weight of the total variation; the paper uses 1e-4 ... 1e-1.
      learning_rate: of Adam, in units of `std`.
      horizon: number of steps over which the learning rate decays.
      start_images: images to start from, such as an earlier reconstruction, `[H, W, C]` or `[B, H, W, C]` in [0, 1];
        by default normal noise, as in the paper.
      median_every: steps between 3 x 3 median filters; the authors' program has 500 as an option. Not possible with
        `problem.joint_labels`.

    Raises:
      ValueError: for `median_every` with `problem.joint_labels`.
    """
    if median_every is not None and problem.joint_labels:
        raise ValueError("median_every filters images, but with joint_labels the variables are images and labels")
    images = problem.pixels(start_images)
    optimizer = optax.chain(
        signed_adam(step_decay(learning_rate, horizon)),
        *([] if median_every is None else [median_filter(every=median_every)]),
    )
    return gradient_matching(
        problem.client_update,
        objective=problem.objective or objectives.cosine,
        regularizer=regularizers.weighted((tv, lambda x: regularizers.total_variation(x / problem.std_image))),
        optimizer=optimizer,
        parametrization=problem.with_soft_labels(images) if problem.joint_labels else images,
        name="inverting_gradients",
    )
