"""Jobs: run one configured attack from its configuration to measured reconstructions.

`prepare` initializes a model and simulates the clients; `execute` attacks the observations and reads nothing else;
`measure` compares reconstructions with the truth after the attack has ended. Jobs that differ only in numeric fields
share a `Setup`, and `execute_jobs` runs them as lanes of one program.
"""

from jaxinvert.files import uninterruptible
from jaxinvert.jobs.assumptions import assumptions, realism_in_words
from jaxinvert.jobs.attacker import Program, compiled_form
from jaxinvert.jobs.automatic import not_a_sum_of_gradients
from jaxinvert.jobs.config import JobConfig
from jaxinvert.jobs.deployment import Clients, Deployment, deployment_of
from jaxinvert.jobs.environment import device_name, versions
from jaxinvert.jobs.execute import Execution, execute, execute_jobs, forget_state, peak_bytes
from jaxinvert.jobs.groups import AttackerConfig, DataConfig
from jaxinvert.jobs.identity import digest, job_name
from jaxinvert.jobs.measure import Outcome, measure
from jaxinvert.jobs.planning import ChunkCost, chunk_costs, fastest
from jaxinvert.jobs.prepare import Setup, Task, adjusted, prepare, set_up
from jaxinvert.jobs.realism import Fact, Realism, prior_saw_victims, realism
from jaxinvert.jobs.streams import Stream, stream
from jaxinvert.jobs.yaml_fields import build, flatten, typed
from jaxinvert.readers.yaml_files import read_yaml

__all__ = [
    "AttackerConfig",
    "ChunkCost",
    "Clients",
    "DataConfig",
    "Deployment",
    "Execution",
    "Fact",
    "JobConfig",
    "Outcome",
    "Program",
    "Realism",
    "Setup",
    "Stream",
    "Task",
    "adjusted",
    "assumptions",
    "build",
    "chunk_costs",
    "compiled_form",
    "deployment_of",
    "device_name",
    "digest",
    "execute",
    "execute_jobs",
    "fastest",
    "flatten",
    "forget_state",
    "job_name",
    "measure",
    "not_a_sum_of_gradients",
    "peak_bytes",
    "prepare",
    "prior_saw_victims",
    "read_yaml",
    "realism",
    "realism_in_words",
    "set_up",
    "stream",
    "typed",
    "uninterruptible",
    "versions",
]
