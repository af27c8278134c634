"""From one attack to many: scanned steps, restarts, targets, and a host loop that shows progress.

    solve = over_targets(best_of(run(attack, num_steps=4800), num_restarts=8))
    reconstructions = jax.jit(solve)(key, observations)

`run`, `best_of` and `over_targets` are pure and compose with jit, vmap and each other. `Stepwise` runs the same
computation, from the same keys, as repeated calls of one compiled program, so that long work can be watched and
interrupted.
"""

import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxinvert.lanes import lanes_at_once, lanes_in_step, map_lanes
from jaxinvert.observe import check_update
from jaxinvert.types import (
    SHARED_FIELDS,
    Array,
    Attack,
    AttackState,
    Key,
    Observation,
    Reconstruction,
    SolveFn,
)

_FIRST_REPORT = 5
_SECONDS_PER_REPORT = 1.0


def run(attack: Attack, *, num_steps: int) -> SolveFn:
    """Runs one attack from one random start for `num_steps` optimizer steps, as one `lax.scan`.

    All `num_steps + 1` iterates are evaluated, the start and the last one included. The result's
    `info["attack_loss"]` is their history, `[num_steps + 1]`.

    Raises:
      ValueError: if `num_steps` is negative.
    """
    if num_steps < 0:
        raise ValueError(f"num_steps is {num_steps}, expected at least 0")

    def solve(key: Key, observation: Observation) -> Reconstruction:
        state, step_key = start_lane(attack, key, observation)

        def body(state: AttackState, step: Array) -> tuple[AttackState, Array]:
            state, info = attack.step(jax.random.fold_in(step_key, step), state, observation)
            return state, info.attack_loss

        state, history = lax.scan(body, state, jnp.arange(num_steps + 1))
        reconstruction = attack.decode(state, observation)
        return reconstruction._replace(info={**reconstruction.info, "attack_loss": history})

    return solve


def best_of(solve: SolveFn, *, num_restarts: int, chunk_size: int | None = None) -> SolveFn:
    """Solves from `num_restarts` independent keys and keeps the lowest finite attack loss.

    The winner is chosen by what the attacker sees, never by truth. If no restart ends with a finite loss, the
    result's `attack_loss` is `inf`. `info["restart_losses"]` holds all losses, `[R]`, and `info["winner"]` the
    index of the winner.

    Args:
      solve: any attack.
      num_restarts: `R`.
      chunk_size: restarts that run side by side under vmap; by default `lanes_at_once`.
    """
    if num_restarts < 1:
        raise ValueError(f"num_restarts is {num_restarts}, expected at least 1")
    _check_chunk_size(chunk_size)

    def solve_best(key: Key, observation: Observation) -> Reconstruction:
        lanes = chunk_size or lanes_at_once(observation.update, num_restarts)
        keys = jax.random.split(key, num_restarts)
        restarts = map_lanes(lambda restart_key: solve(restart_key, observation), keys, lanes)
        return select_best(restarts)

    return solve_best


def over_targets(solve: SolveFn, *, chunk_size: int = 1) -> SolveFn:
    """Solves for `T` observations at once: a `SolveFn` whose observation and result have a leading axis `T`.

    The fields `SHARED_FIELDS` are shared and have no such axis.

    Args:
      solve: any attack on one observation.
      chunk_size: targets that run side by side under vmap. Restarts usually fill the machine already; raise it
        where there are few of them.
    """
    _check_chunk_size(chunk_size)

    def solve_all(key: Key, observations: Observation) -> Reconstruction:
        shared, per_target = split_shared(observations)
        keys = jax.random.split(key, num_targets(observations))

        def one(target: tuple[Key, Observation]) -> Reconstruction:
            target_key, observation = target
            return solve(target_key, observation._replace(**shared))

        return map_lanes(one, (keys, per_target), chunk_size)

    return solve_all


def select_best(restarts: Reconstruction) -> Reconstruction:
    """Picks from reconstructions with a leading axis `R` the one with the lowest finite attack loss."""
    losses = jnp.where(jnp.isfinite(restarts.attack_loss), restarts.attack_loss, jnp.inf)
    winner = jnp.argmin(losses)
    best = jax.tree.map(lambda leaf: leaf[winner], restarts)
    return best._replace(attack_loss=losses[winner], info={**best.info, "restart_losses": losses, "winner": winner})


