"""Runs one attack of an audit with progress reports, or loads its stored result if it finished before."""

from collections.abc import Callable

import numpy as np

from jaxinvert import jobs
from jaxinvert.audit.kept import Store, kept_or_done
from jaxinvert.jobs import JobConfig
from jaxinvert.search import Progress
from jaxinvert.types import Observation, Reconstruction

Show = Callable[[str, Progress | None], None]
"""Called with the name of the current step, and its progress or `None` if that is unknown."""

_MAX_REASON = 400


def attack(
    what: str,
    config: JobConfig,
    program: jobs.Program,
    observations: Observation,
    store: Store | None,
    on_progress: Show,
) -> jobs.Execution:
    """Attacks the observations, or loads the stored result.

    Args:
      what: name of the attack, shown to people and used in file names.
      config: the job.
      program: the program of this job.
      observations: observations of all targets.
      store: keeps the result, and the state of a running attack.
      on_progress: called repeatedly with `what` and the progress.

    Raises:
      KeyboardInterrupt: after the state of the attack is saved.
    """
    state = None if store is None else store.states / what.replace(" ", "-")

    def run() -> jobs.Execution:
        on_progress(what, None)
        return jobs.execute(
            config,
            program,
            observations,
            on_progress=lambda progress: on_progress(what, progress),
            state_folder=state,
            state_role="" if store is None else store.role(what),
        )

    execution = kept_or_done(store, jobs.job_name(config), what, run)
    if execution.interrupted:
        raise KeyboardInterrupt
    if state is not None:
        jobs.forget_state(state, config)
    return execution


def found_in(execution: jobs.Execution) -> tuple[np.ndarray, np.ndarray | None]:
    """Reconstructed images `[T, B, H, W, C]` and the labels `[T, B]` that the attack used, or `None`."""
    found: Reconstruction = execution.reconstructions
    labels = None if found.labels is None else np.asarray(found.labels)
    if labels is not None and labels.ndim > 2:
        labels = labels.argmax(axis=-1)  # of soft labels
    return np.asarray(found.inputs), labels


def reason(error: Exception) -> str:
    """Why a part of an audit is missing, for people: the message of an error, named by its type if it is unusual."""
    message = " ".join(str(error).split())[:_MAX_REASON]
    return message if isinstance(error, ValueError) and message else f"{type(error).__name__}: {message}"
