"""GIAS: what moves in which stage, the composition, the penalty, and that a generator helps where pixels cannot."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxinvert import attacks, search
from jaxinvert.attacks.transformations import scale_by_rates
from jaxinvert.priors import generators, parametrizations
from jaxinvert.priors.generators import Generator, Prior
from tests.conftest import SHAPE

NUM_LATENTS = 3


def one_layer():
    """`1/2 + tanh(z W)/2`: the smallest generator there is, with latents of two levels."""
    kernels = jax.random.normal(jax.random.key(5), (2 * NUM_LATENTS, *SHAPE[1:]))

    def apply(params, latents):
        return 0.5 + 0.5 * jnp.tanh(0.3 * jnp.tensordot(jnp.concatenate(latents, 1), params["kernels"], 1))

    shapes = ((NUM_LATENTS,), (NUM_LATENTS,))
    generator = Generator("one-layer", SHAPE[1:], shapes, lambda key: {"kernels": kernels}, apply)
    return Prior(generator, {"kernels": kernels})


PRIOR = one_layer()


def test_rates_by_part():
    """Constant gradients of one: each part moves by the sum of its rates, against the gradient."""
    optimizer = scale_by_rates({"a": lambda count: 0.1 * count, "b": lambda count: 0.0})
    variables = {"a": (jnp.ones(2), jnp.ones(3)), "b": jnp.ones(1)}
    state = optimizer.init(variables)
    for rate in (0.0, 0.1, 0.2):
        updates, state = optimizer.update(jax.tree.map(jnp.ones_like, variables), state, variables)
        np.testing.assert_allclose(updates["a"][1], -rate * np.ones(3), rtol=1e-6)
        np.testing.assert_array_equal(updates["b"], 0)


def test_the_penalty_is_the_mean_square_of_the_latents(victim):
    """The loss at latents `z` is the objective there plus the weight times their mean square."""
    attack = attacks.gias_latents(victim.problem._replace(prior=PRIOR), prior_weight=0.7, spread=2.0)
    state = jax.jit(attack.init)(jax.random.key(0), victim.observation)
    coarse, fine = state.variables
    np.testing.assert_array_equal(fine, 0)
    _, info = jax.jit(attack.step)(jax.random.key(0), state, victim.observation)
    expected = 0.7 * np.sum(np.square(coarse)) / (2 * NUM_LATENTS)
    np.testing.assert_allclose(info.attack_loss - info.objective, expected, rtol=1e-4)


def test_latents_move_first_then_weights(victim):
    horizon = 10
    attack = attacks.gias(victim.problem._replace(prior=PRIOR), latent_share=0.6, horizon=horizon)
    parametrization = parametrizations.generator_weights(PRIOR, batch_size=1)
    state = jax.jit(attack.init)(jax.random.key(0), victim.observation)
    step = jax.jit(attack.step)
    moved = []
    for t in range(horizon):
        before = state.variables
        state, _ = step(jax.random.key(t), state, victim.observation)
        moved.append(jax.tree.map(lambda a, b: bool(jnp.any(a != b)), before, state.variables))
    assert [one.latents[0] for one in moved] == [True] * 6 + [False] * 4
    assert [one.weights["kernels"] for one in moved] == [False] * 6 + [True] * 4
    assert parametrization.decode(state.variables).shape == SHAPE


def test_every_image_has_weights_of_its_own():
    """A change of the second image's copy changes no other image; together they are what each makes alone."""
    parametrization = parametrizations.generator_weights(PRIOR, batch_size=3)
    variables = parametrization.init(jax.random.key(0))
    images = parametrization.decode(variables)
    np.testing.assert_allclose(images, PRIOR.generator.apply(PRIOR.params, variables.latents), rtol=1e-5)
    weights = jax.tree.map(lambda leaf: leaf.at[1].multiply(2.0), variables.weights)
    after = parametrization.decode(variables._replace(weights=weights))
    changed = np.any(np.asarray(after != images), axis=(1, 2, 3))
    assert changed.tolist() == [False, True, False]


@pytest.mark.slow
def test_the_composition_is_two_runs(victim):
    """By hand: the best of two latent searches, then a weight search that starts at its latents and ends no worse."""
    num_latent_steps, num_weight_steps = 30, 20
    solve = attacks.gias_in_two_searches(
        victim.problem._replace(prior=PRIOR),
        num_latent_steps=num_latent_steps,
        num_weight_steps=num_weight_steps,
        num_restarts=2,
    )
    key = jax.random.key(3)
    found = jax.jit(solve)(key, victim.observation)
    first = attacks.gias_latents(victim.problem._replace(prior=PRIOR), horizon=num_latent_steps)
    searched = search.best_of(search.run(first, num_steps=num_latent_steps), num_restarts=2)
    latents = jax.jit(searched)(jax.random.split(key)[0], victim.observation)
    assert found.info["attack_loss"].shape == (num_weight_steps + 1,)
    np.testing.assert_allclose(found.info["attack_loss"][0], latents.attack_loss, rtol=1e-4)
    assert float(found.attack_loss) < float(latents.attack_loss)


def test_a_generator_that_made_the_image_finds_it_and_not_from_noise(victim):
    """The private image is one of the generator's: GI-z finds it, and finds nothing in a random gradient."""
    true_latents = (jnp.array([[0.8, -0.5, 0.3]]), jnp.array([[0.2, 0.4, -0.6]]))
    image = PRIOR.generator.apply(PRIOR.params, true_latents)
    observation = victim.observation._replace(
        update=victim.client_update(victim.params, victim.batch._replace(inputs=image))
    )
    attack = attacks.gias_latents(victim.problem._replace(prior=PRIOR), prior_weight=0.0, horizon=300)
    solve = jax.jit(search.best_of(search.run(attack, num_steps=300), num_restarts=4))
    noise = jax.tree.map(
        lambda leaf: jax.random.normal(jax.random.key(1), leaf.shape, leaf.dtype), observation.update
    )

    def error(update):
        found = solve(jax.random.key(2), observation._replace(update=update))
        return float(jnp.mean(jnp.square(found.inputs - image)))

    assert error(observation.update) < 1e-4
    assert error(noise) > 1e-2


def test_a_generator_of_another_shape_is_refused(victim):
    generator = generators.convolutional(output_shape=(8, 8, 3), num_latents=2, width=8)
    prior = Prior(generator, {})
    for make in (attacks.gias_latents, attacks.gias_weights, attacks.gias):
        with pytest.raises(ValueError, match=r"makes images of shape \(8, 8, 3\), but the model reads \(6, 6, 1\)"):
            make(victim.problem._replace(prior=prior))
