"""One job: from names and numbers to measured reconstructions. The edge where configuration becomes functions.

`prepare` draws a model and simulates the clients; `execute` attacks what they sent, looking only at the
observations; `measure` is where truth and reconstruction meet, after the attack has ended. Jobs that differ only in
numbers share a `Setup`, and are executed side by side by `execute_jobs`.
"""

from jaxinvert.job.config import JobConfig, assumptions
from jaxinvert.job.environment import device_name, uninterruptible, versions
from jaxinvert.job.execution import Execution, execute, execute_jobs, forget_state, peak_bytes
from jaxinvert.job.fields import read_yaml, typed
from jaxinvert.job.identity import digest, job_name
from jaxinvert.job.measurement import Outcome, measure
from jaxinvert.job.planning import ChunkCost, chunk_costs, fastest
from jaxinvert.job.preparation import Setup, Task, adjusted, prepare, set_up
from jaxinvert.job.program import Program, compiled_form
from jaxinvert.job.simulation import sent_update

__all__ = [
    "ChunkCost",
    "Execution",
    "JobConfig",
    "Outcome",
    "Program",
    "Setup",
    "Task",
    "adjusted",
    "assumptions",
    "chunk_costs",
    "compiled_form",
    "device_name",
    "digest",
    "execute",
    "execute_jobs",
    "fastest",
    "forget_state",
    "job_name",
    "measure",
    "peak_bytes",
    "prepare",
    "read_yaml",
    "sent_update",
    "set_up",
    "typed",
    "uninterruptible",
    "versions",
]
