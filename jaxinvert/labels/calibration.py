"""Label rules under other losses than the mean cross-entropy: rescales what they read, or refuses with the reason.

Rules are derived for `dL/dW = 1/B sum_i h_i (p_i - e_{y_i})`. Another loss of the same logits changes this by

| loss                | `dL/db`, `dL/dW` become                 | rules                                         |
|---------------------|-----------------------------------------|-----------------------------------------------|
| `f` times the mean  | times f                                 | all, after division                           |
| a sum over examples | times B                                 | all, after division                           |
| logits times `s`    | times s; features are effectively `s h` | all but `ilrg`; only the bias is divided by s |
| label smoothing `a` | labels `(1 - a) e_y + a / K`            | `moments`, `zero-shot`, `idlg`, `yin`         |
| anything else       |                                         | none                                          |
"""

import jax
import jax.numpy as jnp

from jaxinvert.models import Calibration, Model
from jaxinvert.observation.observe import require
from jaxinvert.trees import leaves_by_path, path_name
from jaxinvert.types import ApplyFn, Array, ArrayTree, Observation, Params, RecoverLabels, Shape

_SMOOTHABLE = ("idlg", "moments", "moments-surrogate", "yin", "zero-shot", "zero-shot-surrogate")
_NOT_TEMPERED = ("ilrg",)


def check_head_is_sent(rule: str, calibration: Calibration, update: ArrayTree = None, *, head: str = "") -> None:
    """Raises ValueError, with the reason, if updates do not hold the gradient of the head, which a label rule reads.

    Args:
      rule: name of the rule.
      calibration: says whether the head is frozen or personal.
      update: concrete, in which tensors that were not sent are zero; `None` = not looked at.
      head: path of the last dense layer.
    """
    unsent = calibration.unsent
    sent = {} if update is None else leaves_by_path(update)
    # The bias's gradient is never zero; the kernel's is behind features that are, so it is looked at without a bias.
    path = next((path for path in (f"{head}/bias", f"{head}/kernel") if path in sent), "")
    if not unsent and path and not bool(jnp.any(sent[path] != 0)):
        unsent = f"the update does not hold the gradient of {path}: it is zero, or was not sent"
    if unsent:
        raise ValueError(f"label rule {rule!r} reads the gradient of the last layer, but {unsent}: grant the labels")


def check_calibration(rule: str, calibration: Calibration) -> None:
    """Raises ValueError, with the reason, if a label rule cannot be used with a network's loss.

    Args:
      rule: name of the rule.
      calibration: how the loss relates to the mean cross-entropy of the logits.
    """
    check_head_is_sent(rule, calibration)
    if calibration.refusal:
        raise ValueError(
            f"label rule {rule!r} assumes softmax cross-entropy of a dense head's logits, but {calibration.refusal}: "
            "grant the labels, or name the head"
        )
    if calibration.smoothing and rule not in _SMOOTHABLE:
        raise ValueError(
            f"label rule {rule!r} assumes hard labels, but the loss smooths them by {calibration.smoothing:g}; "
            f"{', '.join(_SMOOTHABLE)} do not"
        )
    if calibration.tempered and rule in _NOT_TEMPERED:
        raise ValueError(f"label rule {rule!r} cannot be used with a temperature behind the head")


def calibrated_for(model: Model, rule: RecoverLabels, *, name: str) -> RecoverLabels:
    """`calibrated` for a model's clients."""
    return calibrated(
        rule, model.calibration, name=name, apply=model.apply, head=model.head, input_shape=model.input_shape
    )


def calibrated(
    rule: RecoverLabels, calibration: Calibration, *, name: str, apply: ApplyFn, head: str, input_shape: Shape
) -> RecoverLabels:
    """The rule for a client with this loss: the head's gradient is divided by the loss's factor and temperature.

    Args:
      rule: derived for the mean cross-entropy.
      calibration: how the loss relates to it.
      name: of the rule.
      apply: the model.
      head: path of its last dense layer.
      input_shape: `(H, W, C)`.

    Raises:
      ValueError: see `check_calibration`; when traced, if the attacker does not see what the calibration needs.
    """
    check_calibration(name, calibration)
    if calibration.factor == 1 and not calibration.summed and not calibration.tempered:
        return rule

    def recover(observation: Observation) -> Array:
        factor = jnp.asarray(calibration.factor, jnp.float32)
        if calibration.summed:
            factor = factor * require(observation, "num_examples", attack=name)
        scales = {f"{head}/kernel": factor, f"{head}/bias": factor}
        if calibration.tempered:
            params = require(observation, "params", attack=name)
            scales[f"{head}/bias"] = factor * temperature(params, apply=apply, head=head, input_shape=input_shape)
        update = jax.tree_util.tree_map_with_path(
            lambda path, leaf: leaf / scales[path_name(path)] if path_name(path) in scales else leaf,
            observation.update,
        )
        return rule(observation._replace(update=update))

    return recover


def temperature(params: Params, *, apply: ApplyFn, head: str, input_shape: Shape) -> Array:
    """`[]`: the factor between the head's outputs and the logits."""
    bias = leaves_by_path(params)[f"{head}/bias"]
    gray = jnp.full((1, *input_shape), 0.5)

    def logits(value: Array) -> Array:
        moved = jax.tree_util.tree_map_with_path(
            lambda path, leaf: value if path_name(path) == f"{head}/bias" else leaf, params
        )
        return apply(moved, gray)

    return jax.jvp(logits, (bias,), (jnp.ones_like(bias),))[1][0, 0]
