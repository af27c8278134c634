"""`inspect`: all checks of received parameters, and what they found."""

from collections.abc import Mapping
from typing import NamedTuple

import jax
import numpy as np

from jaxinvert.inspection import gradients, weights
from jaxinvert.inspection.checks import CHECKS, NEED_NETWORK
from jaxinvert.inspection.layers import layers_of
from jaxinvert.models.model import Model
from jaxinvert.trees import leaves_by_path
from jaxinvert.types import Batch, Params

_LEAST_EXAMPLES = 48


class Measure(NamedTuple):
    """The largest value of one check.

    Attributes:
      check: its name, see `CHECKS`.
      layer: path of the tensor it belongs to, empty for the network as a whole.
      value: see `Check.measures`.
      limit: from which value on the parameters are called crafted.
    """

    check: str
    layer: str
    value: float
    limit: float

    @property
    def is_found(self) -> bool:
        """Whether the value is at least the limit."""
        return self.value >= self.limit


class Finding(NamedTuple):
    """A sign that parameters are crafted: a check, its layer, value and limit, what it means, and what to do."""

    check: str
    layer: str
    value: float
    limit: float
    meaning: str
    advice: str


class Inspection(NamedTuple):
    """Result of an inspection.

    Attributes:
      measures: the largest value of every check that was made.
      findings: the checks that call the parameters crafted; empty if none does.
      skipped: reasons of the checks that were not made, by name.
      isolated: share of the examples that alone activate some unit of a dense layer, which any server can read off
        the update of these examples, honest parameters or not; `None` without a network.
    """

    measures: tuple[Measure, ...]
    findings: tuple[Finding, ...]
    skipped: dict[str, str]
    isolated: float | None = None


def inspect_tensors(arrays: Mapping[str, np.ndarray], *, head: str | None = None) -> Inspection:
    """The checks that read tensors alone.

    Args:
      arrays: tensors by name, in Flax's or PyTorch's layout, all finite.
      head: name of the last layer without "/kernel" or ".weight"; without it its check is skipped.

    >>> import numpy as np
    >>> planted = {"in/kernel": np.ones((9, 16)), "in/bias": -np.linspace(1, 2, 16)}
    >>> [finding.check for finding in inspect_tensors(planted).findings]
    ['planted-bins']
    """
    layers = layers_of(arrays)
    heads = [layer for layer in layers if head and layer.name in (f"{head}/kernel", f"{head}.weight", head)]
    hidden = [layer for layer in layers if not any(layer.name == own.name for own in heads)]
    values: dict[str, dict[str, float | None]] = {name: {} for name in CHECKS if name not in NEED_NETWORK}
    for layer in hidden:
        values["trap-weights"][layer.name] = weights.mirrored_share(layer)
        if (parallel := weights.parallel_units(layer)) is None:
            continue
        if layer.bias is not None:
            values["planted-bins"][layer.name] = parallel.thresholds
        else:
            enough = parallel.units >= CHECKS["planted-bins"].limit
            values["parallel-units"][layer.name] = parallel.share if enough else 0.0
    values["one-class-head"] = {layer.name: weights.one_class_share(layer) for layer in heads}
    reasons = {name: "no layer that it applies to" for name in values}
    if not heads:
        reasons["one-class-head"] = "the network's last layer is not known"
    return _concluded(values, {**reasons, **dict.fromkeys(NEED_NETWORK, "the network is not known")})


def inspect(params: Params, model: Model, batch: Batch) -> Inspection:
    """All checks; compiles and runs the network's gradient once per example.

    Args:
      params: as received.
      model: the network, which must not couple examples.
      batch: at least 48 examples that look like the client's own, pixels in [0, 1], with labels of all classes in
        turn: they need not be true.

    Raises:
      ValueError: for too few examples, a network that cannot take them, or gradients that are not finite.
    """
    if (count := len(batch.inputs)) < _LEAST_EXAMPLES:
        raise ValueError(f"the checks of gradients need at least {_LEAST_EXAMPLES} examples, got {count}")
    found = jax.device_get(jax.jit(lambda params, batch: gradients.responses(model, params, batch))(params, batch))
    return judge(params, model.head, found)


def judge(params: Params, head: str, found: gradients.Responses) -> Inspection:
    """All checks, of responses that were computed before; see `inspect`."""
    finite = np.isfinite(np.asarray(found.norms)) & np.isfinite(np.asarray(found.head_norms))
    if not finite.all():
        raise ValueError(
            f"the gradients of {np.sum(~finite)} of {len(finite)} examples are not finite: the training that gave "
            "these parameters diverged, or they are crafted to blind this check; do not train on them"
        )
    of_tensors = inspect_tensors({name: np.asarray(leaf) for name, leaf in leaves_by_path(params).items()}, head=head)
    sets = {name: gradients.active(np.asarray(units)) for name, units in found.units.items()}
    values: dict[str, dict[str, float | None]] = {
        "nested-units": {name: gradients.longest_chain(one) for name, one in sets.items()},
        "rare-units": {name: gradients.rare_share(one) for name, one in sets.items()},
        "silent-examples": {"": gradients.silent_share(np.asarray(found.norms), np.asarray(found.head_norms))},
    }
    reasons = dict.fromkeys(values, "no dense layer beside the head")
    if not head:
        values["silent-examples"], reasons["silent-examples"] = {}, "the network's last layer is not known"
    of_gradients = _concluded(values, reasons)
    skipped = {name: why for name, why in of_tensors.skipped.items() if name not in NEED_NETWORK}
    return Inspection(
        of_tensors.measures + of_gradients.measures,
        of_tensors.findings + of_gradients.findings,
        {**skipped, **of_gradients.skipped},
        max((gradients.isolated_share(one) for one in sets.values()), default=None),
    )


def _concluded(values: Mapping[str, Mapping[str, float | None]], reasons: Mapping[str, str]) -> Inspection:
    """The largest value of each check, and those above their limits; the others are skipped for these reasons."""
    measures = []
    for name, by_layer in values.items():
        known = {layer: float(value) for layer, value in by_layer.items() if value is not None}
        if known:
            layer = max(known, key=lambda layer: known[layer])
            measures.append(Measure(name, layer, known[layer], CHECKS[name].limit))
    findings = [
        Finding(**measure._asdict(), meaning=CHECKS[measure.check].meaning, advice=CHECKS[measure.check].advice)
        for measure in measures
        if measure.is_found
    ]
    made = {measure.check for measure in measures}
    return Inspection(
        tuple(measures), tuple(findings), {name: why for name, why in reasons.items() if name not in made}
    )
