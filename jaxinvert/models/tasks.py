"""What a network is trained for: how label values, logits and the loss belong together.

| task | logits | labels | default loss |
| --- | --- | --- | --- |
| "classes" | `[B, K]` | `[B]` classes in [0, K), or `[B, K]` soft labels | mean softmax cross-entropy |
| "binary" | `[B, 1]` | `[B]` integers, 0 or 1 | mean sigmoid cross-entropy of one logit |
| "multi-label" | `[B, K]` | `[B, K]` floats in [0, 1], not summing to one | mean sigmoid cross-entropy |
| "regression" | `[B, K]` | `[B]` (K = 1) or `[B, K]` floats of any size | mean squared error |

Label values and logits are two things: two classes may have one logit. The task is read off the labels and the number
of logits; a loss of one's own replaces the default one, for the same labels.
"""

from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxinvert.models import losses
from jaxinvert.models.losses import LossOf
from jaxinvert.models.model import Model

Task = Literal["classes", "binary", "multi-label", "regression"]
_DEFAULT_LOSSES: dict[str, LossOf] = {
    "classes": losses.cross_entropy,
    "binary": losses.one_logit_cross_entropy,
    "multi-label": losses.binary_cross_entropy,
    "regression": losses.squared_error,
}


def task_of(labels: Any, num_logits: int) -> Task:
    """The task of a network with `num_logits` outputs that is trained on these labels.

    Args:
      labels: `[N]` integers or floats, or `[N, K]` floats.
      num_logits: `K`.

    >>> task_of(np.array([0, 1]), 1), task_of(np.array([[0.2, 0.8]]), 2), task_of(np.array([[1.0, 1.0]]), 2)
    ('binary', 'classes', 'multi-label')
    """
    labels = np.asarray(labels)
    if np.issubdtype(labels.dtype, np.integer) and labels.ndim == 1:
        return "binary" if num_logits == 1 else "classes"
    if labels.ndim == 1 or labels.min(initial=0) < 0 or labels.max(initial=0) > 1:
        return "regression"
    return "classes" if num_logits > 1 and np.allclose(labels.sum(axis=1), 1, atol=1e-3) else "multi-label"


def with_task(model: Model, labels: Any) -> Model:
    """The model for the task of these labels, with the task's default loss unless it has a loss of its own.

    Raises:
      ValueError: for labels that do not belong to the model's logits.
    """
    task = task_of(labels, model.num_classes)
    has_default = model.loss_of in _DEFAULT_LOSSES.values()
    model = model._replace(task=task, loss_of=_DEFAULT_LOSSES[task] if has_default else model.loss_of)
    check_labels(labels, task=task, num_classes=num_labels(model))
    return model


def num_labels(model: Model) -> int:
    """The number of label values, or of columns: two for one logit of a binary task, else that of the logits."""
    return 2 if model.task == "binary" else model.num_classes


def check_labels(labels: Any, *, task: str, num_classes: int) -> None:
    """Checks labels against a task.

    Args:
      labels: `[N]` or `[N, K]`, concrete.
      task: see the module's docstring.
      num_classes: number of label values for integer labels, else of columns.

    Raises:
      ValueError: naming the wrong shape, type or values.
    """
    labels = np.asarray(labels)
    if np.issubdtype(labels.dtype, np.integer) and labels.ndim == 1 and task in ("classes", "binary"):
        wrong = np.unique(labels[(labels < 0) | (labels >= num_classes)])
        if wrong.size:
            raise ValueError(f"labels {wrong.tolist()} are outside [0, {num_classes}), the model's classes")
        return
    if not np.issubdtype(labels.dtype, np.floating):
        raise ValueError(f"labels are {labels.dtype} {labels.shape}, expected integers [N], or floats for {task}")
    if labels.shape[1:] != (num_classes,) and not (labels.ndim == 1 and num_classes == 1 and task == "regression"):
        raise ValueError(f"labels have shape {labels.shape}, expected ({len(labels)}, {num_classes}) for {task}")
    if not np.all(np.isfinite(labels)):
        raise ValueError("labels hold non-finite values")
    if task != "regression" and not (labels.min(initial=0) >= 0 and labels.max(initial=0) <= 1):
        raise ValueError(f"labels range over [{labels.min():g}, {labels.max():g}], expected [0, 1] for {task}")


def label_ids(labels: Any) -> np.ndarray:
    """Integers `[N]` that are equal where labels are: the classes themselves, or a number for each distinct label."""
    labels = np.asarray(labels)
    if np.issubdtype(labels.dtype, np.integer) and labels.ndim == 1:
        return labels
    return np.unique(labels, axis=0, return_inverse=True)[1].reshape(-1).astype(np.int32)


def mean_outputs(logits: Any, task: str) -> Any:
    """The outputs that a loss compares with labels: softmax, sigmoid, or the logits themselves."""
    if task == "classes":
        return jax.nn.softmax(logits)
    return logits if task == "regression" else jax.nn.sigmoid(logits)


def as_outputs(labels: Any, *, task: str, num_logits: int) -> Any:
    """Labels `[B]` or `[B, K]` in the form of these outputs, `[B, num_logits]` floats."""
    labels = jnp.asarray(labels)
    if labels.ndim == 2:
        return labels
    if task == "classes":
        return jax.nn.one_hot(labels, num_logits)
    return labels[:, None].astype(jnp.float32)


def label_in_words(label: Any, names: tuple[str, ...]) -> str:
    """A label for people: the class's name, the names of several labels, or numbers."""
    values = np.asarray(label)
    if values.ndim == 0 and np.issubdtype(values.dtype, np.integer):
        return names[int(values)] if int(values) < len(names) else str(int(values))
    if values.ndim == 0:
        return f"{float(values):.4g}"
    chosen = [name for name, value in zip(names, values) if value >= 0.5]
    return ", ".join(chosen) or "none"
