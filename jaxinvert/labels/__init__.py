"""Label recovery: rules that compute the class counts of the private batch from the last layer's gradient.

| rule | idea | exact |
| --- | --- | --- |
| `idlg` | most negative column sum | `B = 1`, one class |
| `bias_sign` | a negative bias gradient proves presence | `B = 1`, one class |
| `yin` | lowest entry of each column | `B = 1` |
| `llg`, `llg_star` | repeated argmin of column sums | `B = 1`, one class (`llg`) |
| `rlg` | separable singular vectors | the set, if `rank dW = B < K - 1` |
| `ilrg` | least squares over class embeddings | `B = 1`, equal features |
| `zero_shot` | expected softmax of dummy inputs | `B = 1`, softmax independent of the input |
| `moments` | the same, corrected by the kernel's gradient | `B = 1`, softmax independent of the input |

A factory returns a pure `RecoverLabels`, `observation -> counts [K]` (int32, sum exactly `num_examples`), which may
be jitted and vmapped. `labels_from_counts` turns counts into the labels that an attack on the images takes. All rules
assume mean softmax cross-entropy and find the last dense layer by its declared path, but for `sigmoid`, which is for
sigmoid outputs.
"""

from collections.abc import Callable
from typing import NamedTuple

from jaxinvert.labels.algebra import ilrg, rlg
from jaxinvert.labels.calibration import calibrated, calibrated_for, check_calibration, check_head_is_sent
from jaxinvert.labels.dummies import natural_noise, surrogate_gaussian, surrogate_images, white_noise
from jaxinvert.labels.moments import moments
from jaxinvert.labels.rounding import labels_from_counts, round_counts
from jaxinvert.labels.sigmoid import several_labels, sigmoid
from jaxinvert.labels.signs import bias_sign, idlg, llg, yin
from jaxinvert.labels.zero_shot import llg_star, zero_shot
from jaxinvert.models import Calibration
from jaxinvert.types import ApplyFn, Key, RecoverLabels, Shape

__all__ = [
    "REGISTRY",
    "LabelProblem",
    "Rule",
    "bias_sign",
    "calibrated",
    "calibrated_for",
    "check_calibration",
    "check_head_is_sent",
    "idlg",
    "ilrg",
    "labels_from_counts",
    "llg",
    "llg_star",
    "moments",
    "natural_noise",
    "rlg",
    "round_counts",
    "rule_for",
    "several_labels",
    "sigmoid",
    "surrogate_gaussian",
    "surrogate_images",
    "white_noise",
    "yin",
    "zero_shot",
]


class LabelProblem(NamedTuple):
    """What a label rule is built for.

    Attributes:
      apply: the model.
      head: path of its last dense layer.
      input_shape: `(H, W, C)`.
      key: for dummy inputs.
      calibration: how the clients' loss relates to the mean cross-entropy.
    """

    apply: ApplyFn
    head: str
    input_shape: Shape
    key: Key
    calibration: Calibration = Calibration()


class Rule(NamedTuple):
    """A registered label rule.

    Attributes:
      factory: `LabelProblem -> RecoverLabels`.
      needs: the fields of the observation that it reads; all others may be `None`.
      summary: one-line description.
      tasks: the model's tasks that it is for, see `models.tasks`.
    """

    factory: Callable[[LabelProblem], RecoverLabels]
    needs: tuple[str, ...]
    summary: str
    tasks: tuple[str, ...] = ("classes",)


_SIGNS = ("update", "num_examples")
_MODEL = ("params", "update", "num_examples", "local_training")
_PUBLIC = (*_MODEL, "surrogate")


def rule_for(name: str, problem: LabelProblem) -> RecoverLabels:
    """A registered rule, calibrated for the clients' loss.

    Raises:
      ValueError: if the rule cannot be used with this loss, or this head; the message says why.
    """
    if "classes" not in REGISTRY[name].tasks:
        check_head_is_sent(name, problem.calibration)
        return REGISTRY[name].factory(problem)
    return calibrated(
        REGISTRY[name].factory(problem),
        problem.calibration,
        name=name,
        apply=problem.apply,
        head=problem.head,
        input_shape=problem.input_shape,
    )


def _zero_shot(problem: LabelProblem) -> RecoverLabels:
    dummies = natural_noise(problem.key, input_shape=problem.input_shape)
    return zero_shot(problem.apply, dummies=dummies, head=problem.head, smoothing=problem.calibration.smoothing)


def _llg_star(problem: LabelProblem) -> RecoverLabels:
    dummies = white_noise(problem.key, input_shape=problem.input_shape)
    return llg_star(problem.apply, dummies=dummies, head=problem.head)


def _moments(problem: LabelProblem) -> RecoverLabels:
    dummies = natural_noise(problem.key, input_shape=problem.input_shape)
    return moments(problem.apply, dummies=dummies, head=problem.head, smoothing=problem.calibration.smoothing)


def _sigmoid(problem: LabelProblem) -> RecoverLabels:
    dummies = natural_noise(problem.key, input_shape=problem.input_shape)
    return sigmoid(problem.apply, dummies=dummies, head=problem.head)


REGISTRY: dict[str, Rule] = {
    "idlg": Rule(lambda s: idlg(head=s.head), _SIGNS, "most negative column (Zhao et al. 2020); one example"),
    "bias-sign": Rule(lambda s: bias_sign(head=s.head), _SIGNS, "negative bias gradients"),
    "yin": Rule(lambda s: yin(head=s.head), _SIGNS, "lowest column entries (Yin et al. 2021); distinct labels"),
    "llg": Rule(lambda s: llg(head=s.head), _SIGNS, "repeated argmin of column sums (Wainakh et al. 2022)"),
    "llg-star": Rule(_llg_star, _MODEL, "the same, calibrated on random inputs (Wainakh et al. 2022)"),
    "rlg": Rule(lambda s: rlg(head=s.head), _SIGNS, "separable singular vectors (Dang et al. 2021); B < K - 1"),
    "ilrg": Rule(lambda s: ilrg(head=s.head), _MODEL, "least squares over class embeddings (Ma et al. 2023)"),
    "zero-shot": Rule(_zero_shot, _MODEL, "expected softmax of dummy inputs (Geng et al. 2021)"),
    "zero-shot-surrogate": Rule(
        lambda s: zero_shot(s.apply, dummies=surrogate_images(), head=s.head, smoothing=s.calibration.smoothing),
        _PUBLIC,
        "the same with public images as dummies",
    ),
    "moments": Rule(_moments, _MODEL, "zero-shot counts corrected by the kernel's gradient"),
    "moments-surrogate": Rule(
        lambda s: moments(s.apply, dummies=surrogate_images(), head=s.head, smoothing=s.calibration.smoothing),
        _PUBLIC,
        "the same with public images as dummies",
    ),
    "sigmoid": Rule(
        _sigmoid,
        _MODEL,
        "for one logit, or several labels of one example: signs of bias gradients, and sigmoids of dummy inputs",
        ("binary", "multi-label"),
    ),
}
