"""`invert`: runs any attack on an observation and returns the reconstruction."""

from collections.abc import Mapping
from functools import partial
from typing import cast

import jax
import jax.numpy as jnp

from jaxinvert.attacks.problem import AttackFn, Problem, TextProblem
from jaxinvert.attacks.registry import entry_of
from jaxinvert.observation.observe import check_update, require
from jaxinvert.search import best_of, check_targets, over_targets, run
from jaxinvert.types import ArrayTree, Attack, Key, Observation, Reconstruction, Scalar, SolveFn


def invert(
    attack: AttackFn,
    problem: Problem | TextProblem,
    observation: Observation,
    *,
    key: Key,
    num_steps: int | None = None,
    num_restarts: int = 1,
    hyperparameters: Mapping[str, Scalar] | None = None,
    chunk_size: int | None = None,
) -> Reconstruction:
    """Attacks one observation or a stack of observations; reads only the observation, never the private batch.

    Compiles once per attack, problem, number of steps, number of restarts, and shape; other keys, observations and
    hyperparameters reuse the compiled program. For long searches with progress, interruption and resumption, or
    several devices, see `search.Stepwise`.

    Args:
      attack: such as `attacks.spectral`: `(problem, *, hyperparameters) -> Attack | SolveFn`.
      problem: what the attack is built for. Reuse the object: a new one is compiled again.
      observation: of one client, from `observe`; or of `T` clients, from `observe_targets`, with a leading axis `T`
        on all fields but `SHARED_FIELDS`.
      key: PRNG key; determines the result.
      num_steps: optimizer steps of an iterative attack, and the horizon of its learning-rate decay; `None` for a
        closed form.
      num_restarts: number `R` of random starts; the one with the lowest attack loss is returned.
      hyperparameters: of the attack, by name, traced as float32; omitted ones have their defaults.
      chunk_size: restarts evaluated at once under vmap; by default chosen from device and size.

    Returns:
      The reconstruction; for `T` clients, every field has a leading axis `T`. An iterative attack adds
      `info["restart_losses"]` `[R]` and `info["attack_loss"]` `[num_steps + 1]`, the history of the best restart.

    Raises:
      ValueError: if the observation lacks a field that the attack reads, does not fit the problem, or has an update
        that no client can have sent; for an unknown hyperparameter; if `num_steps` is missing for an iterative attack
        or given for a closed form.
    """
    entry = entry_of(attack)
    if unknown := sorted(set(hyperparameters or {}) - set(entry.hyperparameters)):
        known = sorted(entry.hyperparameters) or "none"
        raise ValueError(f"attack {entry.name!r} has no {' and no '.join(unknown)}; it has {known}")
    joint_labels = isinstance(problem, Problem) and problem.joint_labels
    for field in entry.needs:
        if not (field == "labels" and joint_labels):
            require(observation, field, attack=entry.name)
    if observation.num_examples is not None and int(observation.num_examples) != problem.num_examples:
        raise ValueError(
            f"the problem has {problem.num_examples} examples, but the update is of {observation.num_examples}"
        )
    stacked = _is_stacked(observation)
    if stacked:
        check_targets(observation)
    else:
        check_update(observation.params, observation.update)
    learned = None
    if isinstance(problem, Problem) and problem.prior is not None:  # arrays are arguments, never constants
        learned, problem = problem.prior.params, problem._replace(prior=problem.prior._replace(params=None))
    traced = {name: jnp.asarray(value, jnp.float32) for name, value in (hyperparameters or {}).items()}
    return _solve(
        key,
        observation,
        traced,
        learned,
        attack=attack,
        problem=problem,
        num_steps=num_steps,
        num_restarts=num_restarts,
        chunk_size=chunk_size,
        stacked=stacked,
    )


@partial(jax.jit, static_argnames=("attack", "problem", "num_steps", "num_restarts", "chunk_size", "stacked"))
def _solve(
    key: Key,
    observation: Observation,
    hyperparameters: Mapping[str, Scalar],
    learned: ArrayTree,
    *,
    attack: AttackFn,
    problem: Problem | TextProblem,
    num_steps: int | None,
    num_restarts: int,
    chunk_size: int | None,
    stacked: bool,
) -> Reconstruction:
    if isinstance(problem, Problem) and problem.prior is not None:
        problem = problem._replace(prior=problem.prior._replace(params=learned))
    entry = entry_of(attack)
    built = entry.build(problem, hyperparameters, num_steps)
    if isinstance(built, Attack):
        if num_steps is None:
            raise ValueError(f"attack {entry.name!r} is iterative: it needs num_steps")
        solve = best_of(run(built, num_steps=num_steps), num_restarts=num_restarts, chunk_size=chunk_size)
    else:
        if num_steps is not None:
            raise ValueError(
                f"attack {entry.name!r} is a closed form and takes no steps, but num_steps is {num_steps}"
            )
        solve = cast(SolveFn, built)
        solve = solve if num_restarts == 1 else best_of(solve, num_restarts=num_restarts, chunk_size=chunk_size)
    return (over_targets(solve) if stacked else solve)(key, observation)


def _is_stacked(observation: Observation) -> bool:
    """Whether the observation is of several clients, whose updates have one axis more than the parameters.

    Raises:
      ValueError: unless all updates have as many axes as the parameters, or all have one more.
    """
    pairs = zip(jax.tree.leaves(observation.update), jax.tree.leaves(observation.params))
    more = {jnp.ndim(update) - jnp.ndim(params) for update, params in pairs}
    if more not in ({0}, {1}):
        raise ValueError(f"the update's tensors have {sorted(more)} more axes than the parameters, expected 0 or 1")
    return more == {1}
