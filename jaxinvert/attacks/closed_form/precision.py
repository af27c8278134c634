"""Runs a solver in float64 inside float32 programs: rank tests and exact solutions fail in float32 (`methods`)."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer
from jax.extend import core

from jaxinvert.types import ArrayTree

_WITH_FLOAT64 = ("cpu", "cuda", "rocm")
"""Platforms with float64 and its linear algebra. On others (TPU) the solver runs on the host's CPU."""


def in_float64(solve: Callable[..., ArrayTree]) -> Callable[..., Any]:
    """Runs `solve` on float64 copies of its arguments, compiled separately; floats are returned as float32.

    It may be called under `jit` and `vmap` in a float32 program. If that runs on a platform without float64, the
    solver runs on the host's CPU, one lane after the other. Limits of jax (0.10): random numbers must be drawn
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

        def run(*arguments: ArrayTree) -> ArrayTree:
            found = solve(*jax.tree.map(wide, arguments))
            return found if keep_wide else jax.tree.map(narrow, found)

        arguments = jax.tree.map(jnp.asarray, arguments)
        with jax.enable_x64(True):
            closed, result = jax.make_jaxpr(run, return_shape=True)(*arguments)
        outputs, structure = jax.tree.flatten(result)
        # Tracers that the solver uses beside its arguments, such as of hyperparameters, become operands: the host is
        # given numbers.
        traced = [place for place, value in enumerate(closed.consts) if isinstance(value, Tracer)]
        operands = [*(closed.consts[place] for place in traced), *jax.tree.leaves(arguments)]
        return jax.tree.unflatten(structure, _where_it_can_run(_of_operands(closed, traced), operands, outputs))

    return solve_in_float64


def _of_operands(closed: Any, traced: list[int]) -> Callable[..., list]:
    """A closed jaxpr as a function of its traced constants and its arguments, compiled in float64."""

    def run(*operands: Any) -> list:
        constants = list(closed.consts)
        for place, value in zip(traced, operands):
            constants[place] = value
        with jax.enable_x64(True):
            return jax.jit(core.jaxpr_as_fun(closed.replace(consts=constants)))(*operands[len(traced) :])

    return run


def _where_it_can_run(run: Callable[..., list], operands: list, outputs: list) -> list:
    """`run` as a part of the program where the platform has float64; elsewhere the program calls it on the host."""

    def on_host(*operands: Any) -> list:
        with jax.default_device(jax.local_devices(backend="cpu")[0]):
            return [np.asarray(leaf) for leaf in run(*map(np.asarray, operands))]

    def by_callback(*operands: Any) -> list:
        return jax.pure_callback(on_host, outputs, *operands, vmap_method="sequential")

    platforms = dict.fromkeys(_WITH_FLOAT64, run)
    with jax.enable_x64(True):  # under vmap, the branches are traced again
        return jax.jit(lambda *operands: lax.platform_dependent(*operands, default=by_callback, **platforms))(
            *operands
        )
