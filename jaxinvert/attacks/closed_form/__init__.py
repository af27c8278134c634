"""Closed-form and algebraic attacks: reconstruction from an update by linear algebra, without iterative search."""

from jaxinvert.attacks.closed_form.april import april, patch_embedding
from jaxinvert.attacks.closed_form.cocktail_party import cocktail_party
from jaxinvert.attacks.closed_form.dager import dager
from jaxinvert.attacks.closed_form.dense import dense_layer
from jaxinvert.attacks.closed_form.dense_chain import dense_chain
from jaxinvert.attacks.closed_form.known_patches import known_patches
from jaxinvert.attacks.closed_form.rank import rank_report
from jaxinvert.attacks.closed_form.rgap import rgap
from jaxinvert.attacks.closed_form.spear import exact_batch, spear

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
