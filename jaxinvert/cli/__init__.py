"""The command line: `jaxinvert COMMAND`, see `commands` for all of them."""

import importlib
from typing import TYPE_CHECKING, Any

from jaxinvert.cli.main import main, run

if TYPE_CHECKING:
    from jaxinvert.cli.invert import command_line, invert_and_write

__all__ = ["command_line", "invert_and_write", "main", "run"]


def __getattr__(name: str) -> Any:
    """Imports what needs JAX at its first use, so that `jaxinvert --help` is quick."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module("jaxinvert.cli.invert"), name)
