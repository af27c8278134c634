"""What the attacker knows of images before it sees an update: regularizers, parametrizations, learned generators."""

from jaxinvert.priors import bases, dead_leaves, generators, parametrizations, regularizers

__all__ = ["bases", "dead_leaves", "generators", "parametrizations", "regularizers"]
