"""A drop-in for `jax.lax.conv_general_dilated` that is fast under second derivatives and under vmap over restarts.

A convolution is one trilinear form `T(x, w, y) = <conv(x, w), y>`. Its three partial maps

    convolve(x, w) -> y        input_transpose(y, w) -> x        kernel_gradient(x, y) -> w

are closed under differentiation: each is linear in both arguments, and its transpose in either is one of the other
two. They are three primitives here, so derivatives of any order (reverse, forward or mixed) use only these three, and
each has its own lowering per backend (`lowerings`).

All three have a leading axis of independent lanes. The groups of a grouped or depthwise convolution are lanes, and so
is what `vmap` maps in both operands.
"""

import functools
import operator
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import core, lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from jaxinvert.nn import lowerings
from jaxinvert.nn.geometry import Geometry
from jaxinvert.types import Array

# Axes of each operand's lanes G, examples N, channels C and features O; the spatial axes are in between.
_AXES = {"x": {"G": 0, "N": 1, "C": -1}, "w": {"G": 0, "C": -2, "O": -1}, "y": {"G": 0, "N": 1, "O": -1}}


def _member(left: str, right: str, result: str, name: str) -> Primitive:
    """The primitive that maps operands of kinds `left` and `right` to one of kind `result`."""
    primitive = Primitive(name)

    def abstract_eval(a: Any, b: Any, *, geometry: Geometry) -> Any:
        sizes = {axis: a.shape[index] for axis, index in _AXES[left].items()}
        sizes |= {axis: b.shape[index] for axis, index in _AXES[right].items()}
        shape = {
            "x": lambda: (sizes["G"], sizes["N"], *geometry.input_shape, sizes["C"]),
            "w": lambda: (sizes["G"], *geometry.kernel_shape, sizes["C"], sizes["O"]),
            "y": lambda: (sizes["G"], sizes["N"], *geometry.output_shape, sizes["O"]),
        }[result]()
        return core.ShapedArray(shape, a.dtype)

    def batch(operands: Sequence[Array], dims: Sequence[int | None], *, geometry: Geometry) -> tuple[Array, int]:
        # If both operands are mapped, the mapped axis merges into the lanes. If only one is, it merges into the axis
        # that only this operand and the result have (examples, channels or features): one larger product.
        kinds = [kind for kind, dim in zip((left, right), dims) if dim is not None]
        others = [kind for kind, dim in zip((left, right), dims) if dim is None]
        axis = "G" if not others else next(iter(_AXES[kinds[0]].keys() - _AXES[others[0]].keys()))
        merged = []
        for operand, kind, dim in zip(operands, (left, right), dims):
            if dim is not None:
                num_lanes = operand.shape[dim]
                operand = _merge(operand, dim, _AXES[kind][axis])
            merged.append(operand)
        out = primitive.bind(*merged, geometry=geometry)
        index = _AXES[result][axis] % out.ndim
        return out.reshape(*out.shape[:index], num_lanes, -1, *out.shape[index + 1 :]), index

    primitive.def_abstract_eval(abstract_eval)
    primitive.def_impl(functools.partial(_evaluate, primitive))
    batching.primitive_batchers[primitive] = batch
    return primitive


@functools.partial(jax.jit, static_argnums=0, static_argnames="geometry")
def _evaluate(primitive: Primitive, a: Array, b: Array, *, geometry: Geometry) -> Array:
    return primitive.bind(a, b, geometry=geometry)


def _merge(operand: Array, source: int, axis: int) -> Array:
    """Moves axis `source` before `axis`, an index into the other axes, and merges the two."""
    axis %= operand.ndim - 1
    moved = jnp.moveaxis(operand, source, axis)
    return moved.reshape(*moved.shape[:axis], -1, *moved.shape[axis + 2 :])


_convolve_p = _member("x", "w", "y", "convolve")
_input_transpose_p = _member("y", "w", "x", "convolve_input_transpose")
_kernel_gradient_p = _member("x", "y", "w", "convolve_kernel_gradient")

# Each rule gets the cotangent of the result and both operands, of which the first or the second is undefined.
ad.defbilinear(
    _convolve_p,
    lambda y, x, w, **static: _input_transpose_p.bind(y, w, **static),
    lambda y, x, w, **static: _kernel_gradient_p.bind(x, y, **static),
)
ad.defbilinear(
    _input_transpose_p,
    lambda x, y, w, **static: _convolve_p.bind(x, w, **static),
    lambda x, y, w, **static: _kernel_gradient_p.bind(x, y, **static),
)
ad.defbilinear(
    _kernel_gradient_p,
    lambda w, x, y, **static: _input_transpose_p.bind(y, w, **static),
    lambda w, x, y, **static: _convolve_p.bind(x, w, **static),
)


def _register(primitive: Primitive, rule: Callable[..., Array], platform: str | None = None) -> None:
    mlir.register_lowering(primitive, mlir.lower_fun(rule, multiple_results=False), platform=platform)


_register(_convolve_p, lowerings.xla_convolve)
_register(_input_transpose_p, lowerings.xla_input_transpose)
_register(_kernel_gradient_p, lowerings.xla_kernel_gradient)
_register(_convolve_p, lowerings.cpu_convolve, "cpu")
_register(_input_transpose_p, lowerings.cpu_input_transpose, "cpu")
_register(_kernel_gradient_p, lowerings.cpu_kernel_gradient, "cpu")


