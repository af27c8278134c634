"""Runs a solver in float64 inside float32 programs: rank tests and exact solutions fail in float32 (`methods`)."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxinvert.types import ArrayTree


def in_float64(solve: Callable[..., ArrayTree]) -> Callable[..., Any]:
    """Runs `solve` on float64 copies of its arguments, compiled separately; floats are returned as float32.

    It may be called under `jit` and `vmap` in a float32 program. Limits of jax (0.10): random numbers must be drawn
    outside, and `argmax` needs float32 operands, since both are lowered outside of the 64-bit context. The results
    stay float64 if the caller has enabled it.
    """

    def wide(leaf: Any) -> Any:
        return leaf.astype(jnp.float64) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf

    def narrow(leaf: Any) -> Any:
        if jnp.issubdtype(leaf.dtype, jnp.floating):
            return leaf.astype(jnp.float32)
        return leaf.astype(jnp.int32) if jnp.issubdtype(leaf.dtype, jnp.integer) else leaf

    def solve_in_float64(*arguments: ArrayTree) -> ArrayTree:
        keep_wide = jax.config.jax_enable_x64  # pyright: ignore[reportAttributeAccessIssue]
        with jax.enable_x64(True):

            @jax.jit
            def run(arguments: tuple) -> ArrayTree:
                found = solve(*jax.tree.map(wide, arguments))
                return found if keep_wide else jax.tree.map(narrow, found)

            return run(arguments)

    return solve_in_float64
