"""Recognizes networks of other libraries by their type, without importing a library that is not in use."""

import sys
from typing import Any

from flax import linen

from jaxinvert.models.adapters.equinox import from_equinox
from jaxinvert.models.adapters.haiku import from_haiku
from jaxinvert.models.adapters.keras import from_keras
from jaxinvert.models.adapters.nnx import from_nnx
from jaxinvert.models.adapters.pytorch import from_torch
from jaxinvert.models.model import Model, from_linen

_ADAPTERS = {
    "Flax module": from_linen,
    "Flax NNX module": from_nnx,
    "PyTorch module": from_torch,
    "Haiku transform": from_haiku,
    "Equinox module": from_equinox,
    "Keras model": from_keras,
}


def kind_of(network: Any) -> str | None:
    """The library's word for a network, such as "PyTorch module"; `None` for anything else."""
    if isinstance(network, linen.Module):
        return "Flax module"
    if _is_instance(network, "flax.nnx", "Module"):
        return "Flax NNX module"
    if _is_instance(network, "torch.nn", "Module"):
        return "PyTorch module"
    if _is_instance(network, "haiku", "Transformed") or _is_instance(network, "haiku", "TransformedWithState"):
        return "Haiku transform"
    if _is_instance(network, "keras", "Model"):
        return "Keras model"
    with_state = isinstance(network, tuple) and len(network) == 2 and _is_instance(network[1], "equinox.nn", "State")
    if _is_instance(network[0] if with_state else network, "equinox", "Module"):
        return "Equinox module"
    return None


def adapted(network: Any, **options: Any) -> Model:
    """The model of a network that `kind_of` recognizes; options are those of its `from_...` function.

    Raises:
      ValueError: see the library's function.
    """
    kind = kind_of(network)
    assert kind is not None
    return _ADAPTERS[kind](network, **options)


def _is_instance(value: Any, module: str, name: str) -> bool:
    """Whether `value` is of a class of a library; an instance exists only if the library was imported."""
    kind = getattr(sys.modules.get(module), name, None)
    return isinstance(kind, type) and isinstance(value, kind)
