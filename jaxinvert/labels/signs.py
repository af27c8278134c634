r"""Label rules that use only signs and magnitudes of the last layer's gradient, without the model or dummies.

With `p_i` the softmax output and `h_i` the last features of example i, mean cross-entropy gives

    db_n = 1/B sum_i (p_in - [y_i = n]),     dW_mn = 1/B sum_i (p_in - [y_i = n]) h_im.

If `h >= 0`, only examples of class n contribute negative terms to column n. Features of other signs cancel in column
sums (those of LayerNorm sum to zero, up to rounding): there, `column_signal` reads the bias instead. All rules are
invariant to the scale of the update, and hence equal for a gradient and for the weight difference of a single step.

References:
  Zhao, Mopuri, Bilen: iDLG: Improved Deep Leakage from Gradients. 2020, arXiv:2001.02610.
  Yin et al.: See through Gradients: Image Batch Recovery via GradInversion. CVPR 2021, arXiv:2104.07586.
  Wainakh et al.: User-Level Label Leakage from Gradients in Federated Learning. PoPETs 2022, arXiv:2105.09369.
"""

import jax.numpy as jnp

from jaxinvert.labels.head import biased_head, find_head
from jaxinvert.labels.rounding import lowest, repeated_argmin, round_counts
from jaxinvert.observation.observe import require
from jaxinvert.types import Array, Observation, RecoverLabels


def idlg(*, head: str = "params/head") -> RecoverLabels:
    """`y = argmin_n db_n`, or without a bias `argmin_n sum_m dW_mn` (Zhao et al. 2020): all examples in one class.

    Reads `update`, `num_examples`. Exact for `B = 1`, without a bias for more than two classes or non-negative
    features; and for batches of a single class with a bias or non-negative features.

    Args:
      head: path of the last dense layer.

    Raises:
      ValueError: at trace time, if the layer or a field is missing.
    """

    def recover(observation: Observation) -> Array:
        num_examples = require(observation, "num_examples", attack="idlg")
        kernel, bias = find_head(observation.update, head)
        errors = column_signal(kernel, None) if bias is None else bias
        return jnp.zeros(errors.size, jnp.int32).at[jnp.argmin(errors)].set(num_examples)

    return recover


def bias_sign(*, head: str = "params/head") -> RecoverLabels:
    """Class n is present if `db_n < 0`: one label per such class, the rest in proportion to `-db_n`.

    The bias gradient is a mean of `p - y`, so a negative entry proves presence, for any features (Phong et al. 2018
    and Wainakh et al. 2022 use the same fact). Reads `update`, `num_examples`. Exact for `B = 1` and for a single
    class; a class with fewer examples than the model expects (`B p_n`) is missed.

    Args:
      head: path of the last dense layer.

    Raises:
      ValueError: at trace time, if the layer, its bias or a field is missing.
    """

    def recover(observation: Observation) -> Array:
        num_examples = require(observation, "num_examples", attack="bias_sign")
        gradient = biased_head(observation.update, head, rule="bias_sign").bias
        surplus = jnp.maximum(-gradient, 0.0)
        once = _at_most((surplus > 0).astype(jnp.int32), gradient, num_examples)
        rest = num_examples - jnp.sum(once)
        total = jnp.sum(surplus)
        return once + round_counts(rest * surplus / jnp.where(total > 0, total, 1.0), rest)

    return recover


def yin(*, head: str = "params/head") -> RecoverLabels:
    """The `B` classes with the lowest `min_m dW_mn`, each once (Yin et al. 2021, equation 7).

    Assumes distinct labels and `B <= K`; for `B > K` the labels are spread evenly over the classes. Reads `update`,
    `num_examples`. Exact for `B = 1` if the features are non-negative. No bias needed.

    Args:
      head: path of the last dense layer.

    Raises:
      ValueError: at trace time, if the layer or a field is missing.
    """

    def recover(observation: Observation) -> Array:
        num_examples = require(observation, "num_examples", attack="yin")
        return lowest(jnp.min(find_head(observation.update, head).kernel, axis=0), num_examples)

    return recover


def llg(*, head: str = "params/head") -> RecoverLabels:
    """LLG (Wainakh et al. 2022, algorithm 1): one label per negative `g_n = sum_m dW_mn`, then repeated argmin.

    Each emitted label subtracts the impact of one example, `1/B sum_{g_n < 0} g_n (1 + 1/K)`, from its class. Reads
    `update`, `num_examples`. Exact for `B = 1` and for a single class, if the features are non-negative or the layer
    has a bias; otherwise an estimate that assumes nearly uniform softmax outputs. No bias needed. Where features
    cancel in the column sums, `column_signal` replaces them.

    Args:
      head: path of the last dense layer.

    Raises:
      ValueError: at trace time, if the layer or a field is missing.
    """

    def recover(observation: Observation) -> Array:
        num_examples = require(observation, "num_examples", attack="llg")
        signal = column_signal(*find_head(observation.update, head))
        impact = jnp.sum(jnp.minimum(signal, 0.0)) / num_examples * (1 + 1 / signal.size)
        once = _at_most((signal < 0).astype(jnp.int32), signal, num_examples)
        return repeated_argmin(signal - once * impact, impact, once, num_examples)

    return recover


def cancel(kernel: Array) -> Array:
    """Whether the features have both signs, so that they cancel in the column sums of a gradient `[M, K]`: bool `[]`.

    Features of one sign give columns of one sign, but for columns in which examples cancel, which are small.
    """
    return jnp.sum(jnp.abs(jnp.sum(kernel, axis=0))) < 0.5 * jnp.sum(jnp.abs(kernel))


def column_signal(kernel: Array, bias: Array | None) -> Array:
    """`[K]`, negative for the classes that a batch holds: the column sums, or what replaces them where they cancel.

    That is the bias gradient, the column sums of a feature that is 1. Without a bias it is the projection on the
    strongest direction of the features; its sign is such that the largest entry is negative, as it is for one example
    of more than two classes, because the others sum to its negative.

    Args:
      kernel: gradient of the layer's kernel, `[M, K]`.
      bias: gradient of its bias, `[K]`, or `None` without one.
    """
    sums = jnp.sum(kernel, axis=0)
    if bias is not None:
        return jnp.where(cancel(kernel), bias, sums)
    direction = kernel[:, jnp.argmax(jnp.sum(jnp.square(kernel), axis=0))]
    for _ in range(8):  # the power method
        direction = kernel @ (kernel.T @ direction)
        direction /= jnp.maximum(jnp.linalg.norm(direction), jnp.finfo(direction.dtype).tiny)
    projection = kernel.T @ direction
    largest = projection[jnp.argmax(jnp.abs(projection))]
    return jnp.where(cancel(kernel), -jnp.sign(largest) * projection, sums)


def _at_most(present: Array, signal: Array, num_examples: int | Array) -> Array:
    """Limits the present classes (0/1) to the `B` with the lowest signal; rounding errors may give more."""
    order = jnp.argsort(jnp.argsort(signal))
    return present * (order < num_examples)
