"""Limits of numbers in configurations: what is beyond them is refused with one line, not by the allocator."""

import math
import os
import re

import jax
import numpy as np

from jaxinvert.parallel.devices import device_memory

MAX_EXAMPLES = 1_000_000
"""Examples per client, targets, restarts, words of a vocabulary."""
MAX_LOCAL_STEPS = 10_000
"""Steps of one client's local training, all of which an attacker differentiates through."""
MAX_CLIENTS = 10_000
"""Clients that are securely aggregated."""
MAX_ROUNDS = 1_000
MAX_STEPS = 2**31 - 2
MAX_SEED = 2**32 - 1
MAX_CHUNK = 2**31 - 1
MAX_WIDTH = 65_536
"""Of a layer of a network with sizes in its name."""
MAX_DEPTH = 1_000
_MAX_PARAMETERS = 1 << 30
_DEPTHS = (r"resnet(\d+)-\d+", r"vit-[a-z-]+-\d+-\d+-(\d+)")


def at_least(least: int, **numbers: int | None) -> None:
    """Raises ValueError for a number below `least`; `None` is allowed."""
    for name, value in numbers.items():
        if value is not None and value < least:
            raise ValueError(f"{name} is {value}, expected at least {least}")


def at_most(limit: int, **numbers: int | None) -> None:
    """Raises ValueError for a number above `limit`; `None` is allowed."""
    for name, value in numbers.items():
        if value is not None and value > limit:
            raise ValueError(f"{name} is {value}, expected at most {limit:,}")


def between(least: int, limit: int, **numbers: int | None) -> None:
    """Raises ValueError for a number below `least` or above `limit`; `None` is allowed."""
    at_least(least, **numbers)
    at_most(limit, **numbers)


def positive(**numbers: float) -> None:
    """Raises ValueError for a number that is not positive and finite."""
    for name, value in numbers.items():
        if not 0 < value < np.inf:
            raise ValueError(f"{name} is {value}, expected a positive number")


def check_model_name(name: str) -> None:
    """Raises ValueError for a network's name with a size in it, such as `mlp-256`, that is beyond all limits."""
    sizes = [int(size[:20]) for size in re.findall(r"\d+", name)]
    if sizes and max(sizes) > MAX_WIDTH:
        raise ValueError(f"model is {name[:60]!r}, expected sizes of at most {MAX_WIDTH:,}")
    depths = [int(found[1]) for pattern in _DEPTHS if (found := re.fullmatch(pattern, name))]
    if max([len(sizes), *depths]) > MAX_DEPTH:
        raise ValueError(f"model is {name[:60]!r}, expected at most {MAX_DEPTH:,} layers")


def check_parameters(params: object, *, model: str) -> None:
    """Raises ValueError for a network with too many parameters.

    Args:
      params: its parameters, or their shapes.
      model: its name.
    """
    if (count := sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))) > _MAX_PARAMETERS:
        raise ValueError(f"model {model} has {count:,} parameters, expected at most {_MAX_PARAMETERS:,}")


def check_lanes(
    targets: int, restarts: int, num_examples: int, input_shape: tuple[int, ...], *, devices: int
) -> None:
    """Raises ValueError for a search whose iterates, present and best, are larger than the memory of its devices."""
    needed = 2 * 4 * targets * restarts * num_examples * math.prod(input_shape)
    if needed > (memory := _memory(devices)):
        size = "x".join(map(str, input_shape))
        raise ValueError(
            f"{targets:,} targets x {restarts:,} restarts x {num_examples:,} images of {size} need "
            f"{needed / 2**30:,.1f} GiB at least, but there are {memory / 2**30:,.1f} GiB: give fewer targets, "
            "restarts or examples"
        )


def _memory(devices: int) -> float:
    """Bytes of memory of so many devices; that of the machine where they share it, infinite if unknown."""
    of_one = device_memory()
    return devices * of_one if of_one else machine_memory()


def machine_memory() -> float:
    """Bytes of memory of this machine; infinite if unknown."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # not on this platform
        return math.inf
