"""Interceptors for the BatchNorm layers inside any Flax model; the model itself is not changed.

`flax.linen.intercept_methods` hands every call of a layer to a function. Such functions here write down the
statistics of what enters each BatchNorm layer, the layers in their order, and their modes; put them into other modes;
and refuse layers that couple the examples of a batch.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from typing import Any

import jax.numpy as jnp
from flax import linen


def sow_batch_statistics(
    next_fn: Callable[..., Any], args: tuple, kwargs: dict[str, Any], context: linen.module.InterceptorContext
) -> Any:
    """Writes mean and biased variance of each BatchNorm layer's input into the collection "batch_statistics".

    Both are `[C]`, over all axes but the layer's feature axes and over `mask`, in either mode of the layer. The
    collection is a tree like `batch_stats`.
    """
    if _calls_batch_norm(context):
        layer, (x, *_) = context.module, args
        features = [axis % x.ndim for axis in _as_tuple(layer.axis)]
        reduced = tuple(axis for axis in range(x.ndim) if axis not in features)
        x = jnp.asarray(x, jnp.promote_types(x.dtype, jnp.float32))  # Flax does this for half precision
        mask = kwargs.get("mask")
        layer.put_variable("batch_statistics", "mean", jnp.mean(x, reduced, where=mask))
        layer.put_variable("batch_statistics", "var", jnp.var(x, reduced, where=mask))
    return next_fn(*args, **kwargs)


def record_batch_norm(
    called: list[str],
    next_fn: Callable[..., Any],
    args: tuple,
    kwargs: dict[str, Any],
    context: linen.module.InterceptorContext,
) -> Any:
    """Appends the path of each BatchNorm layer to `called`, in the order in which they are called."""
    if _calls_batch_norm(context):
        called.append("/".join(context.module.path))
    return next_fn(*args, **kwargs)


def refuse_train_mode(
    next_fn: Callable[..., Any], args: tuple, kwargs: dict[str, Any], context: linen.module.InterceptorContext
) -> Any:
    """Raises ValueError at a BatchNorm layer in train mode: its output for one example depends on all others."""
    if _calls_batch_norm(context) and not _uses_running_average(context.module, args, kwargs):
        raise ValueError(
            f"BatchNorm layer {'/'.join(context.module.path)!r} is in train mode, where every example's gradient "
            "depends on the whole batch: gradients of examples or chunks need batch_norm='eval' or another "
            "normalization"
        )
    return next_fn(*args, **kwargs)


def record_modes(
    modes: dict[str, bool],
    next_fn: Callable[..., Any],
    args: tuple,
    kwargs: dict[str, Any],
    context: linen.module.InterceptorContext,
) -> Any:
    """Writes into `modes`, by the path of each BatchNorm layer, whether it uses its running statistics."""
    if _calls_batch_norm(context):
        modes["/".join(context.module.path)] = _uses_running_average(context.module, args, kwargs)
    return next_fn(*args, **kwargs)


_modes: ContextVar[Mapping[str, bool]] = ContextVar("modes of BatchNorm layers", default={})  # noqa: B039


@contextlib.contextmanager
def norms_in_modes(modes: Mapping[str, bool]) -> Iterator[None]:
    """Puts the BatchNorm layers that are called in this context into other modes than the module gives them.

    Args:
      modes: by path, whether the layer uses its running statistics.
    """
    before = _modes.set(modes)
    try:
        with linen.intercept_methods(functools.partial(_put_into_mode, modes)):
            yield
    finally:
        _modes.reset(before)


def _put_into_mode(
    modes: Mapping[str, bool],
    next_fn: Callable[..., Any],
    args: tuple,
    kwargs: dict[str, Any],
    context: linen.module.InterceptorContext,
) -> Any:
    layer: Any = context.module
    path = "/".join(layer.path)
    if not _calls_batch_norm(context) or path not in modes:
        return next_fn(*args, **kwargs)
    if layer.use_running_average is None:
        return next_fn(args[0], **{**kwargs, "use_running_average": modes[path]})
    own = layer.use_running_average
    try:
        object.__setattr__(layer, "use_running_average", modes[path])  # Flax's modules are frozen
        return next_fn(*args, **kwargs)
    finally:
        object.__setattr__(layer, "use_running_average", own)


def _uses_running_average(layer: Any, args: tuple, kwargs: dict[str, Any]) -> bool:
    """Whether a call of a layer uses its running statistics; interceptors further in may have changed its mode."""
    if (mode := _modes.get().get("/".join(layer.path))) is not None:
        return mode
    in_call = args[1] if len(args) > 1 else kwargs.get("use_running_average")
    return linen.merge_param("use_running_average", layer.use_running_average, in_call)


def _calls_batch_norm(context: linen.module.InterceptorContext) -> bool:
    return isinstance(context.module, linen.BatchNorm) and context.method_name == "__call__"


def _as_tuple(axis: Any) -> tuple[int, ...]:
    return tuple(axis) if isinstance(axis, (tuple, list)) else (axis,)
