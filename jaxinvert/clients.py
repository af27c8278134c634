"""What a client computes from its private batch: `(params, batch) -> update`, differentiable in the inputs."""

from jaxinvert.gradients import mean_gradient
from jaxinvert.types import ClientUpdateFn, LossFn


def fedsgd(loss_fn: LossFn) -> ClientUpdateFn:
    """One full-batch gradient: the update is `d loss_fn / d params` (McMahan et al. 2017, FedSGD).

    In pseudo-gradient sign the update of a client that takes one step with learning rate 1 is the gradient itself.
    """
    return mean_gradient(loss_fn)
