"""Iterative attacks, which search for the private batch by an optimizer: one file per published attack."""

from jaxinvert.attacks.optimization.batch_norm_leakage import batch_norm_leakage
from jaxinvert.attacks.optimization.cocktail_party_features import cocktail_party_features
from jaxinvert.attacks.optimization.deep_leakage_from_model import best_scale, dlm, dlm_best_scale, dlm_plus
from jaxinvert.attacks.optimization.dlg import dlg, idlg
from jaxinvert.attacks.optimization.fedavg_epochs import fedavg_epochs
from jaxinvert.attacks.optimization.fedleak import fedleak
from jaxinvert.attacks.optimization.general_deep_leakage import general_deep_leakage
from jaxinvert.attacks.optimization.gias import gias, gias_in_two_searches, gias_latents, gias_weights
from jaxinvert.attacks.optimization.inverting_gradients import inverting_gradients
from jaxinvert.attacks.optimization.lamp import lamp
from jaxinvert.attacks.optimization.see_through_gradients import see_through_gradients
from jaxinvert.attacks.optimization.spectral import spectral
from jaxinvert.attacks.optimization.surrogate_curve import surrogate_curve
from jaxinvert.attacks.optimization.surrogate_model import surrogate_model
from jaxinvert.attacks.optimization.tableak import tableak, tableak_member
from jaxinvert.attacks.optimization.tag import tag
from jaxinvert.attacks.optimization.tiger import tiger
from jaxinvert.attacks.optimization.whitened import whitened

__all__ = [
    "batch_norm_leakage",
    "best_scale",
    "cocktail_party_features",
    "dlg",
    "dlm",
    "dlm_best_scale",
    "dlm_plus",
    "fedavg_epochs",
    "fedleak",
    "general_deep_leakage",
    "gias",
    "gias_in_two_searches",
    "gias_latents",
    "gias_weights",
    "idlg",
    "inverting_gradients",
    "lamp",
    "see_through_gradients",
    "spectral",
    "surrogate_curve",
    "surrogate_model",
    "tableak",
    "tableak_member",
    "tag",
    "tiger",
    "whitened",
]
