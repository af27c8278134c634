r"""The scale of updates whose learning rate is unknown, from the gradient of the last layer's bias.

One step with learning rate `s` sends `s db` for the bias, and with mean softmax cross-entropy

    s db_k = s (mean_b p_bk - n_k / B),

where `n_k` examples have class k. A class without an example gives `s db_k / mean p_k = s`, and dummy inputs tell
about what the mean softmax output is. With fewer examples than classes, at least `K - B` classes have none, and they
have the largest quotients. Their median is a first estimate; the counts that it implies give the final one, by least
squares over all classes. With known labels the counts are known, and the estimate is direct.

Clients of one round share the learning rate: the result is the median over clients. If the implied counts are not
close to whole numbers, there is no estimate: an error asks for the learning rate.
"""

import jax
import jax.numpy as jnp
import numpy as np

from jaxinvert.labels.dummies import natural_noise
from jaxinvert.labels.head import biased_head
from jaxinvert.types import ApplyFn, Key, Observation, Params, Shape, Update

_FAR = 0.25
"""Root mean square distance of the implied counts from whole numbers, above which an estimate is not trusted."""


def estimated_rate(
    params: Params,
    updates: Update,
    *,
    apply: ApplyFn,
    head: str,
    input_shape: Shape,
    num_examples: int,
    key: Key,
    labels: np.ndarray | None = None,
) -> float:
    """The learning rate of one local step of plain SGD, from the updates of clients that share it.

    Args:
      params: the parameters that the server sent.
      updates: pseudo-gradients with leading axis `T`.
      apply: the model.
      head: path of its last dense layer, which needs a bias.
      input_shape: `(H, W, C)`.
      num_examples: `B`, of each client.
      key: draws the dummy inputs.
      labels: `[T, B]` classes, if the attacker knows them.

    Raises:
      ValueError: if the scale cannot be told; the message asks for the learning rate.
    """
    bias = np.asarray(biased_head(updates, head, rule="the estimate of the learning rate").bias, np.float64)
    dummies = natural_noise(key, input_shape=input_shape)(Observation(params, updates))
    outputs = jax.lax.map(lambda inputs: jax.nn.softmax(apply(params, inputs)), dummies)
    expected = np.asarray(jnp.mean(outputs, axis=(0, 1)), np.float64)
    num_classes = len(expected)
    if labels is not None:
        counts = [np.bincount(row, minlength=num_classes) for row in np.asarray(labels)]
        return float(np.median([_fitted(one, expected, n, num_examples) for one, n in zip(bias, counts)]))
    if num_examples >= num_classes:
        raise _undetermined(f"{num_examples} examples may have all of the {num_classes} classes")
    rates, distances = zip(*(_of_one(one, expected, num_examples) for one in bias))
    if (far := float(np.median(distances))) > _FAR:
        raise _undetermined(f"the class counts that fit best are {far:.2f} away from whole numbers")
    return float(np.median(rates))


def _of_one(bias: np.ndarray, expected: np.ndarray, num_examples: int) -> tuple[float, float]:
    """The rate by one client's update, and the distance of the implied counts from whole numbers."""
    absent = max(1, len(expected) - num_examples)
    rate = float(np.median(np.sort(bias / expected)[-absent:]))
    if not rate > 0:
        return 0.0, np.inf
    for _ in range(3):
        counts = num_examples * (expected - bias / rate)
        whole = np.maximum(np.rint(counts), 0)
        rate = _fitted(bias, expected, whole, num_examples)
        if not rate > 0:
            return 0.0, np.inf
    counts = num_examples * (expected - bias / rate)
    off = abs(whole.sum() - num_examples)
    return rate, float(np.sqrt(np.mean((counts - whole) ** 2)) + off)


def _fitted(bias: np.ndarray, expected: np.ndarray, counts: np.ndarray, num_examples: int) -> float:
    """Least squares of `bias = rate (expected - counts / B)`."""
    error = expected - counts / num_examples
    return float(bias @ error / max(error @ error, np.finfo(np.float64).tiny))


def _undetermined(why: str) -> ValueError:
    return ValueError(
        f"the clients' learning rate is not given, and their updates do not tell it ({why}): give local_lr with "
        "client='fedavg', or update gradients"
    )
