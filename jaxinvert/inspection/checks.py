"""What is checked, from which value on it is called crafted, and what that means: one entry per check.

Limits lie above all values of the calibration networks of `experiments.crafted_parameters`, which are others than
those on which its rates of detection and false alarms are measured.
"""

from typing import NamedTuple


class Check(NamedTuple):
    """One check.

    Attributes:
      limit: values of at least this are called crafted.
      is_share: whether values are shares from 0 to 1; else they are numbers of units.
      measures: what the value is, in words.
      meaning: what a value above the limit tells.
      advice: what a client should do then.
    """

    limit: float
    is_share: bool
    measures: str
    meaning: str
    advice: str


_REFUSE = "Do not train on these parameters and send no update; keep the file, and ask the operator to explain."
_COMPARE = "Compare with the parameters of an earlier round, and of other clients, before you train on them."

CHECKS: dict[str, Check] = {
    "planted-bins": Check(
        12,
        False,
        "units of a dense layer with parallel weights and different thresholds",
        "The units sort examples into bins along one direction, as an imprint module does (Fowl et al. 2022): the "
        "difference of two units' gradients is the input of one example.",
        _REFUSE,
    ),
    "parallel-units": Check(
        0.5,
        True,
        "share of the units of a dense layer without biases that have parallel weights",
        "Such a layer passes on one number. With thresholds in the normalization behind it, it is an imprint module.",
        _COMPARE,
    ),
    "trap-weights": Check(
        0.1,
        True,
        "share of a layer's units whose positive weights are a multiple of their negative ones, in another order",
        "The units rarely fire, so that their gradients hold one example each (trap weights, Boenisch et al. 2021).",
        _REFUSE,
    ),
    "one-class-head": Check(
        0.95,
        True,
        "share of the head's weights that belongs to one class",
        "One class, or one feature, decides which example makes the gradient (fishing, Wen et al. 2022).",
        _REFUSE,
    ),
    "nested-units": Check(
        28,
        False,
        "units of a dense layer each of which reacts to all the examples of the one before, and to more",
        "The units sort examples into bins, as those of an imprint module, whatever their weights look like.",
        _REFUSE,
    ),
    "rare-units": Check(
        0.5,
        True,
        "share of a layer's units that react to 5 % of the examples at most",
        "The gradients of such units hold few examples each, as those of trap weights. A network with a strong "
        "penalty on its activations looks similar.",
        _COMPARE,
    ),
    "silent-examples": Check(
        0.5,
        True,
        "share of examples, their labels those of all classes in turn, whose gradient ends in the head",
        "The update of all other layers is that of few examples: a class or a feature is fished for "
        "(Wen et al. 2022).",
        _COMPARE,
    ),
}
"""Checks by name; the first four read tensors alone, the others need the network and examples."""

NEED_NETWORK = ("nested-units", "rare-units", "silent-examples")
"""The checks that run the network."""
