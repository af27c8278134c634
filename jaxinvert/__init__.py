"""jaxinvert: gradient inversion in JAX, to measure what federated-learning updates leak about their training data.

A server sees a client's update, and an attack reconstructs the training images from it. A complete attack needs four
parts: a client (`clients.fedsgd`), its observation by the server (`observe`), the `Problem` that an attack is built
for, and `invert`. Reading order: `types`, `clients`, `attacks.optimization.inverting_gradients`, `search`.

Submodules are imported at their first use, which keeps `import jaxinvert` fast.
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.7.0"

if TYPE_CHECKING:
    from jaxinvert import (
        attacks,
        audit,
        clients,
        data,
        defenses,
        escaping,
        federation,
        files,
        inspection,
        integrations,
        jobs,
        labels,
        manifest,
        metrics,
        models,
        nn,
        observation,
        parallel,
        priors,
        readers,
        report,
        schema,
        search,
        sweeps,
        trees,
        types,
    )
    from jaxinvert.attacks import Problem, TextProblem, declare, invert, register
    from jaxinvert.observation import ThreatModel, observe, observe_targets
    from jaxinvert.types import Attack, Batch, LocalTraining, Observation, Reconstruction

__all__ = [
    "Attack",
    "Batch",
    "LocalTraining",
    "Observation",
    "Problem",
    "Reconstruction",
    "TextProblem",
    "ThreatModel",
    "attacks",
    "audit",
    "clients",
    "data",
    "declare",
    "defenses",
    "escaping",
    "federation",
    "files",
    "inspection",
    "integrations",
    "invert",
    "jobs",
    "labels",
    "manifest",
    "metrics",
    "models",
    "nn",
    "observation",
    "observe",
    "observe_targets",
    "parallel",
    "priors",
    "readers",
    "register",
    "report",
    "schema",
    "search",
    "sweeps",
    "trees",
    "types",
]

_HOME = {
    "attacks": ("Problem", "TextProblem", "declare", "invert", "register"),
    "observation": ("ThreatModel", "observe", "observe_targets"),
    "types": ("Attack", "Batch", "LocalTraining", "Observation", "Reconstruction"),
}
"""Re-exported names, by the module that defines them; all other names of `__all__` are modules."""


def __getattr__(name: str) -> Any:
    """Imports a name of `__all__` at its first use."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    homes = [home for home, names in _HOME.items() if name in names]
    value = (
        getattr(importlib.import_module(f"{__name__}.{homes[0]}"), name)
        if homes
        else importlib.import_module(f"{__name__}.{name}")
    )
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """The public names, imported or not."""
    return [*__all__, "__version__"]
