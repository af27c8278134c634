"""The client: local training (FedSGD, FedAvg, DP-SGD), its gradients, and the running statistics it sends."""

from jaxinvert.clients import gradients, running_statistics
from jaxinvert.clients.training import (
    AnyClientUpdateFn,
    AnyLossFn,
    aggregate,
    clipped_to_norm,
    dp_fedsgd,
    fedavg,
    fedsgd,
    local_batch_statistics,
    only_trained,
    securely_aggregated,
    sending,
)

__all__ = [
    "AnyClientUpdateFn",
    "AnyLossFn",
    "aggregate",
    "clipped_to_norm",
    "dp_fedsgd",
    "fedavg",
    "fedsgd",
    "gradients",
    "local_batch_statistics",
    "only_trained",
    "running_statistics",
    "securely_aggregated",
    "sending",
]
