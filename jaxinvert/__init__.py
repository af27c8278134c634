"""jaxinvert measures what a federated-learning update leaks: gradient inversion in JAX.

A server sees a client's gradient; an attack turns it back into images. Reading order for a newcomer:
`types`, `clients`, `attacks.optimization.inverting_gradients`, `search`.
"""

from jaxinvert import (
    attacks,
    clients,
    data,
    defenses,
    federation,
    labels,
    metrics,
    models,
    nn,
    observation,
    parallel,
    priors,
    schema,
    search,
    trees,
)
from jaxinvert.observation import observe
from jaxinvert.types import Attack, Batch, Observation, Reconstruction

__all__ = [
    "Attack",
    "Batch",
    "Observation",
    "Reconstruction",
    "attacks",
    "clients",
    "data",
    "defenses",
    "federation",
    "labels",
    "metrics",
    "models",
    "nn",
    "observation",
    "observe",
    "parallel",
    "priors",
    "schema",
    "search",
    "trees",
]
