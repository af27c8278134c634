"""`run` computes a sweep, in this process or on a Ray cluster; records and batches are the same on both."""

import math
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from jaxinvert import files, search
from jaxinvert import jobs as jobs
from jaxinvert.jobs.environment import device_name
from jaxinvert.sweeps import records
from jaxinvert.sweeps.plan import Batch, Job, Plan
from jaxinvert.sweeps.records import Record


class Computed(NamedTuple):
    """The result of a batch.

    Attributes:
      records: records of the jobs that succeeded.
      failures: the other jobs, with their tracebacks.
      log: seconds, device and similar information.
    """

    records: list[Record]
    failures: list[tuple[Job, str]]
    log: dict[str, Any]


class Finished(NamedTuple):
    """A report of a running sweep.

    Attributes:
      done: number of jobs with a record, including earlier runs.
      failed: number of jobs that failed in this run.
      total: number of all jobs.
      log: log of the batch just finished; empty in the first report.
    """

    done: int
    failed: int
    total: int
    log: dict[str, Any]


OnProgress = Callable[[Batch, search.Progress], None]
Engine = Callable[[Iterable[Batch]], Iterator[tuple[Batch, Computed]]]
"""Computes batches in any order."""


def run(plan: Plan, folder: Path | str, *, engine: Engine | None = None) -> Iterator[Finished]:
    """Computes the missing batches of a sweep and records every job as soon as its batch is done.

    A batch is recomputed as a whole if any of its jobs lacks a complete record. A sweep that is killed at any time
    loses at most the batches in flight. The next call retries failed jobs.

    Args:
      plan: the sweep.
      folder: folder for its records; records of earlier runs are kept.
      engine: by default `in_process()`.

    Yields:
      A report at the start and after every batch.

    Raises:
      OSError: if a record cannot be written; earlier records are kept.
      ValueError: if another process computes the same sweep, or the folder holds records of another one.
    """
    folder = Path(folder)
    with files.alone_in(folder, "records", "failures"):
        yield from _run(plan, folder, engine or in_process())


def _run(plan: Plan, folder: Path, engine: Engine) -> Iterator[Finished]:
    records.refuse_another_sweep(folder, plan)
    records.write_plan_file(folder, plan)
    recorded, damaged = records.recorded(folder, [job.name for job in plan.jobs])
    records.warn_of_damage(damaged, "computed again")
    missing = [batch for batch in plan.batches if any(job.name not in recorded for job in batch.jobs)]
    failed: set[str] = set()
    yield Finished(len(recorded), 0, len(plan.jobs), {})
    for _, computed in engine(missing):
        for record in computed.records:
            if record.name not in recorded:
                records.write_record(folder, record)
                recorded.add(record.name)
        for failure, trace in computed.failures:
            if failure.name not in recorded:
                records.write_failure(folder, failure, trace)
                failed.add(failure.name)
        records.append_log(folder, computed.log)
        yield Finished(len(recorded), len(failed), len(plan.jobs), computed.log)


def in_process(on_progress: OnProgress = lambda batch, progress: None) -> Engine:
    """Returns an engine that computes batches one after the other in this process.

    Args:
      on_progress: called about twenty times per batch.
    """

    def compute_all(batches: Iterable[Batch]) -> Iterator[tuple[Batch, Computed]]:
        bench = Bench()
        for batch in batches:
            yield batch, bench.compute(batch, on_progress)

    return compute_all


