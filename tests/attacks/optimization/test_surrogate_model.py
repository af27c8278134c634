"""The surrogate model extension: many local steps by one gradient, wherever the image is known or not."""

import jax
import jax.numpy as jnp
import optax
import pytest

from jaxinvert import clients, search
from jaxinvert.attacks import objectives, optimization
from jaxinvert.attacks.problem import Problem
from jaxinvert.clients import fedsgd
from jaxinvert.observation.observe import observe
from jaxinvert.trees import moved

STEPS = 30


@pytest.fixture(scope="module")
def trained(victim):
    """What a client sends that trained for many steps, and its problem."""
    client = clients.fedavg(victim.model.loss, optimizer=optax.sgd(0.1), num_epochs=STEPS)
    return Problem(client, victim.model, 1), observe(client, victim.params, victim.batch)


@pytest.mark.slow
def test_at_the_truth_one_gradient_between_both_models_explains_all_steps(victim, trained):
    _, seen = trained
    gradient = fedsgd(victim.model.loss)
    at = jax.vmap(
        lambda a: objectives.cosine(gradient(moved(seen.params, seen.update, a), victim.batch), seen.update)
    )(jnp.linspace(0, 1, 21))
    assert float(at.min()) < 0.1 * min(float(at[0]), float(at[-1]))


def error_of(attack, seen, victim):
    found = jax.jit(search.run(attack, num_steps=400))(jax.random.key(0), seen)
    return float(jnp.sqrt(jnp.mean((found.inputs - victim.batch.inputs) ** 2))), found


@pytest.mark.parametrize(("joint_labels", "share"), [(False, 0.5), (True, 0.8)])
def test_many_local_steps_are_inverted_without_simulating_them(victim, trained, joint_labels, share):
    """Closer than by the gradient at the model sent; rate and steps are not read, nor labels that are variable."""
    problem, seen = trained
    blind = problem._replace(client_update=None, joint_labels=joint_labels)
    attack = optimization.surrogate_model(blind, tv=0.0, position_rate=0.01, horizon=400)
    withheld = {"local_training": None, **({"labels": None} if joint_labels else {})}
    error, found = error_of(attack, seen._replace(**withheld), victim)
    assert 0.4 < float(found.info["position"]) < 0.6
    one_step = problem._replace(client_update=fedsgd(victim.model.loss))
    assert error < share * error_of(optimization.inverting_gradients(one_step, tv=0.0, horizon=400), seen, victim)[0]
    if joint_labels:
        assert int(found.labels.argmax()) == int(victim.batch.labels[0])
