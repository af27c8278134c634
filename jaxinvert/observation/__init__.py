"""What the server sees of a client: `observe`, threat models that restrict it, and updates captured in files."""

from jaxinvert.observation import captures, threat_models
from jaxinvert.observation.observe import (
    FEDSGD,
    check_batch,
    check_update,
    observe,
    observe_targets,
    require,
)
from jaxinvert.observation.threat_models import ThreatModel

__all__ = [
    "FEDSGD",
    "ThreatModel",
    "captures",
    "check_batch",
    "check_update",
    "observe",
    "observe_targets",
    "require",
    "threat_models",
]
