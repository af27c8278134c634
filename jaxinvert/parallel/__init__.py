"""Parallel execution of a search: how many lanes run side by side (`lanes`), and on which devices (`devices`)."""

from jaxinvert.parallel import devices, lanes

__all__ = ["devices", "lanes"]
