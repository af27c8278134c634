"""Successive halving over restarts: restarts with a high attack loss, or without progress, are stopped early.

    rungs = default_rungs(num_steps=4800, num_restarts=16)
    solve = over_targets(successive_halving(attack, num_steps=4800, num_restarts=16, rungs=rungs))
    reconstructions = jax.jit(solve)(key, observations)

Successive halving (Karnin, Koren, Somekh: "Almost optimal exploration in multi-armed bandits", ICML 2013; Jamieson,
Talwalkar: "Non-stochastic best arm identification and hyperparameter optimization", AISTATS 2016), with restarts as
arms and the attacker-visible loss as their score. The surviving restarts take exactly the steps of `search.run`.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxinvert.parallel.lanes import lanes_at_once, map_lanes
from jaxinvert.search.solving import select_best, start_lane
from jaxinvert.types import Array, Attack, AttackState, Key, Observation, Reconstruction, Scalar, SolveFn


class Rung(NamedTuple):
    """After `step` optimizer steps only the best `keep` restarts continue."""

    step: int
    keep: int


def default_rungs(*, num_steps: int, num_restarts: int) -> tuple[Rung, ...]:
    """Keeps 3/8 of the restarts after 20 % of the steps and 1/8 after 50 %: 16 restarts take 38 % of all steps.

    The second rung comes after the first learning-rate decay of Inverting Gradients. Before it, losses predict the
    winner poorly (see `experiments/successive_halving.py`).

    >>> default_rungs(num_steps=1000, num_restarts=16)
    (Rung(step=200, keep=6), Rung(step=500, keep=2))
    """
    rungs = {
        step: Rung(step, -(-num_restarts * eighths // 8))
        for share, eighths in ((0.2, 3), (0.5, 1))
        if 0 < (step := round(share * num_steps)) <= num_steps
    }
    return tuple(rungs.values())


class _Lane(NamedTuple):
    """One restart: its attack state and a record of its progress."""

    state: AttackState
    step_key: Key
    history: Array
    num_done: Array
    reference_loss: Array
    improved_at: Array


def successive_halving(
    attack: Attack,
    *,
    num_steps: int,
    num_restarts: int,
    rungs: Sequence[tuple[int, int]],
    patience: int | None = None,
    tolerance: Scalar = 0.0,
    chunk_size: int | None = None,
) -> SolveFn:
    """`best_of(run(attack))` from the same starts, but drops restarts at every rung on the way to `num_steps`.

    Restarts are ranked by their best attack loss so far; those whose current loss is not finite come last. Schedules
    of the attack should span `num_steps`, so that survivors follow the same trajectory as without rungs. The result
    is the best iterate of all restarts, including dropped ones.

    The result's `info` is that of `best_of(run)`, with `inf` in `attack_loss [num_steps + 1]` after the winner's last
    step. It also holds

      * `lane_steps []`: iterates evaluated in all lanes, `num_restarts * (num_steps + 1)` without rungs and patience.
        A stopped lane that waits for others of its chunk counts as long as it waits.
      * `restart_steps [R]`: iterates that each restart used.

    Args:
      attack: any iterative attack.
      num_steps: optimizer steps of the restarts that are never dropped.
      num_restarts: `R` at the start.
      rungs: pairs `(step, keep)` as in `Rung`, steps ascending, `keep` never ascending; `()` for none.
      patience: a lane stops permanently when its best loss has not improved for this many steps; by default no lane
        stops. The loss may also stagnate while the learning rate is constant and fall again after a decay.
      tolerance: relative decrease of the loss above which a step counts as an improvement.
      chunk_size: lanes that run side by side under vmap; by default `lanes_at_once`.

    Raises:
      ValueError: for counts below 1, for rungs that are out of order, lie after `num_steps`, or keep more restarts
        than are left.
    """
    _check_counts(num_steps, num_restarts, rungs, patience, chunk_size)

    def solve(key: Key, observation: Observation) -> Reconstruction:
        chunk = chunk_size or lanes_at_once(observation.update, num_restarts)

        def start(lane_key: Key) -> _Lane:
            state, step_key = start_lane(attack, lane_key, observation)
            history = jnp.full((num_steps + 1,), jnp.inf, state.best_loss.dtype)
            none = jnp.zeros((), jnp.int32)
            return _Lane(state, step_key, history, none, jnp.full_like(state.best_loss, jnp.inf), none)

        def step_once(lane: _Lane, step: Array) -> _Lane:
            state, info = attack.step(jax.random.fold_in(lane.step_key, step), lane.state, observation)
            improved = state.best_loss + tolerance * jnp.abs(state.best_loss) < lane.reference_loss
            return lane._replace(
                state=state,
                history=lane.history.at[step].set(info.attack_loss.astype(lane.history.dtype)),
                num_done=lane.num_done + 1,
                reference_loss=jnp.where(improved, state.best_loss, lane.reference_loss),
                improved_at=jnp.where(improved, step, lane.improved_at),
            )

        def advance(lane: _Lane, begin: int, end: int) -> _Lane:
            def goes_on(carry: tuple[Array, _Lane]) -> Array:
                step, lane = carry
                # Without patience the condition is equal in all lanes, so vmap needs no select over the carry.
                return (step < end) if patience is None else (step < end) & (step - lane.improved_at < patience)

            return lax.while_loop(
                goes_on, lambda carry: (carry[0] + 1, step_once(carry[1], carry[0])), (jnp.int32(begin), lane)
            )[1]

        lanes = map_lanes(start, jax.random.split(key, num_restarts), chunk)
        alive, lane_steps, begin = jnp.arange(num_restarts), jnp.zeros((), jnp.int32), 0
        # The iterate after the last step is evaluated once more, as in `run`.
        for end, keep in (*rungs, (num_steps + 1, 1)):
            going = jax.tree.map(lambda leaf, alive=alive: leaf[alive], lanes)
            moved = map_lanes(lambda lane, begin=begin, end=end: advance(lane, begin, end), going, chunk)
            lane_steps += _computed(moved.num_done - going.num_done, chunk)
            lanes = jax.tree.map(lambda leaf, new, alive=alive: leaf.at[alive].set(new), lanes, moved)
            alive, begin = alive[_ranking(moved)[:keep]], end

        found = map_lanes(lambda lane: attack.decode(lane.state, observation), lanes, chunk)
        best = select_best(found._replace(info={**found.info, "attack_loss": lanes.history}))
        return best._replace(info={**best.info, "lane_steps": lane_steps, "restart_steps": lanes.num_done})

    return solve


def _ranking(lanes: _Lane) -> Array:
    """Indices of lanes, best first; lanes without a finite loss come last."""
    last_loss = jnp.take_along_axis(lanes.history, jnp.maximum(lanes.num_done - 1, 0)[:, None], axis=1)[:, 0]
    finite = jnp.isfinite(last_loss) & jnp.isfinite(lanes.state.best_loss)
    return jnp.argsort(jnp.where(finite, lanes.state.best_loss, jnp.inf))


def _computed(num_steps: Array, chunk_size: int) -> Array:
    """Steps computed for lanes `[R]`: every chunk runs until its last lane has stopped."""
    chunks = [num_steps[first : first + chunk_size] for first in range(0, num_steps.size, chunk_size)]
    return sum((chunk.size * jnp.max(chunk) for chunk in chunks), start=jnp.zeros((), jnp.int32))


def _check_counts(
    num_steps: int, num_restarts: int, rungs: Sequence[tuple[int, int]], patience: int | None, chunk_size: int | None
) -> None:
    if num_steps < 0:
        raise ValueError(f"num_steps is {num_steps}, expected at least 0")
    for name, count in {"num_restarts": num_restarts, "patience": patience, "chunk_size": chunk_size}.items():
        if count is not None and count < 1:
            raise ValueError(f"{name} is {count}, expected at least 1")
    after, lanes = 0, num_restarts
    for step, keep in rungs:
        if not after < step <= num_steps:
            raise ValueError(f"a rung is at step {step}, expected more than {after} and at most {num_steps}")
        if not 1 <= keep <= lanes:
            raise ValueError(f"the rung at step {step} keeps {keep}, expected 1 to {lanes}")
        after, lanes = step, keep
