"""One job: from names and numbers to measured reconstructions. The edge where configuration becomes functions."""

from jaxinvert.job.config import JobConfig
from jaxinvert.job.environment import device_name, uninterruptible
from jaxinvert.job.identity import job_name
from jaxinvert.job.program import Program, compiled_form
from jaxinvert.job.stages import (
    Execution,
    Outcome,
    Setup,
    Task,
    execute,
    execute_jobs,
    measure,
    peak_bytes,
    prepare,
    set_up,
)

__all__ = [
    "Execution",
    "JobConfig",
    "Outcome",
    "Program",
    "Setup",
    "Task",
    "compiled_form",
    "device_name",
    "execute",
    "execute_jobs",
    "job_name",
    "measure",
    "peak_bytes",
    "prepare",
    "set_up",
    "uninterruptible",
]
