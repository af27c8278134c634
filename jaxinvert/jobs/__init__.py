"""One job: from names and numbers to measured reconstructions. The edge where configuration becomes functions.

`prepare` draws a model and simulates the clients; `execute` attacks what they sent, looking only at the
observations; `measure` is where truth and reconstruction meet, after the attack has ended. Jobs that differ only in
numbers share a `Setup`, and are executed side by side by `execute_jobs`.
"""

from jaxinvert.jobs.assumptions import assumptions
from jaxinvert.jobs.attacker import Program, compiled_form
from jaxinvert.jobs.config import JobConfig
from jaxinvert.jobs.deployment import sent_update
from jaxinvert.jobs.environment import device_name, uninterruptible, versions
from jaxinvert.jobs.execute import Execution, execute, execute_jobs, forget_state, peak_bytes
from jaxinvert.jobs.identity import digest, job_name
from jaxinvert.jobs.measure import Outcome, measure
from jaxinvert.jobs.planning import ChunkCost, chunk_costs, fastest
from jaxinvert.jobs.prepare import Setup, Task, adjusted, prepare, set_up
from jaxinvert.jobs.yaml_fields import read_yaml, typed

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
