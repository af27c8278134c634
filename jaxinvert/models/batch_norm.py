"""Interceptors for the BatchNorm layers inside any Flax model; the model itself is not changed.

`flax.linen.intercept_methods` hands every call of a layer to a function. Here are three of them: one writes down
the statistics of what enters each BatchNorm layer, one the layers in their order, and one refuses layers that couple
the examples of a batch.
"""

from collections.abc import Callable
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
    if _calls_batch_norm(context):
        layer = context.module
        in_call = args[1] if len(args) > 1 else kwargs.get("use_running_average")
        if not linen.merge_param("use_running_average", layer.use_running_average, in_call):
            raise ValueError(
                f"BatchNorm layer {'/'.join(layer.path)!r} is in train mode, where every example's gradient depends "
                "on the whole batch: gradients of examples or chunks need batch_norm='eval' or another normalization"
            )
    return next_fn(*args, **kwargs)


def _calls_batch_norm(context: linen.module.InterceptorContext) -> bool:
    return isinstance(context.module, linen.BatchNorm) and context.method_name == "__call__"


def _as_tuple(axis: Any) -> tuple[int, ...]:
    return tuple(axis) if isinstance(axis, (tuple, list)) else (axis,)
