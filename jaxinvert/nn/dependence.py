"""Whether a function multiplies matrices that both depend on its input, as attention does."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax import lax
from jax.extend import core

from jaxinvert.types import Array, ArrayTree


def multiplies_activations(
    apply: Callable[[ArrayTree, Array], Array], params: ArrayTree, inputs: Array | jax.ShapeDtypeStruct
) -> bool:
    """Whether `apply(params, inputs)` has a matrix product of two arrays that both depend on `inputs`.

    Attention has two, of queries and keys and of scores and values; perceptrons and convolutional networks have none.

    Args:
      apply: a pure function.
      params: its parameters, or their shapes.
      inputs: its input, or its shape.
    """
    closed = jax.make_jaxpr(apply)(params, inputs)
    of_inputs = len(closed.jaxpr.invars) - len(jax.tree.leaves(params))
    depends = [False] * len(jax.tree.leaves(params)) + [True] * of_inputs
    return _multiplies(closed.jaxpr, depends)


def _multiplies(jaxpr: Any, depends: Sequence[bool]) -> bool:
    """Likewise for a jaxpr of whose arguments these depend on the input."""
    known = {variable for variable, one in zip(jaxpr.invars, depends) if one}
    for equation in jaxpr.eqns:
        given = [not isinstance(operand, core.Literal) and operand in known for operand in equation.invars]
        if equation.primitive is lax.dot_general_p and all(given):
            return True
        if any(given):
            known.update(equation.outvars)
        for inner in _inner(list(equation.params.values())):
            arguments = len(inner.invars)  # of branches, the last ones
            aligned = given[-arguments:] if arguments <= len(given) else [False] * arguments
            if _multiplies(inner, aligned):
                return True
    return False


def _inner(value: Any) -> list[Any]:
    """The jaxprs in the parameters of an equation."""
    if isinstance(value, core.ClosedJaxpr) and not isinstance(value, core.Jaxpr):
        return [value.jaxpr]
    if isinstance(value, core.Jaxpr):
        return [value]
    if isinstance(value, list | tuple):
        return [one for item in value for one in _inner(item)]
    return []