def on_ray(address: str | None = None, *, cpus: float | None = None, gpus: float = 0, retries: int = 3) -> Engine:
    """Returns an engine that computes batches as tasks on a Ray cluster.

    Args:
      address: address of the cluster; by default from the environment, else a cluster on this machine.
      cpus: CPUs per task; by default all CPUs of the smallest machine, so that a machine runs one task at a time.
      gpus: GPUs per task.
      retries: retries of a task whose worker died.

    Raises:
      ValueError: if Ray is not installed, or later if no machine has enough CPUs and GPUs.
    """
    if not (cpus is None or 0 < cpus < math.inf) or not 0 <= gpus < math.inf:
        raise ValueError(f"cpus is {cpus} and gpus is {gpus}, expected a positive number and at least 0")
    try:
        import ray  # pyright: ignore[reportMissingImports] (an extra)
        from ray.exceptions import RayError  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ValueError("the engine 'ray' needs Ray: pip install 'jaxinvert[ray]'") from error

    def compute_all(batches: Iterable[Batch]) -> Iterator[tuple[Batch, Computed]]:
        started = not ray.is_initialized()
        if started:
            ray.init(address=address, log_to_driver=False, include_dashboard=False)
        try:
            machines = [node["Resources"] for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]
            needed = {"CPU": cpus or min(machine["CPU"] for machine in machines), "GPU": gpus}
            if not any(
                all(machine.get(kind, 0) >= number for kind, number in needed.items()) for machine in machines
            ):
                raise ValueError(f"no machine of the Ray cluster has {needed['CPU']:g} CPUs and {gpus:g} GPUs")
            remote = ray.remote(num_cpus=needed["CPU"], num_gpus=gpus, max_retries=retries, max_calls=0)(
                _compute_on_worker
            )
            waiting = {remote.remote(batch): batch for batch in batches}
            while waiting:
                (ready,), _ = ray.wait(list(waiting), num_returns=1)
                batch = waiting.pop(ready)
                try:
                    computed = ray.get(ready)
                except RayError as error:
                    computed = Computed(
                        [],
                        [(job, str(error)) for job in batch.jobs],
                        {"jobs": [job.name for job in batch.jobs], "failed": len(batch.jobs), "worker_lost": True},
                    )
                yield batch, computed
        finally:
            if started:
                ray.shutdown()

    return compute_all


class Bench:
    """Computes batches and reuses the last program and data for the next batch."""

    def __init__(self) -> None:
        self._form: jobs.JobConfig | None = None
        self._setup: jobs.Setup | None = None

    def compute(self, batch: Batch, on_progress: OnProgress = lambda batch, progress: None) -> Computed:
        """Computes a batch; exceptions become failures of the job or of the batch."""
        begin = time.time()
        tasks: dict[str, jobs.Task] = {}
        failures: list[tuple[Job, str]] = []
        for job in batch.jobs:
            try:
                tasks[job.name] = jobs.prepare(job.config, self._setup_for(job.config))
            except Exception:
                failures.append((job, traceback.format_exc()))
        found: list[Record] = []
        try:
            found = _attack(batch, tasks, on_progress) if tasks else []
        except Exception:
            failures += [(job, traceback.format_exc()) for job in batch.jobs if job.name in tasks]
        log = {
            "begin": begin,
            "seconds": time.time() - begin,
            "jobs": [job.name for job in batch.jobs],
            "failed": len(failures),
            "programs_traced": next(iter(tasks.values())).program.num_traces if tasks else 0,
            "device": device_name(),
        }
        return Computed(found, failures, log)

    def _setup_for(self, config: jobs.JobConfig) -> jobs.Setup:
        form = jobs.compiled_form(config)
        if self._setup is None or form != self._form:
            self._form, self._setup = form, jobs.set_up(config)
        return self._setup


def _attack(batch: Batch, tasks: dict[str, jobs.Task], on_progress: OnProgress) -> list[Record]:
    """Attacks and measures the jobs that have a task.

    Every job keeps its own lane even if others failed; lanes without a task are filled with another job's, so that no
    new shape is compiled.
    """
    ready = [job for job in batch.jobs if job.name in tasks]
    lanes = [job if job.name in tasks else ready[-1] for job in batch.jobs]
    lanes += [ready[-1]] * (batch.width - len(lanes))
    executions = jobs.execute_jobs(
        [job.config for job in lanes],
        tasks[ready[0].name].program,
        [tasks[job.name].observations for job in lanes],
        on_progress=lambda progress: on_progress(batch, progress),
    )
    outcome = {
        job.name: jobs.measure(job.config, tasks[job.name], execution) for job, execution in zip(lanes, executions)
    }
    return [records.make_record(job, outcome[job.name], batch_size=batch.width) for job in ready]


_BENCH = Bench()


def _compute_on_worker(batch: Batch) -> Computed:
    """A Ray task; a worker keeps its `Bench` between tasks."""
    digests: dict[Path, str] = {}
    for job in batch.jobs:
        if jobs.job_name(job.config, digests) != job.name:
            raise ValueError("this worker has other files or package versions than the planner of the sweep")
    return _BENCH.compute(batch)
