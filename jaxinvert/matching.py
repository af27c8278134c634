"""Gradient matching: the one loop body that all iterative attacks share.

    minimize over v:   objective(client_update(params, decode(v)), observed update) + regularizer(decode(v))

One step evaluates this attack loss and its gradient at the current iterate, remembers the iterate if it is the
best so far, takes an optimizer step and projects back to the feasible set. The start is projected, too, so that
every loss belongs to an image that may be returned.
"""

import jax
import jax.numpy as jnp
import optax

from jaxinvert.observe import check_update, require
from jaxinvert.regularizers import zero
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
    Reconstruction,
    Regularizer,
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
      optimizer: any optax transformation; it is also handed `value`, `grad`, `value_fn` and `key`.
      parametrization: what is optimized, and how it becomes `inputs`, or inputs and labels.
      regularizer: image prior on the decoded inputs.
      name: of the attack, for error messages.

    Reads `observation.params`, `.update`, and `.labels` unless the parametrization has its own.
    Hyper-parameters inside the parts may be traced arrays.

    Raises:
      ValueError: at trace time, if the observation lacks a field or its update does not fit its parameters.
    """
    optimizer = optax.with_extra_args_support(optimizer)

    def candidate(variables: ArrayTree, observation: Observation) -> Batch:
        decoded = parametrization.decode(variables)
        if isinstance(decoded, Batch):
            return decoded
        return Batch(decoded, require(observation, "labels", attack=name))

    def attack_loss(variables: ArrayTree, observation: Observation) -> tuple[Array, Array]:
        batch = candidate(variables, observation)
        distance = objective(client_update(observation.params, batch), observation.update)
        return distance + regularizer(batch.inputs), distance

    def init(key: Key, observation: Observation) -> AttackState:
        check_update(require(observation, "params", attack=name), observation.update)
        variables = parametrization.project(parametrization.init(key))
        inputs = jax.eval_shape(candidate, variables, observation).inputs
        dtype = jnp.promote_types(inputs.dtype, jnp.float32)
        return AttackState(
            variables,
            optimizer.init(variables),
            best_variables=variables,
            best_loss=jnp.full((), jnp.inf, dtype),
        )

    def step(key: Key, state: AttackState, observation: Observation) -> tuple[AttackState, AttackInfo]:
        variables = state.variables
        (loss, distance), grad = jax.value_and_grad(attack_loss, has_aux=True)(variables, observation)

        # The loss belongs to the iterate it was evaluated at, not to the one after the optimizer's step.
        finite_loss = jnp.where(jnp.isfinite(loss), loss, jnp.inf).astype(state.best_loss.dtype)
        better = finite_loss < state.best_loss
        best_variables = jax.tree.map(lambda new, old: jnp.where(better, new, old), variables, state.best_variables)

        updates, opt_state = optimizer.update(
            grad,
            state.opt_state,
            variables,
            value=loss,
            grad=grad,
            value_fn=lambda v: attack_loss(v, observation)[0],
            key=key,
        )
        moved = parametrization.project(optax.apply_updates(variables, updates))
        best_loss = jnp.minimum(finite_loss, state.best_loss)
        info = AttackInfo(attack_loss=loss, objective=distance, grad_norm=optax.tree.norm(grad))
        return AttackState(moved, opt_state, best_variables, best_loss), info

    def decode(state: AttackState, observation: Observation) -> Reconstruction:
        inputs, labels = candidate(state.best_variables, observation)
        return Reconstruction(inputs, labels, state.best_loss, info={})

    return Attack(init, step, decode)
