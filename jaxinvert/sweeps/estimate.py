"""Estimates time and memory of a sweep from a few measured steps of each of its programs."""

from collections.abc import Iterator
from typing import NamedTuple

from jaxinvert import jobs as jobs
from jaxinvert.sweeps.plan import Batch, Plan

_SECONDS_TO_MEASURE = 1.0


class Estimate(NamedTuple):
    """Estimated cost of one program of a sweep.

    Attributes:
      attack: name of the attack.
      model: name of the model.
      num_jobs: number of jobs.
      num_batches: number of calls of the program.
      width: jobs per call.
      peak_bytes: peak memory, including arguments and results; 0 if unknown.
      num_traces: how often the attack was traced over several calls; should be 1.
      seconds_compile: measured compilation time.
      seconds_per_step: measured time per step of a whole batch; for a closed form, the time of its solution.
      seconds: estimated time for compilation and all batches.
    """

    attack: str
    model: str
    num_jobs: int
    num_batches: int
    width: int
    peak_bytes: int
    num_traces: int
    seconds_compile: float
    seconds_per_step: float
    seconds: float


def estimate(plan: Plan) -> Iterator[Estimate]:
    """Compiles every program of a sweep and times a few of its steps.

    Raises:
      ValueError: if a job cannot be prepared.
    """
    for batches in plan.batches_by_program:
        yield _measured(batches)


def _measured(batches: list[Batch]) -> Estimate:
    first = batches[0]
    config = first.jobs[0].config
    setup = jobs.set_up(config)
    lanes = [*first.jobs, *[first.jobs[-1]] * (first.width - len(first.jobs))]
    seen = [jobs.prepare(one.config, setup).observations for one in lanes]

    def execute(steps: int) -> jobs.Execution:
        configs = [one.config.replace(steps=min(steps, one.config.search.steps)) for one in lanes]
        return jobs.execute_jobs(configs, setup.program, seen)[0]

    def per_evaluation(execution: jobs.Execution) -> float:
        return execution.seconds_run * first.width / (execution.num_steps + 1)

    compiled = execute(1)
    seconds_compile = compiled.seconds_compile * (first.width if setup.program.joins_jobs else 1)
    per_step = per_evaluation(execute(2))
    steps = int(_SECONDS_TO_MEASURE / max(per_step, 1e-6))
    takes_steps = compiled.num_steps > 0
    if takes_steps and steps > 2:
        per_step = per_evaluation(execute(steps))
    evaluations = sum(batch.jobs[0].config.search.steps + 1 if takes_steps else 1 for batch in batches)
    num_traces = setup.program.num_traces
    return Estimate(
        attack=config.attacker.attack,
        model=config.model.name,
        num_jobs=sum(len(batch.jobs) for batch in batches),
        num_batches=len(batches),
        width=first.width,
        peak_bytes=jobs.peak_bytes([one.config for one in lanes], setup.program, seen),
        num_traces=num_traces,
        seconds_compile=seconds_compile,
        seconds_per_step=per_step,
        seconds=seconds_compile + compiled.seconds_start * first.width * len(batches) + per_step * evaluations,
    )
