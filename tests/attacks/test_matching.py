"""The loop body: whose loss is it, what is remembered, and what it refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxinvert.attacks import objectives
from jaxinvert.attacks.matching import gradient_matching
from jaxinvert.priors import parametrizations
from jaxinvert.types import Observation, Parametrization

# A client whose update *is* its input: the attack loss of an iterate is known by hand.
SHAPE = (1, 1, 1, 1)
TARGET = Observation(
    params=jnp.zeros(SHAPE), update=jnp.full(SHAPE, 0.25), labels=jnp.zeros(1, jnp.int32), num_examples=1
)


def client_update(params, batch):
    return params + batch.inputs


def start_at(value):
    return parametrizations.pixels(SHAPE)._replace(init=lambda key: jnp.full(SHAPE, value))


def make_attack(*, start, learning_rate):
    return gradient_matching(
        client_update,
        objective=objectives.squared_l2,
        optimizer=optax.sgd(learning_rate),
        parametrization=start_at(start),
    )


def test_a_step_reports_the_loss_before_it_and_moves_along_the_gradient():
    attack = make_attack(start=0.75, learning_rate=0.1)
    state = attack.init(jax.random.key(0), TARGET)
    assert np.isinf(state.best_loss)
    state, info = attack.step(jax.random.key(1), state, TARGET)
    assert float(info.attack_loss) == pytest.approx(0.5**2)
    assert float(info.objective) == pytest.approx(0.5**2)
    assert float(info.grad_norm) == pytest.approx(2 * 0.5)
    assert float(state.variables[0, 0, 0, 0]) == pytest.approx(0.75 - 0.1 * 2 * 0.5)


def test_the_objective_is_the_mean_over_the_rounds_seen():
    seen = TARGET._replace(
        earlier_params=jnp.full((2, *SHAPE), 0.5), earlier_updates=jnp.full((2, *SHAPE), 0.5 + 0.65)
    )
    attack = make_attack(start=0.75, learning_rate=0.1)
    _, info = attack.step(jax.random.key(1), attack.init(jax.random.key(0), seen), seen)
    assert float(info.objective) == pytest.approx((0.5**2 + 2 * 0.1**2) / 3)
    _, info = attack.step(jax.random.key(1), attack.init(jax.random.key(0), TARGET), TARGET)
    assert float(info.objective) == pytest.approx(0.5**2)


def test_the_best_iterate_is_the_one_that_was_evaluated():
    # A step of 1.0 overshoots from 0.75 to 0 (after projection): worse than 0.25 +- 0.2, better never comes.
    attack = make_attack(start=0.45, learning_rate=3.0)
    state = attack.init(jax.random.key(0), TARGET)
    for step in range(3):
        state, _ = attack.step(jax.random.key(step), state, TARGET)
    assert float(state.best_variables[0, 0, 0, 0]) == pytest.approx(0.45)
    assert float(attack.decode(state, TARGET).attack_loss) == pytest.approx(0.2**2)


def test_a_result_is_always_in_the_box():
    attack = make_attack(start=5.0, learning_rate=0.0)
    state, _ = attack.step(jax.random.key(0), attack.init(jax.random.key(0), TARGET), TARGET)
    assert float(attack.decode(state, TARGET).inputs.max()) <= 1


def test_a_non_finite_loss_never_becomes_the_best():
    attack = make_attack(start=jnp.nan, learning_rate=0.1)
    state, info = attack.step(jax.random.key(0), attack.init(jax.random.key(0), TARGET), TARGET)
    assert np.isnan(info.attack_loss)
    assert np.isinf(state.best_loss)


def test_the_optimizer_is_handed_loss_gradient_and_key():
    seen = {}

    def update(updates, state, params=None, **extra):
        del params
        seen.update(extra)
        return updates, state

    optimizer = optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)
    attack = gradient_matching(
        client_update, objective=objectives.squared_l2, optimizer=optimizer, parametrization=start_at(0.75)
    )
    attack.step(jax.random.key(3), attack.init(jax.random.key(0), TARGET), TARGET)
    assert float(seen["value"]) == pytest.approx(0.25)
    assert float(seen["value_fn"](jnp.full(SHAPE, 0.25))) == pytest.approx(0.0)
    assert float(seen["grad"][0, 0, 0, 0]) == pytest.approx(1.0)
    assert jnp.array_equal(jax.random.key_data(seen["key"]), jax.random.key_data(jax.random.key(3)))


@pytest.mark.parametrize("field", ["params", "labels"])
def test_a_withheld_field_is_named_together_with_the_attack(field):
    attack = make_attack(start=0.5, learning_rate=0.1)
    with pytest.raises(ValueError, match=rf"gradient_matching needs observation\.{field}"):
        attack.init(jax.random.key(0), TARGET._replace(**{field: None}))


def test_an_update_that_does_not_fit_the_parameters_is_refused_when_traced():
    attack = make_attack(start=0.5, learning_rate=0.1)
    with pytest.raises(ValueError, match=r"has shape \(2,\), expected \(1, 1, 1, 1\)"):
        jax.jit(attack.init)(jax.random.key(0), TARGET._replace(update=jnp.ones(2)))


def test_decode_may_change_shapes():
    """Three latents become one image."""
    latents = Parametrization(
        init=lambda key: jax.random.normal(key, (3,)),
        decode=lambda latent: jnp.sum(latent).reshape(SHAPE),
        project=parametrizations.stay,
        free=True,
    )
    attack = gradient_matching(
        client_update, objective=objectives.squared_l2, optimizer=optax.sgd(0.1), parametrization=latents
    )
    state = attack.init(jax.random.key(0), TARGET)
    for step in range(60):
        state, _ = attack.step(jax.random.key(step), state, TARGET)
    assert float(attack.decode(state, TARGET).inputs[0, 0, 0, 0]) == pytest.approx(0.25, abs=1e-3)
