"""Spreads lanes (restarts x targets) over the devices of one or several processes.

Every device runs its share of the lanes; devices communicate only when results are gathered. With several processes
(`jax.distributed.initialize`), every process makes the same calls, the first process supplies the inputs, and every
process gets the complete results.
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
"""A `jax.Device`, which type checkers do not accept as a type."""

_LANES = "lanes"


def first_devices(num_devices: int) -> list[Device]:
    """Returns the first `num_devices` devices of all processes.

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


def device_memory() -> int | None:
    """Bytes of memory of the first device of this process; `None` if it does not say, as CPUs do not."""
    return (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit")


def lane_mesh(devices: Sequence[Device]) -> Mesh:
    """Builds the one-dimensional mesh that lanes are split over.

    Raises:
      ValueError: unless the devices are those of this process alone or of all processes; also for no devices.
    """
    processes = {device.process_index for device in devices}
    if processes not in ({jax.process_index()}, set(range(jax.process_count()))):
        raise ValueError(
            f"devices are those of processes {sorted(processes)}, expected those of process {jax.process_index()} or "
            f"of all {jax.process_count()}"
        )
    return Mesh(np.array(devices), (_LANES,))


def on_lanes(function: Callable, mesh: Mesh | None) -> Callable:
    """Runs `function(lanes, *shared) -> lanes` on every device's share of the lanes; unchanged without a mesh.

    The leading axis of every leaf of `lanes` must be divisible by the number of devices; see `even_lanes`.
    """
    if mesh is None:
        return function

    def spread(lanes: ArrayTree, *shared: Any) -> ArrayTree:
        specs = (P(_LANES), *[P()] * len(shared))
        # No check: attacks may use custom primitives and derivatives, which it rejects.
        on_mesh = jax.shard_map(function, mesh=mesh, in_specs=specs, out_specs=P(_LANES), check_vma=False)
        return on_mesh(lanes, *shared)

    return spread


def even_lanes(lanes: ArrayTree, mesh: Mesh | None) -> ArrayTree:
    """Pads lanes cyclically until every device of the mesh has equally many; unchanged without a mesh."""
    if mesh is None:
        return lanes

    def repeat(leaf: jax.Array) -> jax.Array:
        num_lanes = leaf.shape[0]
        per_device = -(-num_lanes // mesh.size)
        return leaf[jnp.arange(per_device * mesh.size) % num_lanes]

    return jax.tree.map(repeat, lanes)


def to_every_device(tree: ArrayTree, mesh: Mesh | None) -> ArrayTree:
    """Copies the first process's `tree` to every device of the mesh; unchanged without a mesh."""
    if mesh is None:
        return tree
    everywhere = NamedSharding(mesh, P())
    if not mesh.is_multi_process:
        return jax.device_put(tree, everywhere)

    def from_first_process(leaf: Any) -> Any:
        if not isinstance(leaf, (jax.Array, np.ndarray)):  # Python scalars stay weakly typed
            return leaf
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            data = from_first_process(jax.random.key_data(leaf))
            return jax.random.wrap_key_data(data, impl=jax.random.key_impl(leaf))
        # The broadcast is a sum, which promotes small integers.
        values = multihost_utils.broadcast_one_to_all(np.asarray(leaf)).astype(leaf.dtype)
        return jax.make_array_from_callback(leaf.shape, everywhere, lambda index: values[index])

    return jax.tree.map(from_first_process, tree)


def jit_whole(function: Callable, mesh: Mesh | None) -> Callable:
    """Compiles `function` of arguments spread over a mesh; every process gets its complete result."""
    if mesh is None:
        return jax.jit(function)
    compiled = jax.jit(function, out_shardings=NamedSharding(mesh, P()))

    def whole(*arguments: Any) -> ArrayTree:
        return jax.tree.map(lambda leaf: leaf.addressable_data(0), compiled(*arguments))

    return whole


def to_host(array: jax.Array) -> np.ndarray:
    """Gathers an array that may be spread over devices, in every process."""
    return np.asarray(array if array.is_fully_addressable else multihost_utils.process_allgather(array, tiled=True))


def agreed(number: int, mesh: Mesh | None) -> int:
    """Broadcasts the first process's number to all processes of the mesh: measured times differ between them."""
    return number if mesh is None or not mesh.is_multi_process else int(multihost_utils.broadcast_one_to_all(number))
