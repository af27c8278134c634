"""Closed-form and algebraic attacks: what linear algebra says about an update, without a search."""

from jaxinvert.analytic.april import april, patch_embedding
from jaxinvert.analytic.cocktail_party import cocktail_party
from jaxinvert.analytic.dager import dager
from jaxinvert.analytic.dense import dense_layer
from jaxinvert.analytic.dense_chain import dense_chain
from jaxinvert.analytic.known_patches import known_patches
from jaxinvert.analytic.rank import rank_report
from jaxinvert.analytic.rgap import rgap
from jaxinvert.analytic.spear import exact_batch, spear

__all__ = [
    "april",
    "cocktail_party",
    "dager",
    "dense_chain",
    "dense_layer",
    "exact_batch",
    "known_patches",
    "patch_embedding",
    "rank_report",
    "rgap",
    "spear",
]
