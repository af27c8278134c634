"""PyTorch's core operations in JAX, by name without overload: what the interpreter of exported graphs calls.

Each takes the arguments of `torch.ops.aten.NAME`. All are differentiable to any order and work under jit and vmap.
Operands of different rank are aligned explicitly, as PyTorch does silently.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxinvert.models.adapters import torch_layers
from jaxinvert.types import Array

_LAST = 2**62


def aligned(*values: Any) -> list[Any]:
    """The operands with leading axes of size 1, so that all arrays have as many axes."""
    ndim = max((jnp.ndim(value) for value in values), default=0)
    return [jnp.reshape(v, (1,) * (ndim - v.ndim) + v.shape) if jnp.ndim(v) else v for v in values]


def _elementwise(function: Callable[..., Array]) -> Callable[..., Array]:
    return lambda *values, **options: function(*aligned(*values))


def _add(a: Any, b: Any, alpha: Any = 1) -> Array:
    a, b = aligned(a, b)
    return a + b if alpha == 1 else a + alpha * b


def _sub(a: Any, b: Any, alpha: Any = 1) -> Array:
    return _add(a, b, alpha=-alpha)


def _div(a: Any, b: Any, rounding_mode: str | None = None) -> Array:
    a, b = aligned(a, b)
    if rounding_mode is None:
        return a / b
    return jnp.floor_divide(a, b) if rounding_mode == "floor" else jnp.trunc(a / b)


def _reduced(function: Callable[..., Array]) -> Callable[..., Array]:
    def reduce(x: Array, dim: Any = None, keepdim: bool = False, **options: Any) -> Array:
        axes = None if dim is None or dim == [] else dim if isinstance(dim, int) else tuple(dim)
        return function(x, axis=axes, keepdims=keepdim)

    return reduce


def _var(x: Array, dim: Any = None, correction: Any = None, keepdim: bool = False, **options: Any) -> Array:
    axes = None if not dim else tuple(dim)
    return jnp.var(x, axis=axes, ddof=1 if correction is None else correction, keepdims=keepdim)


def _vector_norm(x: Array, ord: float = 2, dim: Any = None, keepdim: bool = False, **options: Any) -> Array:
    axes = None if dim is None else tuple(np.atleast_1d(dim).tolist())
    if ord == 2:  # the derivative at zero is zero, as in PyTorch
        squared = jnp.sum(x * x, axis=axes, keepdims=keepdim)
        zero = squared == 0
        return jnp.where(zero, 0.0, jnp.sqrt(jnp.where(zero, 1.0, squared)))
    return jnp.sum(jnp.abs(x) ** ord, axis=axes, keepdims=keepdim) ** (1 / ord)


def _slice(x: Array, dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1) -> Array:
    return x[_slice_of(x, dim, start, end, step)]


def _slice_of(x: Array, dim: int, start: int | None, end: int | None, step: int) -> tuple[slice, ...]:
    end = None if end is None or end >= _LAST else end
    return (slice(None),) * (dim % x.ndim) + (slice(start, end, step),)


def _slice_scatter(
    x: Array, source: Array, dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1
) -> Array:
    return x.at[_slice_of(x, dim, start, end, step)].set(source)


def _select(x: Array, dim: int, index: int) -> Array:
    return lax.index_in_dim(x, index, dim, keepdims=False)


def _select_scatter(x: Array, source: Array, dim: int, index: int) -> Array:
    return x.at[(slice(None),) * (dim % x.ndim) + (index,)].set(source)


def _index(x: Array, indices: Sequence[Any]) -> Array:
    return x[tuple(slice(None) if index is None else index for index in indices)]


def _split(x: Array, sizes: Any, dim: int = 0) -> list[Array]:
    total = x.shape[dim]
    sizes = (
        [sizes] * (total // sizes) + ([total % sizes] if total % sizes else []) if isinstance(sizes, int) else sizes
    )
    return jnp.split(x, np.cumsum(sizes)[:-1].tolist(), axis=dim)


def _view(x: Array, shape: Sequence[int]) -> Array:
    return jnp.reshape(x, tuple(shape))


def _expand(x: Array, shape: Sequence[int], **options: Any) -> Array:
    x = jnp.reshape(x, (1,) * (len(shape) - x.ndim) + x.shape)
    return jnp.broadcast_to(x, tuple(old if new == -1 else new for old, new in zip(x.shape, shape)))


def _squeeze(x: Array, dims: Any = None) -> Array:
    dims = range(x.ndim) if dims is None else [dims] if isinstance(dims, int) else dims
    return jnp.squeeze(x, tuple(dim % x.ndim for dim in dims if x.shape[dim] == 1))


def _repeat(x: Array, repeats: Sequence[int]) -> Array:
    return jnp.tile(x, tuple(repeats))


def _pad(x: Array, pad: Sequence[int], value: float = 0.0) -> Array:
    widths = [(0, 0, 0)] * (x.ndim - len(pad) // 2)
    widths += [(pad[i], pad[i + 1], 0) for i in range(len(pad) - 2, -1, -2)]
    return lax.pad(x, jnp.asarray(value, x.dtype), widths)


def _full(shape: Sequence[int], value: Any, dtype: Any = None, **options: Any) -> Array:
    return jnp.full(tuple(shape), value, dtype)


def _full_like(x: Array, value: Any, dtype: Any = None, **options: Any) -> Array:
    return jnp.full_like(x, value, dtype=dtype)


def _scalar_tensor(value: Any, dtype: Any = None, **options: Any) -> Array:
    return jnp.asarray(value, dtype)


def _arange(start: Any, end: Any = None, step: Any = 1, dtype: Any = None, **options: Any) -> Array:
    return jnp.arange(start, dtype=dtype) if end is None else jnp.arange(start, end, step, dtype=dtype)


def _to_copy(x: Array, dtype: Any = None, **options: Any) -> Array:
    return x if dtype is None else x.astype(dtype)


def _same(x: Array, *unused: Any, **options: Any) -> Array:
    return x


def _clamp(x: Array, min: Any = None, max: Any = None) -> Array:
    # PyTorch passes the gradient on at the bounds; jnp.clip halves it there.
    if min is not None:
        x = jnp.where(x < min, jnp.asarray(min, x.dtype), x)
    return x if max is None else jnp.where(x > max, jnp.asarray(max, x.dtype), x)


def _relu(x: Array) -> Array:
    return jax.nn.relu(x)


def _hardtanh(x: Array, min_val: float = -1.0, max_val: float = 1.0) -> Array:
    inside = (x > min_val) & (x < max_val)  # no gradient at the bounds, as in PyTorch
    return jnp.where(inside, x, lax.stop_gradient(jnp.clip(x, min_val, max_val)))


def _leaky_relu(x: Array, slope: float = 0.01) -> Array:
    return jnp.where(x > 0, x, slope * x)


def _elu(x: Array, alpha: float = 1.0, scale: float = 1.0, input_scale: float = 1.0) -> Array:
    negative = alpha * jnp.expm1(jnp.where(x > 0, 0.0, x * input_scale))
    return scale * jnp.where(x > 0, x, negative)


def _gelu(x: Array, approximate: str = "none") -> Array:
    return jax.nn.gelu(x, approximate=approximate == "tanh")


def _softplus(x: Array, beta: float = 1.0, threshold: float = 20.0) -> Array:
    return jnp.where(x * beta > threshold, x, jax.nn.softplus(jnp.where(x * beta > threshold, 0.0, x * beta)) / beta)


def _softmax(x: Array, dim: int, *unused: Any) -> Array:
    return jax.nn.softmax(x, axis=dim)


def _log_softmax(x: Array, dim: int, *unused: Any) -> Array:
    return jax.nn.log_softmax(x, axis=dim)


def _pow(x: Any, exponent: Any) -> Array:
    if isinstance(exponent, int | float) and exponent == int(exponent) and abs(exponent) <= 8:
        return lax.integer_pow(x, int(exponent))
    x, exponent = aligned(x, exponent)
    return jnp.power(x, exponent)


def _extreme(function: Callable[..., Array], argument: Callable[..., Array]) -> Callable[..., Any]:
    def with_index(x: Array, dim: int, keepdim: bool = False) -> tuple[Array, Array]:
        return function(x, axis=dim, keepdims=keepdim), argument(x, axis=dim, keepdims=keepdim)

    return with_index


def _linear(x: Array, weight: Any, bias: Array | None = None) -> Array:
    product = weight.applied(x) if isinstance(weight, torch_layers.PixelKernel) else x @ weight.T
    return product if bias is None else product + bias.reshape((1,) * (product.ndim - 1) + (-1,))


def _addmm(bias: Array, a: Array, b: Array, beta: float = 1, alpha: float = 1) -> Array:
    product, shift = aligned(alpha * (a @ b), beta * bias)
    return product + shift


_UNARY = {
    **{name: getattr(jnp, name) for name in ("abs", "cos", "sin", "tan", "exp", "expm1", "log", "log1p", "log2")},
    **{name: getattr(jnp, name) for name in ("sqrt", "sign", "floor", "ceil", "tanh", "sinh", "cosh", "isnan")},
    "atan": jnp.arctan,
    "erf": lax.erf,
    "trunc": jnp.trunc,
    "neg": jnp.negative,
    "rsqrt": lax.rsqrt,
    "reciprocal": jnp.reciprocal,
    "sigmoid": jax.nn.sigmoid,
    "silu": jax.nn.silu,
    "logical_not": jnp.logical_not,
    "bitwise_not": jnp.bitwise_not,
    "relu": _relu,
    "log_sigmoid": jax.nn.log_sigmoid,
}
_BINARY = {
    "mul": jnp.multiply,
    "eq": jnp.equal,
    "ne": jnp.not_equal,
    "gt": jnp.greater,
    "ge": jnp.greater_equal,
    "lt": jnp.less,
    "le": jnp.less_equal,
    "maximum": jnp.maximum,
    "minimum": jnp.minimum,
    "remainder": jnp.remainder,
    "floor_divide": jnp.floor_divide,
    "logical_and": jnp.logical_and,
    "logical_or": jnp.logical_or,
    "bitwise_and": jnp.bitwise_and,
    "bitwise_or": jnp.bitwise_or,
    "atan2": jnp.arctan2,
    "where": jnp.where,
}
OPERATIONS: dict[str, Callable[..., Any]] = {
    **{name: functools.partial(lambda f, x: f(x), function) for name, function in _UNARY.items()},
    "round": lambda x, decimals=0: jnp.round(x, decimals),
    **{name: _elementwise(function) for name, function in _BINARY.items()},
    "add": _add,
    "sub": _sub,
    "rsub": lambda a, b, alpha=1: _sub(b, a, alpha),
    "div": _div,
    "pow": _pow,
    "sum": _reduced(jnp.sum),
    "mean": _reduced(jnp.mean),
    "amax": _reduced(jnp.max),
    "amin": _reduced(jnp.min),
    "any": _reduced(jnp.any),
    "all": _reduced(jnp.all),
    "prod": _reduced(jnp.prod),
    "argmax": _reduced(jnp.argmax),
    "max": _extreme(jnp.max, jnp.argmax),
    "min": _extreme(jnp.min, jnp.argmin),
    "var": _var,
    "linalg_vector_norm": _vector_norm,
    "cumsum": lambda x, dim, **options: jnp.cumsum(x, axis=dim),
    "view": _view,
    "_unsafe_view": _view,
    "reshape": _view,
    "permute": lambda x, dims: jnp.transpose(x, tuple(dims)),
    "transpose": jnp.swapaxes,
    "t": jnp.transpose,
    "unsqueeze": lambda x, dim: jnp.expand_dims(x, dim),
    "squeeze": _squeeze,
    "expand": _expand,
    "repeat": _repeat,
    "flip": lambda x, dims: jnp.flip(x, tuple(dims)),
    "roll": lambda x, shifts, dims=(): jnp.roll(x, tuple(shifts), tuple(dims) or None),
    "cat": lambda tensors, dim=0: jnp.concatenate([t for t in tensors if t.size or t.ndim > 1], axis=dim),
    "stack": lambda tensors, dim=0: jnp.stack(tensors, axis=dim),
    "split": _split,
    "split_with_sizes": _split,
    "slice": _slice,
    "slice_scatter": _slice_scatter,
    "select": _select,
    "select_scatter": _select_scatter,
    "index": _index,
    "index_select": lambda x, dim, index: jnp.take(x, index, axis=dim),
    "gather": lambda x, dim, index: jnp.take_along_axis(x, index, axis=dim),
    "embedding": lambda weight, indices, *unused: weight[indices],
    "masked_fill": lambda x, mask, value: jnp.where(*aligned(mask, jnp.asarray(value, x.dtype), x)),
    "constant_pad_nd": _pad,
    "copy": lambda x, source: jnp.broadcast_to(aligned(x, source)[1], x.shape).astype(x.dtype),
    "clone": _same,
    "alias": _same,
    "detach": lambda x: lax.stop_gradient(x),
    "contiguous": _same,
    "_to_copy": _to_copy,
    "full": _full,
    "zeros": lambda shape, **options: _full(shape, 0.0, **options),
    "ones": lambda shape, **options: _full(shape, 1.0, **options),
    "empty": lambda shape, **options: _full(shape, 0.0, **options),
    "full_like": _full_like,
    "zeros_like": lambda x, **options: jnp.zeros_like(x),
    "ones_like": lambda x, **options: jnp.ones_like(x),
    "scalar_tensor": _scalar_tensor,
    "arange": _arange,
    "tril": lambda x, diagonal=0: jnp.tril(x, diagonal),
    "triu": lambda x, diagonal=0: jnp.triu(x, diagonal),
    "clamp": _clamp,
    "clamp_min": lambda x, low: _clamp(x, low),
    "clamp_max": lambda x, high: _clamp(x, None, high),
    "hardtanh": _hardtanh,
    "hardswish": lambda x: x * jnp.clip(x + 3, 0, 6) / 6,
    "hardsigmoid": lambda x: jnp.clip(x + 3, 0, 6) / 6,
    "leaky_relu": _leaky_relu,
    "elu": _elu,
    "gelu": _gelu,
    "softplus": _softplus,
    "mish": lambda x: x * jnp.tanh(jax.nn.softplus(x)),
    "_softmax": _softmax,
    "softmax": _softmax,
    "_log_softmax": _log_softmax,
    "log_softmax": _log_softmax,
    "mm": jnp.matmul,
    "bmm": jnp.matmul,
    "matmul": jnp.matmul,
    "addmm": _addmm,
    "linear": _linear,
    "convolution": torch_layers.convolution,
    "native_layer_norm": torch_layers.layer_norm,
    "native_group_norm": torch_layers.group_norm,
    "_native_batch_norm_legit_no_training": torch_layers.batch_norm_eval,
    "_native_batch_norm_legit": torch_layers.batch_norm_train,
    "_native_batch_norm_legit_functional": torch_layers.batch_norm_train,
    "scaled_dot_product_attention": torch_layers.attention,
    "max_pool2d_with_indices": torch_layers.max_pool,
    "avg_pool2d": torch_layers.avg_pool,
    "_adaptive_avg_pool2d": torch_layers.adaptive_avg_pool,
    "upsample_bilinear2d": torch_layers.upsample_bilinear,
    "upsample_nearest2d": torch_layers.upsample_nearest,
    "reflection_pad2d": functools.partial(torch_layers.pad, mode="reflect"),
    "replication_pad2d": functools.partial(torch_layers.pad, mode="edge"),
    "pixel_shuffle": torch_layers.pixel_shuffle,
    "sym_size": lambda x, dim: x.shape[dim],
    "sym_numel": lambda x: math.prod(x.shape),
}
"""Name without overload -> function of the same arguments; random operations are `torch_layers.RANDOM`."""
