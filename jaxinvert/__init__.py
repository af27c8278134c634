"""jaxinvert measures what a federated-learning update leaks: gradient inversion in JAX.

A server sees a client's gradient; an attack turns it back into images. Reading order for a newcomer:
`types`, `clients`, `attacks.inverting_gradients`, `search`.
"""

from jaxinvert import (
    analytic,
    attacks,
    captures,
    clients,
    data,
    defenses,
    generators,
    gradients,
    halving,
    labels,
    matching,
    metrics,
    models,
    nn,
    objectives,
    observe,
    parametrizations,
    record_metrics,
    records,
    regularizers,
    running_statistics,
    search,
)
from jaxinvert.types import Attack, Batch, Observation, Reconstruction

__all__ = [
    "Attack",
    "Batch",
    "Observation",
    "Reconstruction",
    "analytic",
    "attacks",
    "captures",
    "clients",
    "data",
    "defenses",
    "generators",
    "gradients",
    "halving",
    "labels",
    "matching",
    "metrics",
    "models",
    "nn",
    "objectives",
    "observe",
    "parametrizations",
    "record_metrics",
    "records",
    "regularizers",
    "running_statistics",
    "search",
]
