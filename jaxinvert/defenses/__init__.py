"""What a client does to its update before it is sent: `(key, update) -> update`, pure; `chain` composes them.

Some need more than the update and wrap what the client computes: `soteria` here, `clients.dp_fedsgd`. `registry` has
all of them by name, each with the attacker that adapts to it.
"""

from jaxinvert.defenses.clipping import clipped
from jaxinvert.defenses.composition import chain, identity
from jaxinvert.defenses.noise import (
    dp_noise_scale,
    gaussian_noise,
    laplace_noise,
    percentile_noise,
    percentile_noise_spread,
)
from jaxinvert.defenses.quantization import qsgd, qsgd_step, sign
from jaxinvert.defenses.representation import soteria
from jaxinvert.defenses.sparsification import percentile_privacy, random_k, top_k, top_k_of_tensors
from jaxinvert.defenses.weights import row_noise, smallest_weights_zeroed

__all__ = [
    "chain",
    "clipped",
    "dp_noise_scale",
    "gaussian_noise",
    "identity",
    "laplace_noise",
    "percentile_noise",
    "percentile_noise_spread",
    "percentile_privacy",
    "qsgd",
    "qsgd_step",
    "random_k",
    "row_noise",
    "sign",
    "smallest_weights_zeroed",
    "soteria",
    "top_k",
    "top_k_of_tensors",
]
