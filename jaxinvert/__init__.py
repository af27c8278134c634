"""jaxinvert measures what a federated-learning update leaks: gradient inversion in JAX.

A server sees a client's gradient; an attack turns it back into images. The main job is four names: a client
(`clients.fedsgd`), what the server sees of it (`observe`), what an attack is built for (`Problem`), and `invert`.
Reading order for a newcomer: `types`, `clients`, `attacks.optimization.inverting_gradients`, `search`.

Names are imported when they are first used, so that `import jaxinvert` takes no time.
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.2.0"

if TYPE_CHECKING:
    from jaxinvert import (
        attacks,
        audit,
        clients,
        data,
        defenses,
        federation,
        files,
        jobs,
        labels,
        metrics,
        models,
        nn,
        observation,
        parallel,
        priors,
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
    "federation",
    "files",
    "invert",
    "jobs",
    "labels",
    "metrics",
    "models",
    "nn",
    "observation",
    "observe",
    "observe_targets",
    "parallel",
    "priors",
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
"""Names that the package hands on, by the module that has them; all others of `__all__` are modules."""


def __getattr__(name: str) -> Any:
    """Imports a name of `__all__` when it is first used."""
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
