"""Runs an attack: scanned steps, restarts, many targets, and a host loop that reports progress.

    solve = over_targets(best_of(run(attack, num_steps=4800), num_restarts=8))
    reconstructions = jax.jit(solve)(key, observations)

`run`, `best_of` and `over_targets` are pure and compose with jit, vmap and each other. `Stepwise` runs the same
computation from the same keys as repeated calls of one compiled program, so that a long search can report progress,
be interrupted and resumed, and be spread over devices.
"""

from jaxinvert.search import halving
from jaxinvert.search.solving import best_of, over_targets, run, select_best, start_lane
from jaxinvert.search.stepwise import Progress, Resumable, Stepwise
from jaxinvert.search.targets import check_targets, num_targets, split_shared

__all__ = [
    "Progress",
    "Resumable",
    "Stepwise",
    "best_of",
    "check_targets",
    "halving",
    "num_targets",
    "over_targets",
    "run",
    "select_best",
    "split_shared",
    "start_lane",
]