class Progress(NamedTuple):
    """One report of a running search.

    Attributes:
      step: optimizer steps done so far, of `num_steps`.
      num_steps: steps in all.
      best_loss: `[T, R]` lowest attack loss of every restart so far.
      seconds: wall time since the search began to step, compilation excluded.
      reconstruct: returns the best reconstruction so far, `[T, ...]`; call it at the end, or when interrupted.
    """

    step: int
    num_steps: int
    best_loss: np.ndarray
    seconds: float
    reconstruct: Callable[[], Reconstruction]


class Stepwise:
    """`over_targets(best_of(run(attack)))` as a host loop over one compiled program.

    Construct it once and call it often: settings and the number of steps are traced, so that only a new shape
    compiles anew. The host synchronizes once per report, never per step.

    Args:
      make_attack: `settings -> Attack`; called inside the traced function.
      num_restarts: `R`.
      chunk_size: lanes (restarts x targets) side by side under vmap; by default `lanes_at_once`.

    Attributes:
      num_traces: how often the program was traced so far.
      seconds_compile: wall time of the last call's compilation (near 0 when it was compiled already).

    ::

        search = Stepwise(lambda settings: inverting_gradients(client, batch_shape=shape, **settings), num_restarts=8)
        for progress in search(key, observations, {"tv": 1e-2}, num_steps=4800):
            print(progress.step, progress.best_loss.min())
        reconstructions = progress.reconstruct()
    """

    def __init__(
        self, make_attack: Callable[[Any], Attack], *, num_restarts: int = 1, chunk_size: int | None = None
    ) -> None:
        if num_restarts < 1:
            raise ValueError(f"num_restarts is {num_restarts}, expected at least 1")
        _check_chunk_size(chunk_size)
        self.make_attack = make_attack
        self.num_restarts = num_restarts
        self.chunk_size = chunk_size
        self.num_traces = 0
        self.seconds_compile = 0.0
        self._start = jax.jit(self._start_lanes)
        self._advance = jax.jit(self._advance_lanes)
        self._finish = jax.jit(self._finish_lanes)

    def __call__(
        self,
        key: Key,
        observations: Observation,
        settings: Any,
        *,
        num_steps: int,
        report_every: int | None = None,
    ) -> Iterator[Progress]:
        """Yields a report after every `report_every` steps and after the last.

        Args:
          key: determines the result together with the shapes.
          observations: with a leading axis `T` on all fields but `SHARED_FIELDS`.
          settings: handed to `make_attack` as float32 scalars.
          num_steps: optimizer steps.
          report_every: steps between reports; by default about a second's worth. Does not change the result.
        """
        if num_steps < 0:
            raise ValueError(f"num_steps is {num_steps}, expected at least 0")
        if report_every is not None and report_every < 1:
            raise ValueError(f"report_every is {report_every}, expected at least 1")
        settings = _as_float32(settings)
        check_targets(observations)
        begin = time.perf_counter()
        lanes = self._start(key, observations, settings)
        lanes = self._advance(lanes, observations, settings, 0, 0)  # no step: compiles
        jax.block_until_ready(self._finish(lanes, observations, settings))
        self.seconds_compile = time.perf_counter() - begin

        begin = time.perf_counter()
        done, pace = 0, report_every or _FIRST_REPORT
        while True:
            upto = min(done + pace, num_steps)
            # The iterate after the last step is evaluated once more, as in `run`.
            lanes = self._advance(lanes, observations, settings, done, upto + (upto == num_steps))
            done = upto
            best_loss = np.asarray(lanes[0].best_loss)
            shape = (num_targets(observations), self.num_restarts)
            yield Progress(
                step=done,
                num_steps=num_steps,
                best_loss=best_loss.reshape(shape),
                seconds=time.perf_counter() - begin,
                reconstruct=partial(self._finish, lanes, observations, settings),
            )
            if done == num_steps:
                return
            if report_every is None:
                steps_in_a_second = int(done / (time.perf_counter() - begin) * _SECONDS_PER_REPORT)
                pace = max(1, min(steps_in_a_second, 4 * pace))

    def peak_bytes(self, key: Key, observations: Observation, settings: Any) -> int:
        """Memory of the compiled program at its peak, arguments and results included, in bytes (compiles anew)."""
        settings = _as_float32(settings)
        lanes = jax.eval_shape(self._start_lanes, key, observations, settings)
        memory = jax.jit(self._advance_lanes).lower(lanes, observations, settings, 0, 0).compile().memory_analysis()
        if memory is None:
            return 0
        return memory.temp_size_in_bytes + memory.argument_size_in_bytes + memory.output_size_in_bytes

    def _start_lanes(self, key: Key, observations: Observation, settings: Any) -> tuple[AttackState, Key]:
        attack = self.make_attack(settings)
        target_keys = jax.random.split(key, num_targets(observations))
        keys = jax.vmap(lambda target_key: jax.random.split(target_key, self.num_restarts))(target_keys)
        start = self._lane_function(
            lambda lane_key, observation: start_lane(attack, lane_key, observation), observations
        )
        return jax.vmap(start)(keys.reshape(-1), self._target_of_lane(observations))

    def _advance_lanes(
        self,
        lanes: tuple[AttackState, Key],
        observations: Observation,
        settings: Any,
        begin: Array,
        end: Array,
    ) -> tuple[AttackState, Key]:
        self.num_traces += 1
        attack = self.make_attack(settings)

        target_of_lane = self._target_of_lane(observations)
        one_update = jax.tree.map(lambda leaf: leaf[0], observations.update)
        chunk_size = self.chunk_size or lanes_at_once(one_update, target_of_lane.size)
        in_step = 1 if self.chunk_size else lanes_in_step(chunk_size, target_of_lane.size)
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

        groups = jax.tree.map(lambda leaf: leaf.reshape(-1, in_step, *leaf.shape[1:]), (lanes, target_of_lane))
        moved = map_lanes(advance, groups, chunk_size)
        return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), moved)

    def _finish_lanes(
        self, lanes: tuple[AttackState, Key], observations: Observation, settings: Any
    ) -> Reconstruction:
        attack = self.make_attack(settings)
        decode = self._lane_function(lambda lane, observation: attack.decode(lane[0], observation), observations)
        reconstructions = jax.vmap(decode)(lanes, self._target_of_lane(observations))
        by_target = jax.tree.map(
            lambda leaf: leaf.reshape(num_targets(observations), self.num_restarts, *leaf.shape[1:]),
            reconstructions,
        )
        return jax.vmap(select_best)(by_target)

    def _target_of_lane(self, observations: Observation) -> Array:
        return jnp.repeat(jnp.arange(num_targets(observations)), self.num_restarts)

    @staticmethod
    def _lane_function(function: Callable, observations: Observation) -> Callable:
        """Turns `(..., observation) -> ...` into a function of `(..., index of the target)`."""
        shared, per_target = split_shared(observations)

        def on_lane(*arguments: Any) -> Any:
            *others, target = arguments
            observation = jax.tree.map(lambda leaf: leaf[target], per_target)
            return function(*others, observation._replace(**shared))

        return on_lane


