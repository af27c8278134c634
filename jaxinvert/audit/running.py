"""The attacks of an audit, one after the other, watched, and not repeated if they were finished before."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from jaxinvert import jobs
from jaxinvert.audit.kept import kept_or_done
from jaxinvert.jobs import JobConfig
from jaxinvert.search import Progress
from jaxinvert.types import Observation, Reconstruction

Show = Callable[[str, Progress | None], None]
"""Called with what is being done, and how far it is if that is known."""


def attack(
    what: str,
    config: JobConfig,
    program: jobs.Program,
    observations: Observation,
    folder: Path | None,
    on_progress: Show,
) -> jobs.Execution:
    """Attacks the observations, or takes what was kept of it.

    Args:
      what: the attack is called, for people and in the names of files.
      config: the job.
      program: for it.
      observations: all that the attacker sees.
      folder: keeps the result, and the state in between.
      on_progress: called now and then.

    Raises:
      KeyboardInterrupt: after its state was kept.
    """
    state = None if folder is None else folder / "state" / what.replace(" ", "-")

    def run() -> jobs.Execution:
        on_progress(what, None)
        return jobs.execute(
            config,
            program,
            observations,
            on_progress=lambda progress: on_progress(what, progress),
            state_folder=state,
        )

    if folder is None:
        execution = run()
    else:
        name = f"{jobs.job_name(config)}-{what.replace(' ', '-')}.npz"
        execution = kept_or_done(folder / "attacks" / name, run)
    if execution.interrupted:
        raise KeyboardInterrupt
    if state is not None:
        jobs.forget_state(state, config)
    return execution


def found_in(execution: jobs.Execution) -> tuple[np.ndarray, np.ndarray | None]:
    """Images `[T, B, H, W, C]` and the classes `[T, B]` that they were made for."""
    found: Reconstruction = execution.reconstructions
    labels = None if found.labels is None else np.asarray(found.labels)
    if labels is not None and labels.ndim > 2:
        labels = labels.argmax(axis=-1)  # soft
    return np.asarray(found.inputs), labels
