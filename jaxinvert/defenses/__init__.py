"""Defenses: pure functions `(key, update) -> update` that a client applies before it sends its update.

`chain` composes defenses. Some need more than the update: they wrap the client's computation (`soteria`, `mixup`, and
`clients.dp_fedsgd`), change its local gradients (`outpost`) or its network (`with_bottleneck`). `registry` lists all
of them by name, `accounting` computes what DP-SGD guarantees. Attackers that adapt are in `attacks.adaptive`.
"""

from jaxinvert.defenses import accounting, registry
from jaxinvert.defenses.bottleneck import with_bottleneck
from jaxinvert.defenses.clipping import clipped
from jaxinvert.defenses.composition import chain, identity
from jaxinvert.defenses.mixing import mixed, mixup
from jaxinvert.defenses.noise import (
    dp_noise_scale,
    gaussian_noise,
    laplace_noise,
    percentile_noise,
    percentile_noise_spread,
)
from jaxinvert.defenses.outpost import outpost
from jaxinvert.defenses.quantization import qsgd, qsgd_step, sign
from jaxinvert.defenses.representation import soteria
from jaxinvert.defenses.sparsification import percentile_privacy, random_k, top_k, top_k_of_tensors
from jaxinvert.defenses.weights import row_noise, smallest_weights_zeroed

__all__ = [
    "accounting",
    "chain",
    "clipped",
    "dp_noise_scale",
    "gaussian_noise",
    "identity",
    "laplace_noise",
    "mixed",
    "mixup",
    "outpost",
    "percentile_noise",
    "percentile_noise_spread",
    "percentile_privacy",
    "qsgd",
    "qsgd_step",
    "random_k",
    "registry",
    "row_noise",
    "sign",
    "smallest_weights_zeroed",
    "soteria",
    "top_k",
    "top_k_of_tensors",
    "with_bottleneck",
]
