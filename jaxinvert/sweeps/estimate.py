"""How long a sweep will take and how much memory, measured on a few steps of each of its programs."""

from collections.abc import Iterator
from typing import NamedTuple

from jaxinvert import jobs as jobs
from jaxinvert.sweeps.plan import Batch, Plan

_SECONDS_TO_MEASURE = 1.0


class Estimate(NamedTuple):
    """What one program of a sweep will cost.

    Attributes:
      attack: its name.
      model: its name.
      num_jobs: that it computes.
      num_batches: calls of it.
      width: jobs per call.
      peak_bytes: memory at its peak, arguments and results included; 0 if unknown.
      num_traces: how often the attack was traced for several calls, which should be once.
      seconds_compile: measured.
      seconds_per_step: of a whole batch, measured; of a closed form, to solve it.
      seconds: estimated, for compilation and all batches.
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
