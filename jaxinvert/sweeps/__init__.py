"""Sweeps: many jobs from one file, with shared compiled programs, one record per job, and resumption after a crash.

    plan = read_plan("sweep.yaml")
    for finished in run(plan, "runs/sweep"):
        print(finished.done, "of", finished.total)
    rows = summarize("runs/sweep")

Calling `run` again computes only the jobs that are missing.
"""

from jaxinvert.sweeps.engines import Engine, Finished, in_process, on_ray, run
from jaxinvert.sweeps.estimate import Estimate, estimate
from jaxinvert.sweeps.plan import Batch, Job, Plan, make_plan, read_plan
from jaxinvert.sweeps.records import Record, failures_of, read_plan_file, read_record, records_of, summarize

__all__ = [
    "Batch",
    "Engine",
    "Estimate",
    "Finished",
    "Job",
    "Plan",
    "Record",
    "estimate",
    "failures_of",
    "in_process",
    "make_plan",
    "on_ray",
    "read_plan",
    "read_plan_file",
    "read_record",
    "records_of",
    "run",
    "summarize",
]
