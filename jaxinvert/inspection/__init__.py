"""What a client checks before it trains: whether the parameters it received are crafted to read its examples.

A malicious server need not invert gradients: it sends parameters under which the update holds examples as they are.
`inspect` looks for the known ways; see `checks.CHECKS`. It finds what it knows: nothing found is no proof of honesty.
"""

from jaxinvert.inspection.checks import CHECKS, NEED_NETWORK, Check
from jaxinvert.inspection.examples import NUM_EXAMPLES, natural_images, with_labels_in_turn
from jaxinvert.inspection.gradients import Responses, responses
from jaxinvert.inspection.inspecting import Finding, Inspection, Measure, inspect, inspect_tensors, judge
from jaxinvert.inspection.layers import Layer, layers_of

__all__ = [
    "CHECKS",
    "NEED_NETWORK",
    "NUM_EXAMPLES",
    "Check",
    "Finding",
    "Inspection",
    "Layer",
    "Measure",
    "Responses",
    "inspect",
    "inspect_tensors",
    "judge",
    "layers_of",
    "natural_images",
    "responses",
    "with_labels_in_turn",
]
