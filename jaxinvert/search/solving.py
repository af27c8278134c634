"""Higher-order functions over attacks: `run` scans steps, `best_of` adds restarts, `over_targets` adds targets."""

import jax
import jax.numpy as jnp
from jax import lax

from jaxinvert.parallel.lanes import lanes_at_once, map_lanes
from jaxinvert.search.targets import num_targets, split_shared
from jaxinvert.types import Array, Attack, AttackState, Key, Observation, Reconstruction, SolveFn


def run(attack: Attack, *, num_steps: int) -> SolveFn:
    """Runs one attack from one random start for `num_steps` optimizer steps, as one `lax.scan`.

    All `num_steps + 1` iterates are evaluated, including the start and the last one. Their losses are the result's
    `info["attack_loss"]`, `[num_steps + 1]`.

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

    The winner is chosen by the attack loss, never by the true inputs. If no restart ends with a finite loss, the
    result's `attack_loss` is `inf`. `info["restart_losses"]` holds all losses, `[R]`, and `info["winner"]` the
    index of the winner.

    Args:
      solve: any attack.
      num_restarts: `R`.
      chunk_size: restarts that run side by side under vmap; by default `lanes_at_once`.
    """
    if num_restarts < 1:
        raise ValueError(f"num_restarts is {num_restarts}, expected at least 1")
    check_chunk_size(chunk_size)

    def solve_best(key: Key, observation: Observation) -> Reconstruction:
        lanes = chunk_size or lanes_at_once(observation.update, num_restarts)
        keys = jax.random.split(key, num_restarts)
        restarts = map_lanes(lambda restart_key: solve(restart_key, observation), keys, lanes)
        return select_best(restarts)

    return solve_best


def over_targets(solve: SolveFn, *, chunk_size: int = 1) -> SolveFn:
    """Solves for `T` observations at once: a `SolveFn` whose observation and result have a leading axis `T`.

    The fields in `SHARED_FIELDS` have no such axis.

    Args:
      solve: any attack on one observation.
      chunk_size: targets that run side by side under vmap. Restarts usually occupy the device already; raise it
        when there are few restarts.
    """
    check_chunk_size(chunk_size)

    def solve_all(key: Key, observations: Observation) -> Reconstruction:
        shared, per_target = split_shared(observations)
        keys = jax.random.split(key, num_targets(observations))

        def one(target: tuple[Key, Observation]) -> Reconstruction:
            target_key, observation = target
            return solve(target_key, observation._replace(**shared))

        return map_lanes(one, (keys, per_target), chunk_size)

    return solve_all


def select_best(restarts: Reconstruction) -> Reconstruction:
    """Returns the reconstruction with the lowest finite attack loss along the leading axis `R`."""
    losses = jnp.where(jnp.isfinite(restarts.attack_loss), restarts.attack_loss, jnp.inf)
    winner = jnp.argmin(losses)
    best = jax.tree.map(lambda leaf: leaf[winner], restarts)
    return best._replace(attack_loss=losses[winner], info={**best.info, "restart_losses": losses, "winner": winner})


def check_chunk_size(chunk_size: int | None) -> None:
    """Raises ValueError for a chunk size below 1."""
    if chunk_size is not None and chunk_size < 1:
        raise ValueError(f"chunk_size is {chunk_size}, expected at least 1")


def start_lane(attack: Attack, key: Key, observation: Observation) -> tuple[AttackState, Key]:
    """Returns the initial state of a lane and the key for its steps."""
    init_key, step_key = jax.random.split(key)
    return attack.init(init_key, observation), step_key
