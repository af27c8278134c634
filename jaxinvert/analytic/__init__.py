"""Closed-form and algebraic attacks: what linear algebra says about an update, without a search."""

from jaxinvert.analytic.april import april, patch_embedding
from jaxinvert.analytic.cocktail_party import cocktail_party
from jaxinvert.analytic.dense import dense_layer
from jaxinvert.analytic.rank import rank_report
from jaxinvert.analytic.rgap import rgap
from jaxinvert.analytic.spear import exact_batch, spear

__all__ = ["cocktail_party", "dense_layer", "exact_batch", "rank_report", "rgap", "spear"]
