"""`Stepwise`: a search as a host loop over one compiled program, with progress reports, resumption and devices."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxinvert.parallel.devices import (
    Device,
    agreed,
    even_lanes,
    jit_whole,
    lane_mesh,
    on_lanes,
    to_every_device,
    to_host,
)
from jaxinvert.parallel.lanes import lanes_at_once, lanes_in_step, map_lanes
from jaxinvert.search.solving import check_chunk_size, select_best, start_lane
from jaxinvert.search.targets import check_targets, num_targets, split_shared
from jaxinvert.types import Array, Attack, AttackState, Key, Observation, Reconstruction, Update

_FIRST_REPORT = 5
_SECONDS_PER_REPORT = 1.0


class Resumable(NamedTuple):
    """The state of an interrupted search, from which `Stepwise` continues.

    Attributes:
      step: optimizer steps done.
      seconds: wall time of these steps.
      lanes: states and keys, one for each restart of each target.
    """

    step: int
    seconds: float
    lanes: tuple[AttackState, Key]


class Progress(NamedTuple):
    """One report of a running search.

    Attributes:
      step: optimizer steps done so far, of `num_steps`.
      num_steps: total number of steps.
      best_loss: `[T, R]`, or `[J, T, R]` for several jobs: lowest attack loss of every restart so far.
      seconds: wall time of the steps so far, without compilation and start.
      reconstruct: returns the best reconstruction so far, `[T, ...]`. Call it at the end or on an interrupt; with
        devices of several processes, call it in every process.
      resumable: pass it as `resume` of a later call to continue from here.
    """

    step: int
    num_steps: int
    best_loss: np.ndarray
    seconds: float
    reconstruct: Callable[[], Reconstruction]
    resumable: Resumable


class Stepwise:
    """`over_targets(best_of(run(attack)))` as a host loop over one compiled program.

    Construct it once and call it often: settings and the number of steps are traced, so only a new shape recompiles.
    The host synchronizes once per report, never per step.

    Args:
      make_attack: `settings -> Attack`; called inside the traced function.
      num_restarts: `R`.
      chunk_size: lanes (restarts x targets) side by side under vmap, on each device; by default `lanes_at_once`.
      devices: the devices that lanes are spread over, such as `jax.devices()`; by default one. Random draws do not
        depend on them. With the devices of all processes (`jax.distributed.initialize`), every process makes the
        same calls, the first process supplies the inputs, and every process gets all results.
      num_jobs: `J`; if given, keys, observations (including `SHARED_FIELDS`), settings and all outputs have a leading
        axis `J`. Small jobs run side by side.

    Attributes:
      num_traces: how often the program was traced so far.
      seconds_compile: wall time of the last call's compilation (near 0 when it was compiled already).
      seconds_start: wall time of the last call's `Attack.init` in all lanes; near 0 for a call that resumes.

    ::

        search = Stepwise(lambda settings: inverting_gradients(client, batch_shape=shape, **settings), num_restarts=8)
        for progress in search(key, observations, {"tv": 1e-2}, num_steps=4800):
            print(progress.step, progress.best_loss.min())
        reconstructions = progress.reconstruct()
    """

    def __init__(
        self,
        make_attack: Callable[[Any], Attack],
        *,
        num_restarts: int = 1,
        chunk_size: int | None = None,
        num_jobs: int | None = None,
        devices: Sequence[Device] | None = None,
    ) -> None:
        if num_restarts < 1:
            raise ValueError(f"num_restarts is {num_restarts}, expected at least 1")
        check_chunk_size(chunk_size)
        self.make_attack = make_attack
        self.num_restarts = num_restarts
        self.chunk_size = chunk_size
        self.mesh = None if devices is None else lane_mesh(devices)
        self.num_traces = 0
        self.seconds_compile = 0.0
        self.seconds_start = 0.0
        self.num_jobs = num_jobs
        if self.mesh is not None and num_jobs is not None:
            raise ValueError("several jobs at once run on one device; spread restarts x targets of one job instead")
        self._start = jax.jit(self._over_jobs(self._start_lanes))
        self._advance = jax.jit(self._over_jobs(self._advance_lanes))
        self._finish = jit_whole(self._over_jobs(self._finish_lanes), self.mesh)

    def __call__(
        self,
        key: Key,
        observations: Observation,
        settings: Any,
        *,
        num_steps: int,
        report_every: int | None = None,
        resume: Resumable | None = None,
    ) -> Iterator[Progress]:
        """Yields a report after every `report_every` steps and after the last.

        Args:
          key: determines the result, together with the shapes.
          observations: with a leading axis `T` on all fields but `SHARED_FIELDS`.
          settings: passed to `make_attack` as float32 scalars.
          num_steps: optimizer steps.
          report_every: steps between reports; by default about one second of steps. Does not change the result.
          resume: `Progress.resumable` of an earlier call, to continue from there to the same result.
        """
        if num_steps < 0:
            raise ValueError(f"num_steps is {num_steps}, expected at least 0")
        if report_every is not None and report_every < 1:
            raise ValueError(f"report_every is {report_every}, expected at least 1")
        if resume is not None and resume.step > num_steps:
            raise ValueError(f"the search to resume has done {resume.step} steps, more than num_steps {num_steps}")
        settings = _as_float32(settings)
        if self.num_jobs is None:
            check_targets(observations)
        key, observations, settings = to_every_device((key, observations, settings), self.mesh)
        begin = time.perf_counter()
        if resume is None:
            self._start.lower(key, observations, settings).compile()
        compiled = time.perf_counter()
        lanes = self._start(key, observations, settings) if resume is None else resume.lanes
        jax.block_until_ready(lanes)
        self.seconds_start = time.perf_counter() - compiled
        lanes = self._advance(lanes, observations, settings, 0, 0)  # no step: compiles
        jax.block_until_ready(self._finish(lanes, observations, settings))
        self.seconds_compile = time.perf_counter() - begin - self.seconds_start

        axis = 0 if self.num_jobs is None else 1
        shape = (jax.tree.leaves(observations.update)[0].shape[axis], self.num_restarts)
        begin = time.perf_counter()
        done = before = 0 if resume is None else resume.step
        pace = report_every or _FIRST_REPORT
        seconds_before = 0.0 if resume is None else resume.seconds
        while True:
            upto = min(done + pace, num_steps)
            lanes = evaluated = self._advance(lanes, observations, settings, done, upto)
            done = upto
            if done == num_steps:
                # The iterate after the last step is evaluated once more, as in `run`. A search that is resumed with
                # more steps continues without this one.
                evaluated = self._advance(lanes, observations, settings, done, done + 1)
            best_loss = to_host(evaluated[0].best_loss)[..., : math.prod(shape)]
            seconds = seconds_before + time.perf_counter() - begin
            yield Progress(
                step=done,
                num_steps=num_steps,
                best_loss=best_loss.reshape(*best_loss.shape[:-1], *shape),
                seconds=seconds,
                reconstruct=partial(self._finish, evaluated, observations, settings),
                resumable=Resumable(done, seconds, lanes),
            )
            if done == num_steps:
                return
            if report_every is None:
                steps_in_a_second = int((done - before) / (time.perf_counter() - begin) * _SECONDS_PER_REPORT)
                pace = agreed(max(1, min(steps_in_a_second, 4 * pace)), self.mesh)

    def form(self, key: Key, observations: Observation, settings: Any) -> Any:
        """Shapes and dtypes of `Resumable.lanes`."""
        return jax.eval_shape(self._start, key, observations, _as_float32(settings))

    def peak_bytes(self, key: Key, observations: Observation, settings: Any) -> int:
        """Peak memory of start and steps, with arguments and results, in bytes per device (recompiles)."""
        settings = _as_float32(settings)
        lanes = jax.eval_shape(self._start, key, observations, settings)
        start = self._start.lower(key, observations, settings)
        steps = self._advance.lower(lanes, observations, settings, 0, 0)
        return max(_peak_bytes(program.compile().memory_analysis()) for program in (start, steps))

    def lanes_side_by_side(self, observations: Observation) -> int:
        """Number of lanes that run side by side on each device."""
        if self.num_jobs is None:
            return self._chunk_size(observations)
        return self._jobs_side_by_side(observations) * self._chunk_size(_of_job(observations))

    def _chunk_size(self, observations: Observation) -> int:
        """Number of lanes of one job that run side by side on each device."""
        num_devices = 1 if self.mesh is None else self.mesh.size
        num_lanes = -(-num_targets(observations) * self.num_restarts // num_devices)
        return min(self.chunk_size or lanes_at_once(_one_update(observations), num_lanes), num_lanes)

    def _jobs_side_by_side(self, observations: Observation) -> int:
        """Number of jobs that run side by side: more than one if all their lanes fit at once."""
        job = _of_job(observations)
        lanes_of_job = num_targets(job) * self.num_restarts
        num_jobs = self.num_jobs or 1
        fitting = self.chunk_size or lanes_at_once(_one_update(job), num_jobs * lanes_of_job)
        most = max(1, min(num_jobs, fitting // lanes_of_job))
        divisor = max(number for number in range(1, most + 1) if num_jobs % number == 0)
        return divisor if 2 * divisor > most else most  # a remainder chunk would need its own compilation

    def _over_jobs(self, function: Callable) -> Callable:
        """Maps `function(x, observations, settings, *rest)` over the axis `J` of its first three arguments."""
        if self.num_jobs is None:
            return function

        def mapped(lanes: Any, observations: Observation, settings: Any, *rest: Array) -> Any:
            jobs = (lanes, observations, settings)
            return map_lanes(lambda job: function(*job, *rest), jobs, self._jobs_side_by_side(observations))

        return mapped

    def _start_lanes(self, key: Key, observations: Observation, settings: Any) -> tuple[AttackState, Key]:
        target_keys = jax.random.split(key, num_targets(observations))
        keys = jax.vmap(lambda target_key: jax.random.split(target_key, self.num_restarts))(target_keys)

        def start(lanes: tuple[Key, Array], observations: Observation, settings: Any) -> tuple[AttackState, Key]:
            attack = self.make_attack(settings)
            one = self._lane_function(
                lambda lane_key, observation: start_lane(attack, lane_key, observation), observations
            )
            return jax.vmap(one)(*lanes)

        lanes = even_lanes(keys.reshape(-1), self.mesh), self._target_of_lane(observations)
        return on_lanes(start, self.mesh)(lanes, observations, settings)

    def _advance_lanes(
        self,
        lanes: tuple[AttackState, Key],
        observations: Observation,
        settings: Any,
        begin: Array,
        end: Array,
    ) -> tuple[AttackState, Key]:
        self.num_traces += 1
        share = lanes, self._target_of_lane(observations)
        return on_lanes(self._advance_share, self.mesh)(share, observations, settings, begin, end)

    def _advance_share(
        self,
        share: tuple[tuple[AttackState, Key], Array],
        observations: Observation,
        settings: Any,
        begin: Array,
        end: Array,
    ) -> tuple[AttackState, Key]:
        """Advances the lanes of one device; `share` pairs each lane with the index of its target."""
        attack = self.make_attack(settings)
        chunk_size = self._chunk_size(observations)
        in_step = 1 if self.chunk_size else lanes_in_step(chunk_size, share[1].size)
        observation_of = self._lane_function(lambda observation: observation, observations)

        def advance(group: tuple[tuple[AttackState, Key], Array]) -> tuple[AttackState, Key]:
            (states, step_keys), targets = group
            seen = [observation_of(targets[i]) for i in range(in_step)]

            def body(step: Array, states: list[AttackState]) -> list[AttackState]:
                return [
                    attack.step(jax.random.fold_in(step_keys[i], step), state, seen[i])[0]
                    for i, state in enumerate(states)
                ]

            apart = [jax.tree.map(lambda leaf, i=i: leaf[i], states) for i in range(in_step)]
            moved = lax.fori_loop(begin, end, body, apart)
            return jax.tree.map(lambda *leaves: jnp.stack(leaves), *moved), step_keys

        groups = jax.tree.map(lambda leaf: leaf.reshape(-1, in_step, *leaf.shape[1:]), share)
        moved = map_lanes(advance, groups, chunk_size)
        return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), moved)

    def _finish_lanes(
        self, lanes: tuple[AttackState, Key], observations: Observation, settings: Any
    ) -> Reconstruction:
        def finish(share: tuple, observations: Observation, settings: Any) -> Reconstruction:
            attack = self.make_attack(settings)
            decode = self._lane_function(lambda lane, observation: attack.decode(lane[0], observation), observations)
            return jax.vmap(decode)(*share)

        share = lanes, self._target_of_lane(observations)
        reconstructions = on_lanes(finish, self.mesh)(share, observations, settings)
        shape = (num_targets(observations), self.num_restarts)
        by_target = jax.tree.map(
            lambda leaf: leaf[: math.prod(shape)].reshape(*shape, *leaf.shape[1:]), reconstructions
        )
        return jax.vmap(select_best)(by_target)

    def _target_of_lane(self, observations: Observation) -> Array:
        return even_lanes(jnp.repeat(jnp.arange(num_targets(observations)), self.num_restarts), self.mesh)

    @staticmethod
    def _lane_function(function: Callable, observations: Observation) -> Callable:
        """Turns `(..., observation) -> ...` into a function of `(..., target index)`."""
        shared, per_target = split_shared(observations)

        def on_lane(*arguments: Any) -> Any:
            *others, target = arguments
            observation = jax.tree.map(lambda leaf: leaf[target], per_target)
            return function(*others, observation._replace(**shared))

        return on_lane


def _of_job(observations: Observation) -> Observation:
    """Shapes of one job's observations: those of several jobs without the axis `J`."""
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), observations)


def _one_update(observations: Observation) -> Update:
    """Shapes of one target's update."""
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), observations.update)


def _peak_bytes(memory: Any) -> int:
    """Peak memory from a compiled program's memory analysis, in bytes; 0 if the backend has none."""
    if memory is None:
        return 0
    return memory.temp_size_in_bytes + memory.argument_size_in_bytes + memory.output_size_in_bytes


def _as_float32(settings: Any) -> Any:
    """Casts all settings to one dtype: 0, 0.1 and `np.float64(0.1)` would be three compilation-cache entries."""
    return jax.tree.map(lambda value: jnp.asarray(value, jnp.float32), settings)