def conv_general_dilated(
    lhs: Array,
    rhs: Array,
    window_strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    lhs_dilation: Sequence[int] | None = None,
    rhs_dilation: Sequence[int] | None = None,
    dimension_numbers: Any = None,
    feature_group_count: int = 1,
    batch_group_count: int = 1,
    precision: Any = None,
    preferred_element_type: Any = None,
    out_sharding: Any = None,
) -> Array:
    """`jax.lax.conv_general_dilated`, fast under `grad` of `grad` and under `vmap` of either operand.

    A drop-in for `flax.linen.Conv(conv_general_dilated=...)`: same arguments, shapes, results (to 1e-5 relative in
    float32) and errors, all derivatives, every transformation; `shard_map` needs `check_vma=False`. Unsupported cases
    are passed to `lax` unchanged: operands that are not floats of one type, another `preferred_element_type`, an
    `out_sharding`, empty operands and no spatial axis.

    Args:
      lhs: inputs of rank `D + 2`, in the layout `dimension_numbers` names.
      rhs: kernels of rank `D + 2`.
      window_strides: `D` steps between windows, in pixels.
      padding: `"SAME"`, `"SAME_LOWER"`, `"VALID"` or `D` pairs (low, high), in pixels, possibly negative.
      lhs_dilation: `D` steps between input pixels, or `None` for 1.
      rhs_dilation: `D` steps between kernel taps, or `None` for 1.
      dimension_numbers: as in `lax`; `None` is `NCHW`, `OIHW`, `NCHW`.
      feature_group_count: as in `lax`.
      batch_group_count: as in `lax`.
      precision: as in `lax`; passed to every matrix product and convolution.
      preferred_element_type: as in `lax`; only `None` or the operands' type is fast.
      out_sharding: as in `lax`; only `None` is fast.

    Returns:
      The convolution, of rank `D + 2`.

    Raises:
      ValueError: as in `lax`, for operands or arguments that do not fit each other.
      TypeError: as in `lax`, for operands of different types.
    """
    plain = functools.partial(
        lax.conv_general_dilated,
        window_strides=window_strides,
        padding=padding,
        lhs_dilation=lhs_dilation,
        rhs_dilation=rhs_dilation,
        dimension_numbers=dimension_numbers,
        feature_group_count=feature_group_count,
        batch_group_count=batch_group_count,
        precision=precision,
        preferred_element_type=preferred_element_type,
        out_sharding=out_sharding,
    )
    # Tracing the lax convolution checks the arguments, with lax's own messages, and resolves all defaults.
    equations = jax.make_jaxpr(plain)(lhs, rhs).eqns
    if len(equations) > 1 or not is_supported(equations[0]):
        return plain(lhs, rhs)
    return convolve(lhs, rhs, equations[0])


def is_supported(equation: Any) -> bool:
    """Whether the three primitives can express the lax convolution in `equation` of a jaxpr."""
    params = equation.params
    lhs, rhs, out = (variable.aval for variable in (*equation.invars, *equation.outvars))
    return (
        params.get("out_sharding") is None
        and lhs.dtype == rhs.dtype == out.dtype
        and jnp.issubdtype(lhs.dtype, jnp.floating)
        and lhs.ndim > 2
        and min(lhs.size, rhs.size, out.size) > 0
    )


def convolve(lhs: Array, rhs: Array, equation: Any) -> Array:
    """Computes the lax convolution in `equation` of a jaxpr, applied to `lhs` and `rhs`, by the primitives here."""
    params = equation.params
    lhs_axes, (out_features, in_features, *window), out_axes = params["dimension_numbers"]
    channels_last = operator.itemgetter(0, *range(2, lhs.ndim), 1)
    out_axes = channels_last(out_axes)
    num_groups = params["feature_group_count"] * params["batch_group_count"]  # one of them is 1
    grouped_axis = 0 if params["batch_group_count"] > 1 else -1
    x = _groups_first(jnp.transpose(lhs, channels_last(lhs_axes)), grouped_axis, num_groups)
    w = _groups_first(jnp.transpose(rhs, (*window, in_features, out_features)), -1, num_groups)
    geometry = Geometry(
        input_shape=x.shape[2:-1],
        kernel_shape=w.shape[1:-2],
        output_shape=tuple(equation.outvars[0].aval.shape[axis] for axis in out_axes[1:-1]),
        strides=tuple(params["window_strides"]),
        padding=tuple(params["padding"]),
        input_dilation=tuple(params["lhs_dilation"]),
        kernel_dilation=tuple(params["rhs_dilation"]),
        precision=params["precision"],
    )
    y = _merge(_convolve_p.bind(x, w, geometry=geometry), 0, -1)
    return jnp.transpose(y, [out_axes.index(axis) for axis in range(y.ndim)])


def _groups_first(operand: Array, axis: int, num_groups: int) -> Array:
    """Splits `axis` into groups of neighbors, and moves the axis of groups to the front."""
    axis %= operand.ndim
    split = operand.reshape(*operand.shape[:axis], num_groups, -1, *operand.shape[axis + 1 :])
    return jnp.moveaxis(split, axis, 0)
