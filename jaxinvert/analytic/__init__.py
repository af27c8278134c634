"""Closed-form and algebraic attacks: what linear algebra says about an update, without a search."""

from jaxinvert.analytic.dense import dense_layer

__all__ = ["dense_layer"]
