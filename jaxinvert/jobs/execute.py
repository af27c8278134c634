"""Runs the attack of one job, with progress and resumption, or of several jobs as lanes of one program."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxinvert import files
from jaxinvert.jobs import automatic, state
from jaxinvert.jobs.attacker import Program, Traced
from jaxinvert.jobs.config import JobConfig
from jaxinvert.jobs.identity import job_name
from jaxinvert.jobs.streams import Stream, stream
from jaxinvert.observation.observe import require
from jaxinvert.search import Progress
from jaxinvert.types import Key, Observation, Reconstruction


class Execution(NamedTuple):
    """The result of a finished or interrupted attack, before comparison with the truth.

    `seconds_start` is the time before the first step, not included in `seconds_run`. Lanes are distributed over
    `num_devices`, with `chunk_size` lanes at once on each; a closed form has no lanes. `choice` describes the choice
    of the attack `auto` and its reason. `reported` lists the keys of `info` for the record of every target.
    """

    reconstructions: Reconstruction
    num_steps: int
    seconds_compile: float
    seconds_run: float
    interrupted: bool
    history: dict[str, np.ndarray]
    num_devices: int = 1
    chunk_size: int | None = None
    choice: str | None = None
    seconds_start: float = 0.0
    reported: tuple[str, ...] = ()


def execute(
    config: JobConfig,
    program: Program,
    observations: Observation,
    *,
    on_progress: Callable[[Progress], None] = lambda progress: None,
    report_every: int | None = None,
    state_folder: Path | None = None,
    state_role: str = "",
) -> Execution:
    """Attacks the observations, after restoring labels if the job requires it.

    An interrupt ends the search and returns the best iterates so far.

    Args:
      config: the job.
      program: the job's compiled attack.
      observations: everything the attacker sees; the truth is not an argument.
      on_progress: called after every report.
      report_every: steps between reports; by default about one second.
      state_folder: folder for the search state, saved every minute and when interrupted. The same job resumes from it
        and reaches the same result. A damaged state is not used, and a state that cannot be saved ends no search:
        both are a `files.KeptFileWarning`. Call `forget_state` once the result is saved.
      state_role: tells searches of the same job apart, whose states are in different folders.

    Raises:
      ValueError: if the attack does not fit the model.
    """
    place = None if state_folder is None else state.Place(state_folder, _state_name(config), state_role)

    def search() -> Execution:
        return _searched(config, program, observations, on_progress, report_every, place)

    if config.attacker.attack == automatic.AUTO:
        return _automatic(config, program, observations, search)
    if not program.iterates:
        return _solve(program, *search_arguments(config, program, observations))
    return search()


def _automatic(
    config: JobConfig, program: Program, observations: Observation, search: Callable[[], Execution]
) -> Execution:
    """The attack `auto`: tries a closed form if one may be exact, then searches if it leaves updates unexplained."""
    closed_form, reason = automatic.choose(config, observations, program.model.input_shape, program.model.task)
    search_name = automatic.search_in_words(config)
    if closed_form is None:
        return search()._replace(choice=f"{search_name} ({reason})")
    job = automatic.closed_form_job(config, closed_form)
    arguments = search_arguments(job, program, observations)
    closed = program.by_closed_form(closed_form)
    exact = _solve(closed, *arguments)
    solved = automatic.explained(
        closed.shares_explained, arguments[1], exact.reconstructions, task=program.model.task
    )
    choice = f"{closed_form} ({reason}) explains {solved.sum()} of {len(solved)} updates"
    if solved.all():
        return exact._replace(choice=choice)
    searched = search()
    return searched._replace(
        reconstructions=automatic.merged(exact.reconstructions, searched.reconstructions, solved),
        seconds_compile=exact.seconds_compile + searched.seconds_compile,
        seconds_run=exact.seconds_run + searched.seconds_run,
        choice=f"{choice}; {search_name} for {'the others' if solved.any() else 'all'}",
        reported=(*searched.reported, "closed_form"),
    )


def _searched(
    config: JobConfig,
    program: Program,
    observations: Observation,
    on_progress: Callable[[Progress], None],
    report_every: int | None,
    place: state.Place | None,
) -> Execution:
    """Runs an iterative attack, see `execute`."""
    arguments = search_arguments(config, program, observations)
    search = program.search()
    kept = place and state.find(place, search.form(*arguments))
    reports = [*zip(kept.steps, kept.best_loss)] if kept else []
    options = {"num_steps": config.search.steps, "report_every": report_every}
    progress, last_kept = None, time.monotonic()

    def keep(progress: Progress) -> None:
        if place is not None:
            state.keep(place, state.Kept(progress.resumable, *map(np.stack, zip(*reports))))

    try:
        for progress in search(*arguments, **options, resume=kept.resumable if kept else None):
            reports.append((progress.step, progress.best_loss))
            on_progress(progress)
            if time.monotonic() - last_kept > _SECONDS_BETWEEN_STATES:
                keep(progress)
                last_kept = time.monotonic()
    except KeyboardInterrupt:
        if progress is None:  # nothing was computed yet
            raise
    assert progress is not None
    interrupted = progress.step < config.search.steps
    with files.uninterruptible():
        reconstructions = jax.block_until_ready(progress.reconstruct())
        if interrupted:
            keep(progress)
    steps, losses = zip(*reports)
    return Execution(
        reconstructions=reconstructions,
        num_steps=progress.step,
        seconds_compile=search.seconds_compile,
        seconds_run=progress.seconds,
        seconds_start=search.seconds_start,
        interrupted=interrupted,
        history={"step": np.array(steps), "best_loss": np.stack(losses)},
        num_devices=config.search.devices or 1,
        chunk_size=search.lanes_side_by_side(observations),
        reported=_reported(program),
    )


def execute_jobs(
    configs: Sequence[JobConfig],
    program: Program,
    observations: Sequence[Observation],
    *,
    on_progress: Callable[[Progress], None] = lambda progress: None,
) -> list[Execution]:
    """Attacks the observations of jobs that share a program and a number of steps, as lanes of one compiled call.

    Losses are reported at fixed steps, so repeated executions are bitwise equal. An interrupt is raised.

    Args:
      configs: `J` jobs.
      program: their shared program.
      observations: the observations of each job.
      on_progress: called after every report.
    """
    num_steps = configs[0].search.steps
    report_every = max(1, -(-num_steps // _REPORTS_PER_JOB))
    if not program.joins_jobs:
        alone = []
        for j, (config, seen) in enumerate(zip(configs, observations)):
            if j and config is configs[j - 1]:  # a repeated job that pads the batch
                alone.append(alone[-1])
                continue
            alone.append(execute(config, program, seen, on_progress=on_progress, report_every=report_every))
            if alone[-1].interrupted:
                raise KeyboardInterrupt
        return alone
    search, steps, losses, progress = program.search(len(configs)), [], [], None
    arguments = _side_by_side(configs, program, observations)
    for progress in search(*arguments, num_steps=num_steps, report_every=report_every):
        steps.append(progress.step)
        losses.append(progress.best_loss)
        on_progress(progress)
    assert progress is not None
    reconstructions = jax.block_until_ready(progress.reconstruct())
    return [
        Execution(
            reconstructions=jax.tree.map(lambda leaf, j=j: leaf[j], reconstructions),
            num_steps=progress.step,
            seconds_compile=search.seconds_compile / len(configs),
            seconds_run=progress.seconds / len(configs),
            seconds_start=search.seconds_start / len(configs),
            interrupted=False,
            history={"step": np.array(steps), "best_loss": np.stack(losses)[:, j]},
            chunk_size=search.lanes_side_by_side(arguments[1]),
            reported=_reported(program),
        )
        for j in range(len(configs))
    ]


def peak_bytes(configs: Sequence[JobConfig], program: Program, observations: Sequence[Observation]) -> int:
    """Peak memory of the program that `execute_jobs` runs, in bytes; 0 for closed forms. Compiles the program."""
    if not program.iterates:
        return 0
    if not program.joins_jobs:  # one job after the other
        return program.search().peak_bytes(*search_arguments(configs[0], program, observations[0]))
    return program.search(len(configs)).peak_bytes(*_side_by_side(configs, program, observations))


_REPORTS_PER_JOB = 20
_SECONDS_BETWEEN_STATES = 60.0


def _side_by_side(
    configs: Sequence[JobConfig], program: Program, observations: Sequence[Observation]
) -> tuple[Key, Observation, Traced]:
    """Keys, observations and traced numbers of several jobs, stacked."""
    ready = [_with_restored_labels(config, program, seen) for config, seen in zip(configs, observations)]
    if "surrogate" not in program.config.needs:  # only the label rule read it; too large to copy for every job
        ready = [seen._replace(surrogate=None) for seen in ready]
    jobs = [(_key(config), seen, _traced(config, seen)) for config, seen in zip(configs, ready)]
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *jobs)


def forget_state(state_folder: Path, config: JobConfig) -> None:
    """Deletes the search state that `execute` saved for a job."""
    state.forget(state.Place(state_folder, _state_name(config)))


def _state_name(config: JobConfig) -> str:
    """The job's name without its chunk size, which may differ when resuming."""
    return job_name(config.replace(chunk=None))


