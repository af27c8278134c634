"""One job: from names and numbers to measured reconstructions. The edge where configuration becomes functions."""

from jaxinvert.job.config import JobConfig
from jaxinvert.job.environment import device_name, uninterruptible
from jaxinvert.job.stages import Execution, Outcome, Task, execute, measure, prepare

__all__ = [
    "Execution",
    "JobConfig",
    "Outcome",
    "Task",
    "device_name",
    "execute",
    "measure",
    "prepare",
    "uninterruptible",
]
