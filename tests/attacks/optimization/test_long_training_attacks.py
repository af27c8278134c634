"""What each method for long local training adds: a bent path, copies for every pass, large entries, flat places."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxinvert import clients, jobs, search
from jaxinvert.attacks import inverting_gradients, objectives, registry
from jaxinvert.attacks.optimization import fedavg_epochs, fedleak, surrogate_curve, surrogate_model
from jaxinvert.attacks.optimization.fedavg_epochs import mean_of_matched, order_mismatch
from jaxinvert.attacks.optimization.fedleak import flattened, largest
from jaxinvert.attacks.optimization.surrogate_curve import on_the_curve
from jaxinvert.attacks.problem import Problem
from jaxinvert.audit import controls
from jaxinvert.observation.observe import observe
from jaxinvert.trees import leaves_by_path, moved, tree_norm
from jaxinvert.types import Batch


@pytest.fixture(scope="module")
def trained(victim):
    """What a client sends after 30 steps of a rate at which its path bends, and its problem."""
    client = clients.fedavg(victim.model.loss, optimizer=optax.sgd(0.3, momentum=0.8), num_epochs=30)
    return Problem(client, victim.model, 1), observe(client, victim.params, victim.batch)


def test_the_curve_ends_at_both_models_and_is_the_segment_without_a_control(trained):
    _, seen = trained
    straight, bent = (jax.tree.map(like, seen.update) for like in (jnp.zeros_like, jnp.ones_like))
    for position, expected in ((0.0, seen.params), (1.0, moved(seen.params, seen.update))):
        found = on_the_curve(seen, jnp.float32(position), bent)
        assert all(np.allclose(a, b, atol=1e-6) for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected)))
    halfway = on_the_curve(seen, jnp.float32(0.5), straight)
    middle = moved(seen.params, seen.update, 0.5)
    assert all(np.allclose(a, b, atol=1e-6) for a, b in zip(jax.tree.leaves(halfway), jax.tree.leaves(middle)))
    away = jax.tree.map(jnp.subtract, on_the_curve(seen, jnp.float32(0.5), bent), middle)
    size, change = leaves_by_path(away), leaves_by_path(seen.update)
    for path in change:  # 2 t (1 - t) = 1/2, and every tensor bends by its own root mean square
        assert float(tree_norm(size[path])) == pytest.approx(0.5 * float(tree_norm(change[path])), rel=1e-3)


def test_at_the_truth_a_control_explains_what_no_point_of_the_segment_does(victim, trained):
    _, seen = trained
    gradient = clients.fedsgd(victim.model.loss)

    def distance(position, control):
        return objectives.cosine(gradient(on_the_curve(seen, position, control), victim.batch), seen.update)

    straight = jax.tree.map(jnp.zeros_like, seen.update)
    places = jnp.linspace(0.0, 0.2, 21)
    on_segment = jax.lax.map(lambda position: distance(position, straight), places)
    best = places[jnp.argmin(on_segment)]
    adam = optax.adam(0.02)

    def step(carry, _):
        control, state = carry
        slope = jax.grad(distance, argnums=1)(best, control)
        changes, state = adam.update(slope, state)
        return (optax.apply_updates(control, changes), state), tree_norm(slope)

    (control, _), slopes = jax.lax.scan(step, (straight, adam.init(straight)), None, length=50)
    assert float(slopes[0]) > 0
    assert float(distance(best, control)) < 0.5 * float(on_segment.min())


@pytest.mark.slow
def test_the_curve_without_its_control_is_the_surrogate_model(trained):
    problem, seen = trained
    blind = problem._replace(client_update=None)

    def solved(attack):
        return jax.jit(search.run(attack, num_steps=5))(jax.random.key(0), seen._replace(local_training=None))

    fixed = solved(surrogate_curve(blind, control_rate=0.0, horizon=5))
    segment = solved(surrogate_model(blind, horizon=5))
    np.testing.assert_allclose(fixed.inputs, segment.inputs, atol=1e-4)
    assert float(fixed.info["bend"]) == 0
    assert float(solved(surrogate_curve(blind, horizon=5)).info["bend"]) > 0


def test_the_prior_of_passes_does_not_depend_on_their_order():
    images = jax.random.uniform(jax.random.key(0), (4, 5, 6, 3))
    order = jnp.array([2, 0, 3, 1])
    assert float(order_mismatch(jnp.stack([images, images[order]]))) < 1e-13
    other = images.at[0].set(0.5)
    assert float(order_mismatch(jnp.stack([images, other]))) > 1e-4


def test_copies_are_averaged_after_they_are_matched_within_a_label():
    images = jax.random.uniform(jax.random.key(0), (4, 5, 6, 3))
    labels = jnp.array([0, 0, 0, 1])
    copies = jnp.stack([images, images[jnp.array([2, 0, 1, 3])] + 0.02])
    np.testing.assert_allclose(mean_of_matched(copies, labels), images + 0.01, atol=1e-6)
    several = jax.nn.one_hot(labels, 3)  # several labels per example, or soft ones
    np.testing.assert_allclose(mean_of_matched(copies, several), images + 0.01, atol=1e-6)
    crossed = jnp.stack([images, images[jnp.array([3, 1, 2, 0])]])  # image 0 came under another label
    assert float(jnp.abs(mean_of_matched(crossed, labels)[0] - images[0]).max()) > 0.1


@pytest.mark.slow
def test_passes_simulated_apart_are_the_client_if_all_copies_are_the_same():
    """As a job builds it, and as the attack reads it: the loss at the truth is what the priors cost."""
    fields = {"client": "fedavg", "local_epochs": 3, "local_batch_size": 2, "num_examples": 4, "local_lr": 0.05}
    config = jobs.JobConfig.of(model="mlp-8", size=8, targets=1, attack="fedavg-epochs", steps=2, **fields)
    task = jobs.prepare(config)
    problem = task.program.problem
    assert problem.num_epochs == 3
    params = jax.tree.map(jnp.asarray, task.observations.params)
    batch = jax.tree.map(lambda leaf: jnp.asarray(leaf)[0], Batch(task.truth.inputs, task.truth.labels))
    sent = jax.tree.map(jnp.zeros_like, problem.client_update(params, batch))
    for _ in range(3):
        sent = moved(sent, problem.one_epoch(moved(params, sent), batch), -1.0)
    assert float(objectives.cosine(sent, problem.client_update(params, batch))) < 1e-10
    assert controls.blind(problem).one_epoch is None  # else the control would read the update
    once = jobs.JobConfig.of(model="mlp-8", size=8, targets=1, attack="fedavg-epochs", steps=2, client="fedavg")
    assert jobs.prepare(once).program.problem.one_epoch is None


@pytest.mark.slow
def test_a_client_of_one_pass_is_attacked_as_by_inverting_gradients(victim):
    def solved(attack):
        return jax.jit(search.run(attack, num_steps=3))(jax.random.key(0), victim.observation)

    ours = solved(fedavg_epochs(victim.problem, horizon=3))
    theirs = solved(inverting_gradients(victim.problem, horizon=3))
    np.testing.assert_allclose(ours.inputs, theirs.inputs, atol=1e-5)
    all_entries = solved(fedleak(victim.problem, part=1.0, flat=0.0, horizon=3))
    np.testing.assert_allclose(all_entries.inputs, theirs.inputs, atol=1e-5)


def test_the_largest_entries_of_an_update_are_matched(victim):
    attack = fedleak(victim.problem, part=0.25)
    threshold = jax.jit(attack.init)(jax.random.key(0), victim.observation).carried
    mask = largest(victim.observation.update, threshold)
    kept = np.concatenate([np.asarray(leaf).ravel() for leaf in jax.tree.leaves(mask)])
    sizes = np.concatenate([np.abs(leaf).ravel() for leaf in jax.tree.leaves(victim.observation.update)])
    assert kept.mean() == pytest.approx(0.25, abs=0.01)
    assert sizes[kept == 1].min() >= sizes[kept == 0].max()
    kernels = jax.tree.map(lambda leaf: leaf if leaf.ndim > 1 else 0 * leaf, victim.observation.update)
    threshold = jax.jit(attack.init)(jax.random.key(0), victim.observation._replace(update=kernels)).carried
    sent = np.concatenate([np.abs(leaf).ravel() for leaf in jax.tree.leaves(kernels) if leaf.ndim > 1])
    assert (sent[sent > 0] >= threshold).mean() == pytest.approx(0.25, abs=0.01)


def test_flatness_adds_the_norm_of_the_gradient_and_its_derivative():
    """`L = sum a x^2 / 2`: the norm of its gradient is `|a x|`, whose derivative is `a^2 x / |a x|`."""
    a, x = jnp.array([1.0, 3.0, 2.0]), jnp.array([0.4, -0.2, 0.3])

    def loss(inputs):
        return jnp.sum(a * inputs**2) / 2

    value, slope = jax.value_and_grad(lambda inputs: flattened(loss, inputs, 0.5))(x)
    norm = jnp.linalg.norm(a * x)
    np.testing.assert_allclose(value, loss(x) + 0.5 * norm, rtol=0.05)
    np.testing.assert_allclose(slope, a * x + 0.5 * a**2 * x / norm, rtol=0.05)


@pytest.mark.parametrize("name", ["surrogate-curve", "fedavg-epochs", "fedleak"])
def test_it_is_registered_with_its_hyperparameters(name):
    assert registry.REGISTRY[name].hyperparameters["tv"] == 0.01
