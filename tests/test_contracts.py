"""One contract for all that is registered: jit equals eager, vmap equals a loop, finite gradients, dtypes kept."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxinvert import clients, jobs, models, search
from jaxinvert.attacks import Problem, objectives, registry
from jaxinvert.observation.observe import observe_targets
from jaxinvert.priors import generators, parametrizations, regularizers
from jaxinvert.types import Attack
from tests.conftest import NUM_CLASSES, SHAPE

OWN_MODELS = {
    "rgap": "lenet",
    "april": "vit-plain-3-16-1",
    "patch-embedding": "vit-plain-3-16-1",
    "cocktail-party-features": "wide-convnet-16",
}
"""Of attacks that go through convolutions or attention."""
assert jobs.automatic.AUTO in registry.REGISTRY  # `jobs` registers one more
IMAGES = jax.random.uniform(jax.random.key(0), (3, 2, 5, 6, 3))


def updates(key):
    keys = jax.random.split(key)
    return {"kernel": jax.random.normal(keys[0], (3, 4, 5)), "bias": jax.random.normal(keys[1], (3, 5))}


@pytest.mark.parametrize("name", objectives.REGISTRY)
def test_objective(name):
    objective = objectives.REGISTRY[name]
    simulated, observed = updates(jax.random.key(1)), updates(jax.random.key(2))
    mapped = jax.jit(jax.vmap(objective))(simulated, observed)
    for t in range(3):
        one = [jax.tree.map(lambda leaf, t=t: leaf[t], tree) for tree in (simulated, observed)]
        np.testing.assert_allclose(objective(*one), mapped[t], rtol=1e-5)
    assert mapped.dtype == jnp.float32
    assert np.all(np.asarray(mapped) > 0)
    gradient = jax.jit(jax.grad(lambda tree: jnp.sum(jax.vmap(objective)(tree, observed))))(simulated)
    for leaf in jax.tree.leaves(gradient):
        assert np.all(np.isfinite(leaf))
        assert np.any(leaf)
    with jax.enable_x64(True):
        double = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.float64), one)
        assert jax.eval_shape(objective, *double).dtype == jnp.float64


@pytest.mark.parametrize("name", regularizers.REGISTRY)
def test_regularizer(name):
    regularizer = regularizers.REGISTRY[name]
    mapped = jax.jit(jax.vmap(regularizer))(IMAGES)
    for t in range(3):
        np.testing.assert_allclose(regularizer(IMAGES[t]), mapped[t], rtol=1e-5)
    assert regularizer(IMAGES[0]).shape == ()
    assert regularizer(IMAGES[0][::-1]) == pytest.approx(float(regularizer(IMAGES[0])), rel=1e-5)  # batch order
    assert np.all(np.isfinite(jax.jit(jax.grad(regularizer))(IMAGES[0] * 3 - 1)))


def test_parametrization():
    pixels = parametrizations.pixels(SHAPE, mean=0.5, std=0.25)
    variables = jax.vmap(pixels.init)(jax.random.split(jax.random.key(0), 3))
    assert len({float(lane.sum()) for lane in variables}) == 3
    np.testing.assert_allclose(jax.jit(jax.vmap(pixels.decode))(variables)[1], pixels.decode(variables[1]), rtol=1e-6)
    inside = pixels.decode(pixels.project(variables[0] * 100))
    assert float(inside.min()) >= -1e-6
    assert float(inside.max()) <= 1 + 1e-6


def setting_of(name, victim, victims):
    """The smallest problem and observations of three targets that a registered attack takes."""
    batches, observations = victims
    problem = Problem(victim.client_update, victim.model, 1, sent_statistics=lambda params, batch: {})
    if name in OWN_MODELS:
        model = models.create(OWN_MODELS[name], input_shape=SHAPE[1:], num_classes=NUM_CLASSES)
        client = clients.fedsgd(models.cross_entropy(model.apply))
        observations = jax.jit(partial(observe_targets, client))(jax.jit(model.init)(jax.random.key(0)), batches)
        problem = Problem(client, model, 1)
    entry = registry.REGISTRY[name]
    if entry.traits.generates:
        generator = generators.convolutional(output_shape=SHAPE[1:], num_latents=4, width=8)
        problem = problem._replace(prior=generators.Prior(generator, jax.jit(generator.init)(jax.random.key(0))))
    if "batch_stats" in entry.needs:
        observations = observations._replace(batch_stats={})
    return problem, observations


@pytest.mark.parametrize("name", registry.REGISTRY)
def test_attack(name, victim, victims):
    """Traced once, vmap equals a loop, different keys start differently, and the result has its promised form."""
    entry = registry.REGISTRY[name]
    problem, observations = setting_of(name, victim, victims)
    traces = []

    def solve(key, observation, hyperparameters):
        traces.append(name)
        built = entry.build(problem, hyperparameters, 10.0)
        return (search.run(built, num_steps=2) if isinstance(built, Attack) else built)(key, observation)

    shared, per_target = search.split_shared(observations)
    axes = jax.tree.map(lambda leaf: 0, per_target)
    compiled = jax.jit(jax.vmap(solve, in_axes=(0, axes, None)))
    keys = jax.random.split(jax.random.key(0), 3)
    hyperparameters = {key: jnp.float32(value) for key, value in entry.hyperparameters.items()}
    together = compiled(keys, observations, hyperparameters)
    compiled(keys[::-1], observations, jax.tree.map(lambda value: value * 2, hyperparameters))
    assert len(traces) == 1

    assert together.inputs.shape == (3, *SHAPE)
    assert together.inputs.dtype == jnp.float32
    assert float(together.inputs.min()) >= 0
    assert float(together.inputs.max()) <= 1
    assert together.attack_loss.shape == (3,)
    assert np.all(np.isfinite(together.attack_loss))
    one = jax.tree.map(lambda leaf: leaf[1], per_target)._replace(**shared)
    alone = jax.jit(solve)(keys[1], one, hyperparameters)
    np.testing.assert_allclose(alone.attack_loss, together.attack_loss[1], rtol=1e-3, atol=1e-6)