def search_arguments(config: JobConfig, program: Program, observations: Observation) -> tuple:
    """The arguments of `program.search()`: key, observations and traced numbers."""
    return _key(config), _with_restored_labels(config, program, observations), _traced(config, observations)


def _key(config: JobConfig) -> Key:
    """The attack's key, from which it draws its starts."""
    return stream(config.seed, Stream.STARTS)


def _traced(config: JobConfig, observations: Observation) -> Traced:
    """The numbers that are arguments of the compiled attack; the defense's parameters are the observed ones."""
    attacker = config.attacker
    known = require(observations, "defense", attack=f"adaptive {attacker.attack}") if attacker.adaptive else {}
    return Traced(attacker.hyperparameters, config.search.steps, known)


def _with_restored_labels(config: JobConfig, program: Program, observations: Observation) -> Observation:
    """Adds labels restored from the updates, if the job requires it; ascending within each batch."""
    if config.attacker.labels != "restored":
        return observations
    key = stream(config.seed, Stream.LABEL_DUMMIES)
    return observations._replace(labels=program.restore_labels(key, observations))


def _solve(program: Program, key: Key, observations: Observation, traced: Traced) -> Execution:
    arguments = (key, observations, traced.hyperparameters)
    begin = time.perf_counter()
    program.solve.lower(*arguments).compile()  # jax caches it for the call below
    seconds_compile = time.perf_counter() - begin
    begin = time.perf_counter()
    reconstructions = jax.block_until_ready(program.solve(*arguments))
    seconds_run = time.perf_counter() - begin
    return Execution(
        reconstructions,
        num_steps=0,
        seconds_compile=seconds_compile,
        seconds_run=seconds_run,
        interrupted=False,
        history={},
        reported=program.config.attacker.entry.traits.reports,
    )


def _reported(program: Program) -> tuple[str, ...]:
    """The keys of `info` recorded for every target: the best restart, all restarts' losses, and declared reports."""
    return ("winner", "restart_losses", *program.config.attacker.entry.traits.reports)
