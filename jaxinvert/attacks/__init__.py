"""One file per published attack, composed from the shared rooms; `registry` knows them by name."""

from jaxinvert.attacks.inverting_gradients import inverting_gradients

__all__ = ["inverting_gradients"]
