r"""The scale of updates whose learning rate is unknown, from the gradient of the last layer's bias.

One step with learning rate `s` sends `s db` for the bias, and with mean softmax cross-entropy

    s db_k = s (mean_b p_bk - n_k / B),

where `n_k` examples have class k. The counts are whole numbers that sum to B, at least one where the gradient is
negative, and dummy inputs tell about what the mean softmax output is. A rate that makes `B (mean p_k - s db_k / s)`
nearly whole for all classes is a candidate. If all clients, which share the rate, have exactly one candidate in
common, it is the estimate. Otherwise there is none: a softmax output near one, for example, may hide several
examples of its class. An error then asks for the learning rate. With known labels the counts are known, and the
estimate is direct.
"""

import jax
import jax.numpy as jnp
import numpy as np

from jaxinvert.labels.dummies import natural_noise
from jaxinvert.labels.head import biased_head
from jaxinvert.types import ApplyFn, Key, Observation, Params, Shape, Update

_FAR = 0.25
"""Largest root mean square distance of the implied counts from whole numbers of a candidate."""
_UNSURE = 0.2
"""Largest relative change of an estimate with the outputs of one class."""
_SAME = 0.1
"""Relative distance of rates that count as one."""


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
    what = "the estimate of the learning rate"
    bias = np.asarray(jax.vmap(lambda update: biased_head(update, head, rule=what).bias)(updates), np.float64)
    dummies = natural_noise(key, input_shape=input_shape)(Observation(params, updates))
    outputs = jax.lax.map(lambda inputs: jax.nn.softmax(apply(params, inputs)), dummies)
    expected = np.asarray(jnp.mean(outputs, axis=(0, 1)), np.float64)
    spread = np.asarray(jnp.std(outputs, axis=(0, 1)), np.float64) / np.sqrt(num_examples)
    num_classes = len(expected)
    if labels is not None:
        counts = [np.bincount(row, minlength=num_classes) for row in np.asarray(labels)]
        rates = [_fitted(one, expected, n, num_examples) for one, n in zip(bias, counts)]
        return _sure(rates, bias, counts, expected, spread, num_examples)
    if num_examples >= num_classes:
        raise _undetermined(f"{num_examples} examples may have all of the {num_classes} classes")
    candidates = [_candidates(one, expected, num_examples) for one in bias]
    common = [rate for rate in candidates[0] if all(_nearest(rate, others) is not None for others in candidates)]
    if len(common) != 1:
        raise _undetermined(f"{len(common) or 'no'} rates fit the class counts")
    rates = [_nearest(common[0], others) or common[0] for others in candidates]
    counts = [np.rint(num_examples * (expected - one / rate)) for one, rate in zip(bias, rates)]
    return _sure(rates, bias, counts, expected, spread, num_examples)


def _sure(
    rates: list[float],
    bias: np.ndarray,
    counts: list[np.ndarray],
    expected: np.ndarray,
    spread: np.ndarray,
    num_examples: int,
) -> float:
    """The median rate, if it would be about the same for outputs that differ from the dummies' by their spread.

    Raises:
      ValueError: if not.
    """
    rate = float(np.median(rates))
    moved = [
        expected + sign * spread * (np.arange(len(expected)) == k) for k in range(len(expected)) for sign in (-1, 1)
    ]
    others = [np.median([_fitted(one, at, n, num_examples) for one, n in zip(bias, counts)]) for at in moved]
    if not rate > 0 or max(abs(other - rate) for other in others) > _UNSURE * rate:
        raise _undetermined("the network's outputs on the private images are not known well enough")
    return rate


def _candidates(bias: np.ndarray, expected: np.ndarray, num_examples: int) -> list[float]:
    """All rates that make the class counts nearly whole, for one client's update."""
    positive = bias > 0
    if not positive.any():
        return []
    least = float(bias[positive].sum() / expected[positive].sum())  # if no class with a positive gradient is present
    present = bias < -1e-4 * np.abs(bias).max()
    found: list[float] = []
    for start in least * np.geomspace(0.5, 2 * num_examples, 400):
        whole = np.maximum(np.rint(num_examples * (expected - bias / start)), present)
        rate = _fitted(bias, expected, whole, num_examples)
        if whole.sum() != num_examples or not rate > 0:
            continue
        distance = num_examples * (expected - bias / rate) - whole
        if np.sqrt(np.mean(distance**2)) < _FAR and _nearest(rate, found) is None:
            found.append(rate)
    return found


def _nearest(rate: float, others: list[float]) -> float | None:
    """The nearest of other rates, if it counts as the same."""
    near = min(others, key=lambda other: abs(np.log(other / rate)), default=None)
    return near if near is not None and abs(np.log(near / rate)) < _SAME else None


def _fitted(bias: np.ndarray, expected: np.ndarray, counts: np.ndarray, num_examples: int) -> float:
    """Least squares of `bias = rate (expected - counts / B)`."""
    error = expected - counts / num_examples
    return float(bias @ error / max(error @ error, np.finfo(np.float64).tiny))


def _undetermined(why: str) -> ValueError:
    return ValueError(
        f"the clients' learning rate is not given, and their updates do not tell it ({why}): give local_lr with "
        "client='fedavg', or update gradients"
    )
