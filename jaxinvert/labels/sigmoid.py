"""Label rules for sigmoid outputs: the error of a logit is `sigmoid(z) - y`, so a negative gradient proves a label 1.

With a mean over the batch, the bias of logit k has the gradient

    db_k = c (sum_b p_bk - n_k) / B,

where `n_k` examples have label 1, and `c` is 1 for one logit and 1 / K for a mean over K logits too. All `p` lie
strictly between 0 and 1, so for one example the sign of `db_k` is the label, whatever `c` and the learning rate are.
For more examples of one logit, `n` lies strictly between `-B db` and `B - B db`; among these, the count nearest to
what dummy inputs predict is taken. Labels of several logits cannot be told apart in a batch: counts do not say which
example has which labels.
"""

import jax
import jax.numpy as jnp

from jaxinvert.labels.dummies import Dummies
from jaxinvert.labels.head import biased_head, step_scale
from jaxinvert.observation.observe import require
from jaxinvert.types import ApplyFn, Array, Observation, RecoverLabels


def sigmoid(apply: ApplyFn, *, dummies: Dummies, head: str = "params/head") -> RecoverLabels:
    """Counts `[2]` of the two classes of one logit; see the module's docstring.

    Reads `params`, `update`, `num_examples`, `local_training`. Exact for `B = 1`.

    Args:
      apply: the model, inputs in [0, 1] to one logit.
      dummies: the inputs to average over.
      head: path of the last dense layer, which needs a bias.

    Raises:
      ValueError: at trace time, if the layer, its bias or a field is missing, or if there are several logits.
    """

    def recover(observation: Observation) -> Array:
        num_examples = require(observation, "num_examples", attack="sigmoid")
        gradient = biased_head(observation.update, head, rule="sigmoid").bias
        if gradient.size != 1:
            raise ValueError(f"sigmoid counts the two classes of one logit, but there are {gradient.size}")
        params = require(observation, "params", attack="sigmoid")
        logits = jax.lax.map(lambda inputs: apply(params, inputs), dummies(observation))
        surplus = -num_examples * gradient[0] * step_scale(observation, rule="sigmoid")
        least = jnp.clip(jnp.floor(surplus) + 1, 0, num_examples)
        most = jnp.clip(jnp.ceil(surplus + num_examples) - 1, 0, num_examples)
        ones = jnp.clip(jnp.rint(surplus + num_examples * jnp.mean(jax.nn.sigmoid(logits))), least, most)
        ones = ones.astype(jnp.int32)
        return jnp.stack([num_examples - ones, ones])

    return recover


def several_labels(observation: Observation, *, head: str = "params/head") -> Array:
    """`[1, K]` labels, 0 or 1, of one example with several sigmoid outputs: 1 where the bias's gradient is negative.

    Reads `update`, `num_examples`. Exact, for hard labels.

    Args:
      observation: of one target.
      head: path of the last dense layer, which needs a bias.

    Raises:
      ValueError: at trace time, for more than one example, or if the layer or its bias is missing.
    """
    num_examples = require(observation, "num_examples", attack="sigmoid")
    if num_examples != 1:
        raise ValueError(
            f"labels of several logits are restored for one example, not for {num_examples}: their gradient has the "
            "number of examples with each label, but not which example has which"
        )
    gradient = biased_head(observation.update, head, rule="sigmoid").bias
    return (gradient < 0).astype(jnp.float32)[None]
