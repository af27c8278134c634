"""General Deep Leakage: restores label counts, including duplicates, then matches gradients with soft pixel bounds.

    n = zero-shot counts of the classes (jaxinvert.labels.zero_shot)
    minimize over x:   1 - cos(g(x, n), g*)  +  tv TV(x)  +  clip |x - clip(x, 0, 1)|^2

The counts are valid for FedAvg and FedSGD, with any distribution of labels.

Jiahui Geng, Yongli Mou, Feifei Li, Qing Li, Oya Beyan, Stefan Decker, Chunming Rong: "Towards General Deep Leakage in
Federated Learning", 2021, arXiv:2110.09074.
"""

import jax
import optax

from jaxinvert import labels
from jaxinvert.attacks import objectives
from jaxinvert.attacks.matching import gradient_matching, with_restored_labels
from jaxinvert.attacks.problem import Problem, declare
from jaxinvert.attacks.schedules import step_decay
from jaxinvert.priors import parametrizations, regularizers
from jaxinvert.types import Attack, RecoverLabels, Scalar


@declare("local_training", every_round=True, adapts=True, restores_labels=True)
def general_deep_leakage(
    problem: Problem,
    *,
    tv: Scalar = 1e-2,
    clip: Scalar = 1e-2,
    learning_rate: Scalar = 0.1,
    horizon: Scalar = 4800,
    rule: RecoverLabels | None = None,
) -> Attack:
    """General Deep Leakage: zero-shot label counts, then cosine matching with soft pixel bounds (Geng et al. 2021).

    The paper does not specify the optimizer and the weights; those of Inverting Gradients are used.

    Works: where the label counts are right, also for repeated classes and after FedAvg.

    Fails: where they are wrong, and on batches of a single class.

    Args:
      problem: FedSGD or FedAvg clients of any batch size.
      tv: weight of the total variation.
      clip: weight of the soft bounds.
      learning_rate: of Adam, in units of `std`.
      horizon: number of steps over which the learning rate decays.
      rule: restores the labels; by default the paper's rule, `labels.zero_shot`, with noise of a natural image
        spectrum as dummy inputs.
    """
    model = problem.model
    if rule is None:
        dummies = labels.natural_noise(jax.random.key(0), input_shape=model.input_shape)
        smoothing = model.calibration.smoothing
        rule = labels.zero_shot(model.apply, dummies=dummies, head=model.head, smoothing=smoothing)
        rule = labels.calibrated_for(model, rule, name="zero-shot")
    attack = gradient_matching(
        problem.client_update,
        objective=problem.objective or objectives.cosine,
        regularizer=regularizers.weighted(
            (tv, lambda x: regularizers.total_variation(x / problem.std_image)), (clip, regularizers.box)
        ),
        optimizer=optax.adam(step_decay(learning_rate, horizon)),
        parametrization=parametrizations.unconstrained(problem.pixels()),
        name="general_deep_leakage",
    )
    return with_restored_labels(attack, rule, batch_size=problem.num_examples)
