"""How many lanes, restarts times targets, run at once, and how.

Accelerators want as many as their memory holds; a CPU those whose updates stay in its cache, and of larger ones two.
"""

from collections.abc import Callable

import jax
from jax import lax

from jaxinvert.types import ArrayTree, Update

_CPU_LANE_BYTES = 4 * 2**20
_ACCELERATOR_MEMORY_SHARE = 0.5
_BYTES_PER_UPDATE_BYTE = 16


def map_lanes(function: Callable, lanes: ArrayTree, chunk_size: int) -> ArrayTree:
    """Maps `function` over the leading axis of `lanes`, `chunk_size` at a time.

    A chunk of one is not vmapped: even an axis of length 1 changes how operations are compiled.
    """
    return lax.map(function, lanes, batch_size=chunk_size if chunk_size > 1 else None)


def lanes_at_once(update: Update, num_lanes: int) -> int:
    """How many lanes to run side by side under vmap.

    On CPU lanes pay while their updates stay in the cache; on accelerators they pay until the memory is full
    (estimated from the update's size; pass an explicit chunk size where the estimate is off). Among the sizes that
    fit, a divisor of `num_lanes` is preferred, so that no smaller remainder program is compiled, unless it would
    leave half of the room unused.

    Args:
      update: of one target.
      num_lanes: `R`, or `R x T`, on one device.
    """
    update_bytes = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(update))
    device = jax.local_devices()[0]
    if device.platform == "cpu":
        fitting = _CPU_LANE_BYTES // max(update_bytes, 1)
    else:
        memory = (device.memory_stats() or {}).get("bytes_limit", 8 * 2**30)
        fitting = int(memory * _ACCELERATOR_MEMORY_SHARE) // max(update_bytes * _BYTES_PER_UPDATE_BYTE, 1)
    fitting = max(1, min(fitting, num_lanes))
    divisor = max(size for size in range(1, fitting + 1) if num_lanes % size == 0)
    even = -(-num_lanes // -(-num_lanes // fitting))
    return divisor if 2 * divisor > fitting else even


def lanes_in_step(chunk_size: int, num_lanes: int) -> int:
    """How many lanes, too large to run side by side under vmap, take each step together, apart from one another.

    On CPU two independent steps fill each other's gaps: the cores need not wait for the slower half of every small
    operation. On ResNet20-4 that makes a lane's step a sixth faster (two Zen 5 cores), and compiling twice as slow.
    """
    return 2 if jax.local_devices()[0].platform == "cpu" and chunk_size == 1 and num_lanes % 2 == 0 else 1
