"""The attacker's prior knowledge about images: regularizers, parametrizations, learned generators."""

from jaxinvert.priors import bases, dead_leaves, generators, parametrizations, regularizers

__all__ = ["bases", "dead_leaves", "generators", "parametrizations", "regularizers"]
