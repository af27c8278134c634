"""Chooses the chunk size of a search, the number of lanes run at once, by measuring speed and memory."""

import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from jaxinvert.jobs.attacker import Program
from jaxinvert.jobs.automatic import AUTO, search_for
from jaxinvert.jobs.config import JobConfig
from jaxinvert.jobs.execute import execute, search_arguments
from jaxinvert.parallel.devices import device_memory
from jaxinvert.types import Observation

_MEMORY_SHARE = 0.9
_SECONDS_TO_MEASURE = 1.0


class ChunkCost(NamedTuple):
    """Measured memory and speed of a chunk size.

    Attributes:
      chunk: number of lanes run at once.
      peak_bytes: peak memory of the compiled program per device, in bytes; 0 if unknown.
      fits: whether the device has enough memory.
      seconds_compile: measured compilation time.
      steps_per_second: measured steps per second of all lanes together; 0 if the chunk does not fit.
    """

    chunk: int
    peak_bytes: int
    fits: bool
    seconds_compile: float
    steps_per_second: float


def chunk_costs(
    config: JobConfig,
    program_for: Callable[[JobConfig], Program],
    observations: Observation,
    *,
    memory: int | None = None,
    only_if_worth: bool = False,
) -> list[ChunkCost]:
    """Compiles and times a few steps of an iterative attack for chunk sizes 1, 2, 4 ... up to all lanes.

    Larger chunks are faster until the memory (on accelerators) or the cache (on CPUs) is full. Measuring therefore
    stops at the first chunk that does not fit, or that is clearly slower than the best.

    Args:
      config: the job.
      program_for: returns the program of the job with another chunk size.
      observations: the job's observations.
      memory: memory of a device in bytes; by default as reported by the device, if it reports any.
      only_if_worth: begin with the chunk size that the job takes by itself, whose program is needed anyway, and
        measure another one only if the last measurement took less time than twice as many lanes at once can save.

    Raises:
      ValueError: if the attack is a closed form, which has no lanes.
    """
    if config.attacker.attack == AUTO:  # only its search has lanes
        config = config.replace(attack=search_for(config))
    if not program_for(config).iterates:
        raise ValueError(f"attack {config.attacker.attack!r} is a closed form, which has no restarts to run at once")
    memory = memory or device_memory()
    lanes = config.data.targets * config.search.restarts
    orders = [_candidates(-(-lanes // (config.search.devices or 1)))]
    if only_if_worth:
        usual = program_for(config).search().lanes_side_by_side(observations)
        larger, smaller = ([chunk for chunk in orders[0] if way * (chunk - usual) > 0] for way in (1, -1))
        orders = [[usual, *larger], smaller[::-1]]
    costs: list[ChunkCost] = []
    seconds = 0.0
    for order in orders:
        for chunk in order:
            if only_if_worth and seconds > _most_saved(config, costs):
                return costs
            begin = time.perf_counter()
            form = config.replace(chunk=chunk)
            costs.append(_cost(form, program_for, observations, memory, briefly=only_if_worth))
            seconds = time.perf_counter() - begin
            if not costs[-1].fits or costs[-1].steps_per_second < 0.7 * _best(costs):
                break
    return costs


def _best(costs: Sequence[ChunkCost]) -> float:
    return max((cost.steps_per_second for cost in costs), default=0.0)


def _most_saved(config: JobConfig, costs: Sequence[ChunkCost]) -> float:
    """Seconds that twice as many lanes at once can save: half of what the job takes by the fastest chunk so far."""
    best = _best(costs)
    lane_steps = (config.search.steps + 1) * config.data.targets * config.search.restarts
    return lane_steps / best / 2 if best else float("inf")


def fastest(costs: Sequence[ChunkCost]) -> int:
    """The chunk size with the most steps per second among those that fit.

    Raises:
      ValueError: if none fits.
    """
    fitting = [cost for cost in costs if cost.fits]
    if not fitting:
        least = min(cost.peak_bytes for cost in costs) / 2**20
        raise ValueError(f"not enough memory: one lane needs {least:,.0f} MiB; try gradient_chunk or a smaller batch")
    return max(fitting, key=lambda cost: cost.steps_per_second).chunk


def _candidates(num_lanes: int) -> list[int]:
    """Chunk sizes to measure: 1, 2, 4 ... and all lanes."""
    return sorted({min(2**power, num_lanes) for power in range(num_lanes.bit_length() + 1)})


def _cost(
    config: JobConfig,
    program_for: Callable[[JobConfig], Program],
    observations: Observation,
    memory: int | None,
    *,
    briefly: bool,
) -> ChunkCost:
    """Compiles and times one chunk size; `briefly`: one step only if the job takes less than ten measurements."""
    program = program_for(config)
    peak = program.search().peak_bytes(*search_arguments(config, program, observations))
    assert config.search.chunk is not None
    if memory is not None and peak > _MEMORY_SHARE * memory:
        return ChunkCost(config.search.chunk, peak, False, 0.0, 0.0)

    def steps_per_second(steps: int) -> tuple[float, float]:
        timed = execute(config.replace(steps=steps), program, observations)
        evaluations = (steps + 1) * config.data.targets * config.search.restarts
        return evaluations / max(timed.seconds_run, 1e-9), timed.seconds_compile

    first, seconds_compile = steps_per_second(1)
    lanes = config.data.targets * config.search.restarts
    if briefly and (config.search.steps + 1) * lanes / first < 10 * _SECONDS_TO_MEASURE:
        return ChunkCost(config.search.chunk, peak, True, seconds_compile, first)
    steps = max(1, int(first * _SECONDS_TO_MEASURE / lanes))
    return ChunkCost(config.search.chunk, peak, True, seconds_compile, steps_per_second(steps)[0])
