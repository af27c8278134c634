"""The attacks: one file per published attack, the `Problem` that an attack is built for, and shared components.

`optimization` contains iterative attacks, `closed_form` attacks that solve equations; `registry` maps names to both.
Components: `objectives` (distances between updates), `likelihoods` and `adaptive` (for an attacker who knows the
defense), `matching` (the loop body), `initial_guess`, `group_consistency`, `schedules` (learning rates) and
`transformations` (optimizer steps).
"""

from jaxinvert.attacks import (
    adaptive,
    closed_form,
    group_consistency,
    initial_guess,
    likelihoods,
    matching,
    objectives,
    optimization,
    registry,
    schedules,
    transformations,
)
from jaxinvert.attacks.closed_form import *  # noqa: F403  the attacks, by the names in its __all__
from jaxinvert.attacks.inversion import invert
from jaxinvert.attacks.optimization import *  # noqa: F403
from jaxinvert.attacks.problem import Problem, TextProblem, declare
from jaxinvert.attacks.registry import register

__all__ = [
    "Problem",
    "TextProblem",
    "adaptive",
    "closed_form",
    "declare",
    "group_consistency",
    "initial_guess",
    "invert",
    "likelihoods",
    "matching",
    "objectives",
    "optimization",
    "register",
    "registry",
    "schedules",
    "transformations",
    *closed_form.__all__,
    *optimization.__all__,
]
