"""Precision of matrix products and convolutions on accelerators, which round their operands unless told otherwise."""

import functools
from collections.abc import Callable
from typing import Literal, ParamSpec, TypeVar

import jax

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

Precision = Literal["default", "high", "highest"]
"""JAX's names. On CPUs all are float32. For float32 operands of products, bits of the fraction that are kept:

| precision | GPU (tensor cores) | TPU                    |
|-----------|--------------------|------------------------|
| default   | 10 (TF32)          | 7 (bfloat16), one pass |
| high      | 10 (TF32)          | about 16, three passes |
| highest   | 23 (float32)       | 23, six passes         |
"""


def at_precision(function: Callable[Arguments, Result], precision: Precision) -> Callable[Arguments, Result]:
    """`function` with its matrix products and convolutions at a precision, whatever the caller's is."""

    @functools.wraps(function)
    def at_this_precision(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        with jax.default_matmul_precision(precision):
            return function(*args, **kwargs)

    return at_this_precision


def at_full_precision(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """`function` at precision "highest", unless the caller has set `jax.default_matmul_precision`."""

    @functools.wraps(function)
    def at_chosen_precision(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        chosen = jax.config.jax_default_matmul_precision  # pyright: ignore[reportAttributeAccessIssue]
        with jax.default_matmul_precision(chosen or "highest"):
            return function(*args, **kwargs)

    return at_chosen_precision
