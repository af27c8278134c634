"""The client: local training (FedSGD, FedAvg, DP-SGD), its gradients, and the running statistics it sends."""

from jaxinvert.clients import gradients, running_statistics
from jaxinvert.clients.aggregation import aggregate, securely_aggregated, sending
from jaxinvert.clients.local_training import AnyClientUpdateFn, AnyLossFn, only_trained
from jaxinvert.clients.training import clipped_to_norm, dp_fedsgd, fedavg, fedsgd, local_batch_statistics

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