def split_shared(observations: Observation) -> tuple[dict[str, Any], Observation]:
    """Separates the fields that all targets share from those with a leading axis `T`."""
    shared = {field: getattr(observations, field) for field in SHARED_FIELDS}
    return shared, observations._replace(**dict.fromkeys(SHARED_FIELDS))


def check_targets(observations: Observation) -> None:
    """Refuses observations of which any target's update is unusable; values are looked at outside of jit only.

    Raises:
      ValueError: as `observe.check_update`, naming the target.
    """
    for target in range(num_targets(observations)):
        update = jax.tree.map(lambda leaf, target=target: leaf[target], observations.update)
        try:
            check_update(observations.params, update)
        except ValueError as error:
            raise ValueError(f"target {target}: {error}") from error


def num_targets(observations: Observation) -> int:
    """The leading axis `T` of the per-target fields.

    Raises:
      ValueError: if they disagree.
    """
    per_target = split_shared(observations)[1]
    sizes = {jnp.shape(leaf)[:1] for leaf in jax.tree.leaves(per_target)}
    if len(sizes) != 1 or sizes == {()}:
        raise ValueError(
            f"the observations' fields have leading axes {sorted(sizes)}, expected one number of targets"
        )
    return sizes.pop()[0]


def _check_chunk_size(chunk_size: int | None) -> None:
    if chunk_size is not None and chunk_size < 1:
        raise ValueError(f"chunk_size is {chunk_size}, expected at least 1")


def start_lane(attack: Attack, key: Key, observation: Observation) -> tuple[AttackState, Key]:
    """The state a lane starts from, and the key its steps draw from."""
    init_key, step_key = jax.random.split(key)
    return attack.init(init_key, observation), step_key


def _as_float32(settings: Any) -> Any:
    """One dtype for all settings: 0, 0.1 and `np.float64(0.1)` would be three entries of the compilation cache."""
    return jax.tree.map(lambda value: jnp.asarray(value, jnp.float32), settings)
