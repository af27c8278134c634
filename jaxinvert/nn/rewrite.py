"""`fast_convolutions` replaces the convolutions in any JAX function by the fast ones, without editing it."""

import functools
from collections.abc import Callable, Iterable
from typing import Any, ParamSpec, TypeVar, cast

import jax
from jax import lax
from jax.extend import core, linear_util

from jaxinvert.nn.convolution import convolve, is_supported

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


def fast_convolutions(fun: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """Returns `fun` with its lax convolutions replaced by `jaxinvert.nn.conv_general_dilated`.

    The function is traced, and every supported `conv_general_dilated` in it is replaced, also inside `jit`, `cond`,
    `scan`, `while_loop`, `jax.checkpoint`, custom derivatives and `shard_map`; everything else is unchanged. Replace
    first and differentiate after: `jax.grad(fast_convolutions(loss))`.

        fast_apply = fast_convolutions(model.apply)

    The backward function of a `jax.custom_vjp` is not changed: it is not part of the program until it runs.

    Args:
      fun: a pure function, as for `jax.jit`. Arguments that are not arrays (flags, names, Python numbers) are passed
        on unchanged.

    Returns:
      A function with the same signature and results. It is retraced at every call: call it inside a `jax.jit`.
    """

    @functools.wraps(fun)
    def fast(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        leaves, tree = jax.tree.flatten((args, kwargs))
        places = [i for i, leaf in enumerate(leaves) if hasattr(leaf, "shape") and hasattr(leaf, "dtype")]

        def of_arrays(*arrays: Any) -> Any:
            filled = list(leaves)
            for place, array in zip(places, arrays):
                filled[place] = array
            all_args, all_kwargs = jax.tree.unflatten(tree, filled)
            return cast(Callable[..., Any], fun)(*all_args, **all_kwargs)

        arrays = [leaves[place] for place in places]
        closed, result = jax.make_jaxpr(of_arrays, return_shape=True)(*arrays)
        return jax.tree.unflatten(jax.tree.structure(result), core.jaxpr_as_fun(_rewrite(closed))(*arrays))

    return fast


def _rewrite(value: Any) -> Any:
    """Replaces all convolutions in a jaxpr, or in any parameter of an equation.

    A value without convolutions is returned as the same object: `jit` finds its compiled functions by identity.
    """
    if isinstance(value, core.Jaxpr):  # in jax 0.12 the only class, closed or not
        equations = [_rewrite_equation(equation) for equation in value.eqns]
        return value if _all_same(equations, value.eqns) else value.replace(eqns=equations)
    if isinstance(value, core.ClosedJaxpr):
        jaxpr = _rewrite(value.jaxpr)
        return value if jaxpr is value.jaxpr else value.replace(jaxpr=jaxpr)
    if type(value) in (tuple, list):
        items = [_rewrite(item) for item in value]
        return value if _all_same(items, value) else type(value)(items)
    return value


def _rewrite_equation(equation: Any) -> Any:
    if equation.primitive is lax.conv_general_dilated_p:
        return _replace(equation) if is_supported(equation) else equation
    params = {name: _rewrite(value) for name, value in equation.params.items()}
    if _all_same(params.values(), equation.params.values()):
        return equation
    for name in _DERIVATIVE_RULES & params.keys():
        params[name] = _rewrite_results(params[name])
    return equation.replace(params=params)


def _all_same(new: Iterable[Any], old: Iterable[Any]) -> bool:
    return all(a is b for a, b in zip(new, old))


def _replace(equation: Any) -> Any:
    """Replaces an equation by a single one, a call of the fast convolution, so that its context need not change."""
    operands = [jax.ShapeDtypeStruct(variable.aval.shape, variable.aval.dtype) for variable in equation.invars]
    call = jax.jit(lambda lhs, rhs: convolve(lhs, rhs, equation))
    [replacement] = jax.make_jaxpr(call)(*operands).eqns
    return equation.replace(primitive=replacement.primitive, params=replacement.params)


# custom_jvp and custom_vjp store their rules as functions that return a tuple with a jaxpr first.
_DERIVATIVE_RULES = {"jvp_jaxpr_fun", "fwd_jaxpr_thunk"}


def _rewrite_results(rule: Any) -> Any:
    if not hasattr(rule, "call_wrapped"):
        return rule

    def rewritten(*args: Any) -> Any:
        return tuple(_rewrite(value) for value in rule.call_wrapped(*args))

    return linear_util.wrap_init(rewritten, debug_info=rule.debug_info)
