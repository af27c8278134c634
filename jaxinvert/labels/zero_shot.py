r"""Label rules that estimate the batch's softmax outputs from the model's outputs on dummy inputs.

Counts follow from `count_n = sum_i p_in - B db_n`, where only the sum of the softmax outputs is unknown.

References:
  Geng et al.: Towards General Deep Leakage in Federated Learning. 2021, arXiv:2110.09074.
  Wainakh et al.: User-Level Label Leakage from Gradients in Federated Learning. PoPETs 2022, arXiv:2105.09369.
"""

import jax.numpy as jnp

from jaxinvert.labels.dummies import Dummies
from jaxinvert.labels.head import biased_head, find_head, respond, step_scale
from jaxinvert.labels.rounding import hard_counts, repeated_argmin, round_counts
from jaxinvert.labels.signs import cancel
from jaxinvert.observation.observe import require
from jaxinvert.types import ApplyFn, Array, Observation, RecoverLabels


def zero_shot(
    apply: ApplyFn, *, dummies: Dummies, head: str = "params/head", use_bias: bool = True, smoothing: float = 0.0
) -> RecoverLabels:
    r"""Zero-shot counts (Geng et al. 2021): `count_n = B p_hat_n - B db_n`.

    Without a bias, `count_n = B p_hat_n - B (sum_m dW_mn) / O_hat`, where `O_hat` is the mean of the summed features.
    `p_hat` and `O_hat` are means over the dummies, interpolated between the server's and the client's model, and the
    update is divided by learning rate x local steps. Reads `params`, `update`, `num_examples`, `local_training`, and
    `surrogate` if the dummies do. Exact if softmax outputs do not depend on the input, and for `B = 1`.

    Args:
      apply: the model, inputs in [0, 1] to logits.
      dummies: the inputs to average over.
      head: path of the last dense layer.
      use_bias: static; whether to use the bias gradient, which is more accurate than the kernel's.
      smoothing: label smoothing `a` of the clients' loss.

    Raises:
      ValueError: at trace time, if the layer, its bias (with `use_bias`), or a field is missing.
    """

    def recover(observation: Observation) -> Array:
        num_examples = require(observation, "num_examples", attack="zero_shot")
        scale = step_scale(observation, rule="zero_shot")
        inputs = dummies(observation)
        answers = respond(observation, inputs, apply=apply, head=head, probe=jnp.ones_like, rule="zero_shot")
        if use_bias:
            shift = biased_head(observation.update, head, rule="zero_shot").bias * scale
        else:
            column_sums = jnp.sum(find_head(observation.update, head).kernel, axis=0)
            shift = column_sums * scale / jnp.mean(answers.projections)
        smoothed = num_examples * (jnp.mean(answers.probabilities, axis=(0, 1)) - shift)
        return round_counts(hard_counts(smoothed, num_examples, smoothing), num_examples)

    return recover


def llg_star(apply: ApplyFn, *, dummies: Dummies, head: str = "params/head") -> RecoverLabels:
    r"""LLG* (Wainakh et al. 2022): LLG with the impact and a per-class offset measured on random inputs.

    Let `O` be an example's summed features. The dummies' gradients under every label give the impact
    `m = (1 + 1/K) mean_n E[O (p_n - 1)] / B` and the offset `s_n = E[O p_n]`, the contribution of other classes'
    examples to class n. Then `B` times the class `argmin (g - s)` is emitted and m is subtracted from it. Where
    features cancel in their sum (LayerNorm), the bias is taken for a feature that is 1, if there is one. Reads
    `params`, `update`, `num_examples`, `local_training`. No bias needed.

    Args:
      apply: the model, inputs in [0, 1] to logits.
      dummies: the inputs to measure with.
      head: path of the last dense layer.

    Raises:
      ValueError: at trace time, if the layer or a field is missing.
    """

    def recover(observation: Observation) -> Array:
        num_examples = require(observation, "num_examples", attack="llg_star")
        scale = step_scale(observation, rule="llg_star")
        inputs = dummies(observation)
        answers = respond(observation, inputs, apply=apply, head=head, probe=jnp.ones_like, rule="llg_star")
        kernel, bias = find_head(observation.update, head)
        sums, offset = jnp.sum(kernel, axis=0), jnp.mean(answers.products[..., 0, :], axis=(0, 1))
        summed = jnp.mean(answers.projections)
        if bias is not None:
            ones = bias, jnp.mean(answers.probabilities, axis=(0, 1)), jnp.ones_like(summed)
            sums, offset, summed = (jnp.where(cancel(kernel), *both) for both in zip(ones, (sums, offset, summed)))
        size = offset.size
        impact = (1 + 1 / size) * (jnp.mean(offset) - summed) / num_examples
        signal = sums * scale - offset
        return repeated_argmin(signal, impact, jnp.zeros(size, jnp.int32), num_examples)

    return recover
