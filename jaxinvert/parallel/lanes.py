"""Chooses how many lanes (restarts x targets) run side by side.

An accelerator runs as many as fit in its memory. A CPU runs as many as keep their updates in its cache, and two lanes
per step when one update exceeds it.
"""

from collections.abc import Callable

import jax
from jax import lax

from jaxinvert.parallel.devices import device_memory
from jaxinvert.types import ArrayTree, Update

_CPU_LANE_BYTES = 4 * 2**20
_ACCELERATOR_MEMORY_SHARE = 0.5
_LEAST_ACCELERATOR_MEMORY = 8 * 2**30
_BYTES_PER_UPDATE_BYTE = 16


def map_lanes(function: Callable, lanes: ArrayTree, chunk_size: int) -> ArrayTree:
    """Maps `function` over the leading axis of `lanes`, `chunk_size` at a time.

    A chunk of one is not vmapped: even an axis of length 1 changes how XLA compiles the operations.
    """
    return lax.map(function, lanes, batch_size=chunk_size if chunk_size > 1 else None)


def lanes_at_once(update: Update, num_lanes: int) -> int:
    """Number of lanes to run side by side under vmap.

    On CPU, more lanes help while their updates stay in the cache; on accelerators, until the memory is full. Memory
    is estimated from the update's size; pass an explicit chunk size where the estimate is wrong. Among the sizes that
    fit, a divisor of `num_lanes` is preferred, so that no second program is compiled for a smaller remainder, unless
    it is at most half of the largest size that fits.

    Args:
      update: of one target.
      num_lanes: `R`, or `R x T`, on one device.
    """
    update_bytes = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(update))
    if jax.local_devices()[0].platform == "cpu":
        fitting = _CPU_LANE_BYTES // max(update_bytes, 1)
    else:
        memory = device_memory() or _LEAST_ACCELERATOR_MEMORY
        fitting = int(memory * _ACCELERATOR_MEMORY_SHARE) // max(update_bytes * _BYTES_PER_UPDATE_BYTE, 1)
    fitting = max(1, min(fitting, num_lanes))
    divisor = max(size for size in range(1, fitting + 1) if num_lanes % size == 0)
    even = -(-num_lanes // -(-num_lanes // fitting))
    return divisor if 2 * divisor > fitting else even


def lanes_in_step(chunk_size: int, num_lanes: int) -> int:
    """Number of lanes per loop step, without vmap, when one lane is too large to be vmapped with others.

    On CPU, two independent steps in one loop body overlap: cores need not idle until the slower half of every small
    operation ends. On ResNet20-4 a lane's step is a sixth faster (two Zen 5 cores), and compilation twice as slow.
    """
    return 2 if jax.local_devices()[0].platform == "cpu" and chunk_size == 1 and num_lanes % 2 == 0 else 1
