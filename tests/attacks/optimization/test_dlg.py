"""DLG and iDLG on a smooth network: exact to rounding, labels found, one evaluation for each step."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxinvert import clients, search
from jaxinvert.attacks import Problem, dlg, idlg, objectives
from jaxinvert.observation.observe import observe
from jaxinvert.priors import parametrizations
from jaxinvert.types import Batch
from tests.conftest import NUM_CLASSES, SHAPE, model_of


@pytest.fixture(scope="module")
def victim():
    """Non-negative features, which the sign rule needs."""

    def apply(params, inputs):
        hidden = jax.nn.sigmoid(inputs.reshape(inputs.shape[0], -1) @ params["first"]["kernel"])
        return hidden @ params["head"]["kernel"] + params["head"]["bias"][None]

    keys = jax.random.split(jax.random.key(0), 3)
    head = {"kernel": jax.random.normal(keys[1], (48, NUM_CLASSES)), "bias": jnp.zeros(NUM_CLASSES)}
    params = {"first": {"kernel": jax.random.normal(keys[0], (36, 48)) / 3}, "head": head}
    model = model_of(apply, lambda key: params)
    client_update = clients.fedsgd(model.loss)
    batch = Batch(jax.random.uniform(keys[2], SHAPE), jnp.array([1]))
    return SimpleNamespace(
        client_update=client_update,
        problem=Problem(client_update, model, 1),
        params=params,
        batch=batch,
        observation=observe(client_update, params, batch),
    )


@pytest.fixture(scope="module")
def attacks(victim):
    return {
        "dlg": dlg(victim.problem, memory_size=20),
        "idlg": idlg(victim.problem, memory_size=20),
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dlg", "idlg"])
def test_finds_image_and_label(name, attacks, victim):
    solve = jax.jit(search.best_of(search.run(attacks[name], num_steps=150), num_restarts=3))
    found = solve(jax.random.key(0), victim.observation._replace(labels=None))
    np.testing.assert_allclose(found.inputs, victim.batch.inputs, atol=0.02)
    label = found.labels[0] if name == "idlg" else jnp.argmax(found.labels[0])
    assert int(label) == int(victim.batch.labels[0])


def test_does_not_find_it_in_another_clients_update(attacks, victim):
    other = victim.client_update(victim.params, Batch(1 - victim.batch.inputs, victim.batch.labels))
    solve = jax.jit(search.run(attacks["idlg"], num_steps=150))
    found = solve(jax.random.key(0), victim.observation._replace(update=other))
    assert float(jnp.mean((found.inputs - victim.batch.inputs) ** 2)) > 0.05


@pytest.mark.slow
def test_what_the_line_search_left_is_loss_and_gradient_of_the_next_iterate(attacks, victim):
    attack, observation = attacks["idlg"], victim.observation

    def loss(variables):
        images = parametrizations.free_pixels(SHAPE).decode(variables)
        simulated = victim.client_update(victim.params, Batch(images, victim.batch.labels))
        return objectives.squared_l2(simulated, observation.update)

    step = jax.jit(attack.step)
    state = attack.init(jax.random.key(1), observation)
    for count in range(4):
        expected = jax.value_and_grad(loss)(state.variables)
        state, info = step(jax.random.key(count), state, observation)
        np.testing.assert_allclose(info.attack_loss, expected[0], rtol=1e-4)
        np.testing.assert_allclose(info.grad_norm, jnp.linalg.norm(expected[1]), rtol=1e-3)
