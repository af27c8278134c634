"""Networks of other libraries as a `Model`. A library is imported when its function is called, not before."""

from jaxinvert.models.adapters.equinox import from_equinox
from jaxinvert.models.adapters.haiku import from_haiku
from jaxinvert.models.adapters.keras import from_keras
from jaxinvert.models.adapters.nnx import from_nnx
from jaxinvert.models.adapters.pytorch import from_torch

__all__ = ["from_equinox", "from_haiku", "from_keras", "from_nnx", "from_torch"]
