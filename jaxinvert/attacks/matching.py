"""Gradient matching: the loop body that all iterative attacks share.

    minimize over v:   objective(client_update(params, decode(v)), observed update) + regularizer(decode(v))

One step evaluates this attack loss and its gradient at the current iterate, stores the iterate if it is the best so
far, takes an optimizer step and projects onto the feasible set. The start is projected, too: with a projection to
[0, 1], every loss belongs to a valid image. Unconstrained images are clipped at the end.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxinvert.attacks.problem import Problem
from jaxinvert.clients import running_statistics
from jaxinvert.labels import labels_from_counts
from jaxinvert.nn import at_precision
from jaxinvert.observation.observe import check_update, require
from jaxinvert.priors.regularizers import zero
from jaxinvert.trees import of_what_was_sent
from jaxinvert.types import (
    Array,
    ArrayTree,
    Attack,
    AttackInfo,
    AttackState,
    Batch,
    ClientUpdateFn,
    Key,
    Objective,
    Observation,
    Parametrization,
    Params,
    Reconstruction,
    RecoverLabels,
    Regularizer,
    Scalar,
    Update,
)


def gradient_matching(
    client_update: ClientUpdateFn,
    *,
    objective: Objective,
    optimizer: optax.GradientTransformation,
    parametrization: Parametrization,
    regularizer: Regularizer = zero,
    name: str = "gradient_matching",
) -> Attack:
    """Returns the attack that searches for inputs whose simulated update matches the observed one.

    Args:
      client_update: the attacker's simulation of the client.
      objective: distance between simulated and observed update.
      optimizer: see `search_inputs`, also for the other arguments.
      parametrization: the variables and how they decode to `inputs`, or to inputs and labels.
      regularizer: image prior on the decoded inputs.
      name: name of the attack, for error messages.

    Reads `observation.params`, `.update`, and `.labels` unless the parametrization has its own. If the attacker has
    seen earlier rounds of the same client, the objective is averaged over all rounds.
    """
    return search_inputs(
        update_distance(client_update, objective),
        optimizer=optimizer,
        parametrization=parametrization,
        regularizer=regularizer,
        name=name,
    )


def update_distance(client_update: ClientUpdateFn, objective: Objective) -> Callable[[Observation, Batch], Array]:
    """`(observation, batch) -> objective(simulated update, observed update)`, averaged over all observed rounds.

    Tensors that were not sent are not compared, see `trees.of_what_was_sent`.
    """

    def distance(observation: Observation, batch: Batch) -> Array:
        def in_round(params: Params, update: Update) -> Array:
            simulated = client_update(params, batch)
            if jax.tree.structure(simulated) == jax.tree.structure(update):  # else the objective sees to it
                simulated = of_what_was_sent(simulated, update)
            return objective(simulated, update)

        last = in_round(observation.params, observation.update)
        if observation.earlier_params is None or observation.earlier_updates is None:
            return last
        earlier = jax.lax.map(
            lambda sent_and_received: in_round(*sent_and_received),
            (observation.earlier_params, observation.earlier_updates),
        )
        return (last + jnp.sum(earlier)) / (1 + earlier.size)

    return distance


def statistics_distance(
    sent_statistics: Callable[[Params, Batch], ArrayTree],
    gap: Callable[[ArrayTree, ArrayTree], Array],
    *,
    momentum: Scalar,
    name: str,
) -> Callable[[Observation, Batch], Array]:
    """`(observation, batch) -> gap(simulated batch statistics, observed ones)`, both from running statistics.

    Args:
      sent_statistics: the running statistics that the simulated client sends, `(params, batch) -> statistics`.
      gap: distance between two trees of batch statistics.
      momentum: of the running statistics, the share of the old value (Flax's convention).
      name: name of the attack, for error messages.

    Reads `observation.params`, `.batch_stats` and `.local_training`.
    """

    def distance(observation: Observation, batch: Batch) -> Array:
        params = require(observation, "params", attack=name)
        sent_back = require(observation, "batch_stats", attack=name)
        num_steps = require(observation, "local_training", attack=name).num_steps

        def behind(running: ArrayTree) -> ArrayTree:
            return running_statistics.recover(running, params["batch_stats"], momentum=momentum, num_steps=num_steps)

        return gap(behind(sent_statistics(params, batch)), behind(sent_back))

    return distance


def observation_distance(
    problem: Problem, objective: Objective, *, batch_norm: Scalar = 1.0, name: str
) -> Callable[[Observation, Batch], Array]:
    """`(observation, batch) -> update_distance + batch_norm statistics_distance`, the second term if possible.

    Statistics are compared by `running_statistics.relative_distance`. Both terms are relative to the observed values,
    so noise of a single unknown size can explain both.

    Args:
      problem: its `sent_statistics` are compared with `observation.batch_stats`, if both are given.
      objective: distance between updates, non-negative.
      batch_norm: weight of the statistics.
      name: name of the attack, for error messages.
    """
    update_gap = update_distance(problem.client_update, objective)
    statistics_gap = problem.sent_statistics and statistics_distance(
        problem.sent_statistics, running_statistics.relative_distance, momentum=problem.momentum, name=name
    )

    def distance(observation: Observation, batch: Batch) -> Array:
        unexplained = update_gap(observation, batch)
        if statistics_gap is not None and observation.batch_stats is not None:
            unexplained += batch_norm * statistics_gap(observation, batch)
        return unexplained

    return distance


def search_inputs(
    distance: Callable[[Observation, Any], Array],
    *,
    optimizer: optax.GradientTransformation,
    parametrization: Parametrization,
    regularizer: Regularizer = zero,
    start: Callable[[Key, Observation], ArrayTree] | None = None,
    name: str,
) -> Attack:
    """Returns the attack that minimizes `distance(observation, batch) + regularizer(inputs) + penalty(variables)`.

    Args:
      distance: mismatch between a batch and the observation, `[]`.
      optimizer: any optax transformation; it also receives `value`, `grad`, `value_fn` and `key`. After a line search
        on free variables, its final loss and gradient are reused in the next step.
      parametrization: the variables and how they decode to `inputs`, to a `Batch` with its own labels, or to a
        NamedTuple that begins like a `Batch`; further fields are returned in the reconstruction's `info`.
      regularizer: image prior on the decoded inputs.
      start: initial variables computed from the observation; by default the parametrization's random start.
      name: name of the attack, for error messages.

    Reads `observation.params` and `.update` for checks, `.labels` unless the parametrization has its own, and what
    `distance` reads. Hyperparameters inside the arguments may be traced arrays. The result is clipped to [0, 1].

    Raises:
      ValueError: at trace time, if the observation lacks a field or its update does not fit its parameters.
    """
    optimizer = optax.with_extra_args_support(optimizer)

    def candidate(variables: ArrayTree, observation: Observation) -> Any:
        decoded = parametrization.decode(variables)
        if isinstance(decoded, tuple):
            return decoded
        return Batch(decoded, require(observation, "labels", attack=name))

    def implausible(variables: ArrayTree, batch: Any) -> Array:
        return regularizer(batch.inputs) + parametrization.penalty(variables)

    def attack_loss(variables: ArrayTree, observation: Observation) -> tuple[Array, Array]:
        batch = candidate(variables, observation)
        unexplained = distance(observation, batch)
        return unexplained + implausible(variables, batch), unexplained

    def evaluate(variables: ArrayTree, observation: Observation) -> tuple[Array, Array, ArrayTree]:
        (loss, unexplained), grad = jax.value_and_grad(attack_loss, has_aux=True)(variables, observation)
        return loss, unexplained, grad

    def init(key: Key, observation: Observation) -> AttackState:
        check_update(require(observation, "params", attack=name), observation.update)
        first = parametrization.init(key) if start is None else start(key, observation)
        variables = parametrization.project(first)
        inputs = jax.eval_shape(candidate, variables, observation).inputs
        dtype = jnp.promote_types(inputs.dtype, jnp.float32)
        opt_state = optimizer.init(variables)
        # A line search has evaluated loss and gradient at its end point. Free variables are not projected and stay
        # there, so the next step need not evaluate them again.
        if parametrization.free and _line_search_result(opt_state) is not None:
            loss, _, grad = at_precision(evaluate, "highest")(variables, observation)
            opt_state = _with_line_search_result(opt_state, loss, grad)
        return AttackState(variables, opt_state, best_variables=variables, best_loss=jnp.full((), jnp.inf, dtype))

    def step(key: Key, state: AttackState, observation: Observation) -> tuple[AttackState, AttackInfo]:
        if _line_search_result(state.opt_state) is None:
            return one_step(key, state, observation)
        # A line search compares losses that differ by less than an accelerator rounds them.
        return at_precision(one_step, "highest")(key, state, observation)

    def one_step(key: Key, state: AttackState, observation: Observation) -> tuple[AttackState, AttackInfo]:
        variables = state.variables
        if parametrization.free and (known := _line_search_result(state.opt_state)) is not None:
            loss, grad = known
            unexplained = loss - implausible(variables, candidate(variables, observation))
        else:
            loss, unexplained, grad = evaluate(variables, observation)

        # The loss belongs to the iterate before the optimizer's step.
        finite_loss = jnp.where(jnp.isfinite(loss), loss, jnp.inf).astype(state.best_loss.dtype)
        better = finite_loss < state.best_loss
        best_variables = jax.tree.map(lambda new, old: jnp.where(better, new, old), variables, state.best_variables)

        updates, opt_state = optimizer.update(
            grad,
            state.opt_state,
            variables,
            value=loss,
            grad=grad,
            value_fn=lambda v, key=None: attack_loss(v, observation)[0],  # optax passes `key` to a line search
            key=key,
        )
        moved = parametrization.project(optax.apply_updates(variables, updates))
        best_loss = jnp.minimum(finite_loss, state.best_loss)
        info = AttackInfo(attack_loss=loss, objective=unexplained, grad_norm=optax.tree.norm(grad))
        return state._replace(
            variables=moved, opt_state=opt_state, best_variables=best_variables, best_loss=best_loss
        ), info

    def decode(state: AttackState, observation: Observation) -> Reconstruction:
        found = candidate(state.best_variables, observation)._asdict()
        inputs = jnp.clip(found.pop("inputs"), 0.0, 1.0)
        return Reconstruction(inputs, found.pop("labels"), state.best_loss, info=found)

    return Attack(init, step, decode)


def with_restored_labels(attack: Attack, rule: RecoverLabels, *, batch_size: int) -> Attack:
    """The attack with labels that a rule restores from the update at the start; `observation.labels` is not read.

    Args:
      attack: an attack that reads `observation.labels`.
      rule: `observation -> counts [K]`, from `jaxinvert.labels`.
      batch_size: `B`; the restored labels are ascending.
    """

    def init(key: Key, observation: Observation) -> AttackState:
        labels = labels_from_counts(rule(observation), batch_size)
        state = attack.init(key, observation._replace(labels=labels))
        return state._replace(carried=(labels, state.carried))

    def step(key: Key, state: AttackState, observation: Observation) -> tuple[AttackState, AttackInfo]:
        labels, carried = state.carried
        state, info = attack.step(key, state._replace(carried=carried), observation._replace(labels=labels))
        return state._replace(carried=(labels, state.carried)), info

    def decode(state: AttackState, observation: Observation) -> Reconstruction:
        labels, carried = state.carried
        return attack.decode(state._replace(carried=carried), observation._replace(labels=labels))

    return Attack(init, step, decode)


def _line_search_result(opt_state: ArrayTree) -> tuple[Array, ArrayTree] | None:
    """Loss and gradient at the end point of the optimizer's line search, or `None` without a line search."""
    for part in jax.tree.leaves(opt_state, is_leaf=_is_line_search):
        if _is_line_search(part):
            return part.value, part.grad
    return None


def _with_line_search_result(opt_state: ArrayTree, value: Array, grad: ArrayTree) -> ArrayTree:
    """The optimizer's state with this loss and gradient as the line search's result."""

    def replace(part: Any) -> Any:
        return part._replace(value=value.astype(part.value.dtype), grad=grad) if _is_line_search(part) else part

    return jax.tree.map(replace, opt_state, is_leaf=_is_line_search)


def _is_line_search(part: Any) -> bool:
    return isinstance(part, optax.ScaleByZoomLinesearchState)
