"""General Deep Leakage: counts of labels first, duplicates included, then the images by matching with soft bounds.

    n = zero-shot counts of the classes (jaxinvert.labels.zero_shot)
    minimize over x:   1 - cos(g(x, n), g*)  +  tv TV(x)  +  clip |x - clip(x, 0, 1)|^2

The counts hold for FedAvg as well as for FedSGD, with any distribution of labels.

Jiahui Geng, Yongli Mou, Feifei Li, Qing Li, Oya Beyan, Stefan Decker, Chunming Rong: "Towards General Deep Leakage in
Federated Learning", 2021, arXiv:2110.09074.
"""

import optax

from jaxinvert.attacks import objectives
from jaxinvert.attacks.matching import gradient_matching, with_restored_labels
from jaxinvert.attacks.schedules import step_decay
from jaxinvert.priors import parametrizations, regularizers
from jaxinvert.types import Attack, ClientUpdateFn, Objective, PerChannel, RecoverLabels, Scalar, Shape


def general_deep_leakage(
    client_update: ClientUpdateFn,
    rule: RecoverLabels,
    *,
    batch_shape: Shape,
    mean: PerChannel = 0.0,
    std: PerChannel = 1.0,
    tv: Scalar = 1e-2,
    clip: Scalar = 1e-2,
    learning_rate: Scalar = 0.1,
    horizon: Scalar = 4800,
    objective: Objective = objectives.cosine,
) -> Attack:
    """Returns the attack. What the paper leaves open, the optimizer and the weights, is as in Inverting Gradients.

    Args:
      client_update: the attacker's simulation of the client, FedSGD or FedAvg.
      rule: restores the labels; the paper's is `labels.zero_shot`.
      batch_shape: `(B, H, W, C)`.
      mean: scalar or `[C]`, the normalization that the model applies.
      std: scalar or `[C]`.
      tv: weight of the total variation.
      clip: weight of the soft bounds.
      learning_rate: of Adam, in units of `std`.
      horizon: the number of steps that the learning-rate decay is laid out for.
      objective: distance of the updates.
    """
    std_image = parametrizations.per_channel("std", std, batch_shape)
    attack = gradient_matching(
        client_update,
        objective=objective,
        regularizer=regularizers.weighted(
            (tv, lambda x: regularizers.total_variation(x / std_image)), (clip, regularizers.box)
        ),
        optimizer=optax.adam(step_decay(learning_rate, horizon)),
        parametrization=parametrizations.unconstrained(parametrizations.pixels(batch_shape, mean=mean, std=std)),
        name="general_deep_leakage",
    )
    return with_restored_labels(attack, rule, batch_size=batch_shape[0])
