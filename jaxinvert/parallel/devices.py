"""Lanes, restarts times targets, spread over the devices of one or of several processes.

Every device runs its share of the lanes; nothing is exchanged between them before results are asked for. With several
processes (`jax.distributed.initialize`) each of them makes the same calls; inputs are those of the first process, and
results are whole on every one.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import P
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding

from jaxinvert.types import ArrayTree

Device = Any
"""A `jax.Device`, which is no type to checkers."""

_LANES = "lanes"


def first_devices(num_devices: int) -> list[Device]:
    """The first `num_devices` devices of all processes.

    Raises:
      ValueError: if there are fewer.
    """
    found = jax.devices()
    if num_devices > len(found):
        there = "is 1" if len(found) == 1 else f"are {len(found)}"
        more = f"XLA_FLAGS=--xla_force_host_platform_device_count={num_devices} makes more"
        hint = f"; on CPU {more}" if found[0].platform == "cpu" else ""
        raise ValueError(f"devices is {num_devices}, but there {there}{hint}")
    return found[:num_devices]


def lane_mesh(devices: Sequence[Device]) -> Mesh:
    """The one-dimensional mesh over whose axis lanes are split.

    Raises:
      ValueError: if there is none, or if they belong to some processes, but neither to this one alone nor to all.
    """
    processes = {device.process_index for device in devices}
    if processes not in ({jax.process_index()}, set(range(jax.process_count()))):
        raise ValueError(
            f"devices are those of processes {sorted(processes)}, expected those of process {jax.process_index()} or "
            f"of all {jax.process_count()}"
        )
    return Mesh(np.array(devices), (_LANES,))


def on_lanes(function: Callable, mesh: Mesh | None) -> Callable:
    """Lets every device of the mesh run `function(lanes, *shared) -> lanes` on its share; without a mesh as it is.

    All leaves of `lanes` have a leading axis that the number of devices divides, see `even_lanes`.
    """
    if mesh is None:
        return function

    def spread(lanes: ArrayTree, *shared: Any) -> ArrayTree:
        specs = (P(_LANES), *[P()] * len(shared))
        # Without the check, since attacks may hold primitives and derivatives of their own.
        on_mesh = jax.shard_map(function, mesh=mesh, in_specs=specs, out_specs=P(_LANES), check_vma=False)
        return on_mesh(lanes, *shared)

    return spread


def even_lanes(lanes: ArrayTree, mesh: Mesh | None) -> ArrayTree:
    """Repeats lanes, from the first on, until every device of the mesh has as many; without a mesh as they are."""
    if mesh is None:
        return lanes

    def repeat(leaf: jax.Array) -> jax.Array:
        num_lanes = leaf.shape[0]
        per_device = -(-num_lanes // mesh.size)
        return leaf[jnp.arange(per_device * mesh.size) % num_lanes]

    return jax.tree.map(repeat, lanes)


def to_every_device(tree: ArrayTree, mesh: Mesh | None) -> ArrayTree:
    """Copies the first process's `tree` to every device of the mesh; without a mesh it stays as it is."""
    if mesh is None:
        return tree
    everywhere = NamedSharding(mesh, P())
    if not mesh.is_multi_process:
        return jax.device_put(tree, everywhere)

    def from_first_process(leaf: Any) -> Any:
        if not isinstance(leaf, (jax.Array, np.ndarray)):  # a number of Python's stays one, weakly typed
            return leaf
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            data = from_first_process(jax.random.key_data(leaf))
            return jax.random.wrap_key_data(data, impl=jax.random.key_impl(leaf))
        # The broadcast is a sum, which widens small integers.
        values = multihost_utils.broadcast_one_to_all(np.asarray(leaf)).astype(leaf.dtype)
        return jax.make_array_from_callback(leaf.shape, everywhere, lambda index: values[index])

    return jax.tree.map(from_first_process, tree)


def jit_whole(function: Callable, mesh: Mesh | None) -> Callable:
    """Compiles `function`; what it returns is whole in every process, though its arguments are spread over a mesh."""
    if mesh is None:
        return jax.jit(function)
    compiled = jax.jit(function, out_shardings=NamedSharding(mesh, P()))

    def whole(*arguments: Any) -> ArrayTree:
        return jax.tree.map(lambda leaf: leaf.addressable_data(0), compiled(*arguments))

    return whole


def to_host(array: jax.Array) -> np.ndarray:
    """The whole array in every process, however it is spread over devices."""
    return np.asarray(array if array.is_fully_addressable else multihost_utils.process_allgather(array, tiled=True))


def agreed(number: int, mesh: Mesh | None) -> int:
    """The first process's number, in every process of the mesh; what depends on clocks would differ."""
    return number if mesh is None or not mesh.is_multi_process else int(multihost_utils.broadcast_one_to_all(number))
