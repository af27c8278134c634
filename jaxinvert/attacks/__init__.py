"""One file per published attack, composed from the shared rooms; `registry` knows them by name."""

from jaxinvert.attacks.batch_norm_leakage import batch_norm_leakage
from jaxinvert.attacks.cocktail_party_features import cocktail_party_features
from jaxinvert.attacks.deep_leakage_from_model import best_scale, dlm, dlm_plus, dlm_with_best_scale
from jaxinvert.attacks.dlg import dlg, idlg
from jaxinvert.attacks.general_deep_leakage import general_deep_leakage
from jaxinvert.attacks.gias import gias, latent_search, latents_then_weights, weight_search
from jaxinvert.attacks.inverting_gradients import inverting_gradients
from jaxinvert.attacks.see_through_gradients import see_through_gradients
from jaxinvert.attacks.spectral import spectral
from jaxinvert.attacks.tableak import tableak

__all__ = [
    "batch_norm_leakage",
    "best_scale",
    "cocktail_party_features",
    "dlg",
    "dlm",
    "dlm_plus",
    "dlm_with_best_scale",
    "general_deep_leakage",
    "gias",
    "idlg",
    "inverting_gradients",
    "latent_search",
    "latents_then_weights",
    "see_through_gradients",
    "spectral",
    "tableak",
    "weight_search",
]
