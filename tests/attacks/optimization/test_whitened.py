"""Whitened matching: its weights by hand, two images behind a transformer and their null, and one image exactly."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxinvert import clients, metrics, models, search
from jaxinvert.attacks import Problem, objectives, whitened
from jaxinvert.attacks.closed_form.april import where_exact
from jaxinvert.attacks.optimization.whitened import (
    WITH_ATTENTION,
    WITHOUT_ATTENTION,
    Weights,
    bases_of,
    in_singular_bases,
    weights_for,
    whiten,
)
from jaxinvert.observation.observe import observe
from jaxinvert.types import Batch, Observation

IMAGE = (8, 8, 3)


def an_update():
    rng = np.random.default_rng(0)
    kernel = (rng.standard_normal((5, 2)) @ rng.standard_normal((2, 7))).astype(np.float32)  # rank 2
    return {"bias": jnp.array([3.0, 4.0]), "kernel": jnp.asarray(kernel)}


def test_singular_values_become_one_and_an_undefined_tensor_stays_zero():
    observed, epsilon = an_update(), 0.01
    bias, kernel = whiten(observed, bases_of(observed), epsilon)
    np.testing.assert_array_equal(bias, observed["bias"])
    sizes = np.linalg.svd(np.asarray(observed["kernel"]), compute_uv=False)[:2]
    relative = sizes / sizes[0]
    expected = relative / np.sqrt(relative**2 + epsilon**2)
    np.testing.assert_allclose(np.linalg.svd(np.asarray(kernel), compute_uv=False)[:2], expected, rtol=1e-3)
    nothing = jax.tree.map(jnp.zeros_like, observed)
    assert all(np.all(np.asarray(leaf) == 0) for leaf in whiten(nothing, bases_of(nothing), epsilon))


def test_what_the_observed_update_does_not_span_counts_most():
    observed = an_update()
    left, sizes, right = np.linalg.svd(np.asarray(observed["kernel"]))
    bases = bases_of(observed)

    def distance(direction):
        moved = {"kernel": observed["kernel"] + 0.01 * sizes[0] * direction}
        return float(
            objectives.cosine(whiten(moved, bases[1:], 0.01), whiten({"kernel": observed["kernel"]}, bases[1:], 0.01))
        )

    along, beyond = np.outer(left[:, 0], right[1]), np.outer(left[:, 3], right[4])
    assert distance(beyond) > 20 * distance(along)


def test_axes_of_any_length_give_what_full_bases_give():
    rng, epsilon = np.random.default_rng(1), 0.05
    for shape in ((3, 3, 4, 5), (6, 40)):
        observed, moved = (jnp.asarray(rng.standard_normal(shape), jnp.float32) for _ in range(2))
        (found,) = whiten([moved], bases_of([observed]), epsilon)
        left, sizes, right = np.linalg.svd(np.asarray(observed).reshape(-1, shape[-1]))
        rows, columns = (
            (np.pad(sizes / sizes[0], (0, len(basis) - len(sizes))) ** 2 + epsilon**2) ** -0.25
            for basis in (left, right)
        )
        expected = left @ np.diag(rows) @ left.T @ np.asarray(moved).reshape(-1, shape[-1]) / sizes[0]
        np.testing.assert_allclose(found, expected @ right.T @ np.diag(columns) @ right, rtol=1e-3, atol=1e-4)


def test_a_very_small_gradient_is_whitened_like_a_large_one():
    observed = an_update()
    small = jax.tree.map(lambda leaf: 1e-25 * leaf, observed)
    np.testing.assert_allclose(
        whiten(small, bases_of(small), 0.01)[1], whiten(observed, bases_of(observed), 0.01)[1], rtol=1e-3, atol=1e-4
    )


def test_layouts_of_other_libraries_are_whitened_alike():
    """PyTorch's `[O, I, H, W]` has the outputs first."""
    rng = np.random.default_rng(2)
    observed, moved = (jnp.asarray(rng.standard_normal((3, 3, 4, 8)), jnp.float32) for _ in range(2))
    there = [jnp.transpose(leaf, (3, 2, 0, 1)) for leaf in (observed, moved)]
    lengths = [
        np.linalg.norm(whiten([b], bases_of([a]), 0.01)[0]) for a, b in ((observed, moved), (there[0], there[1]))
    ]
    np.testing.assert_allclose(lengths[0], lengths[1], rtol=1e-4)


def test_a_very_large_kernel_is_not_whitened(monkeypatch):
    monkeypatch.setitem(bases_of.__globals__, "_LARGEST", 3)
    (whole,) = whiten([2 * jnp.eye(4)], bases_of([2 * jnp.eye(4)]), 0.01)
    np.testing.assert_allclose(whole, 50 * jnp.eye(4), rtol=1e-6)


def distance_by(weights, update, other, share=0.0):
    compare = in_singular_bases(weights, 0.01)
    compared = compare.init(Observation(params=None, update=update, num_examples=1))
    return float(compare.objective(compared, share)(other, update))


@pytest.mark.parametrize("norms_stay", [True, False])
def test_the_truth_has_no_distance_and_biases_count_by_their_share(norms_stay):
    update, weights = an_update(), Weights(1.0, norms_stay, 0.0)
    other = {**update, "bias": -update["bias"]}
    assert distance_by(weights, update, update) < 1e-6
    assert distance_by(weights, update, other) < 1e-6
    assert distance_by(weights, update, other, share=0.5) > 0.1


def test_a_small_kernel_counts_by_its_norm_or_like_a_large_one():
    kernel = an_update()["kernel"]
    update = {"large": kernel, "small": 1e-3 * kernel}
    other = {**update, "small": -update["small"]}
    assert distance_by(Weights(1.0, True, 0.0), update, other) < 1e-4
    assert distance_by(Weights(1.0, False, 0.0), update, other) > 0.5


def test_weights_follow_from_the_network():
    assert weights_for(client_of("vit-pre-norm-fixed-4-16-1", 2)) == WITH_ATTENTION
    assert weights_for(client_of("small-convnet", 2)) == WITHOUT_ATTENTION


def client_of(name, batch_size):
    model = models.create(name, input_shape=IMAGE, num_classes=5, mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.3))
    return Problem(clients.fedsgd(models.cross_entropy(model.apply)), model, batch_size)


def observed_by(problem, images, labels):
    params = jax.jit(problem.model.init)(jax.random.key(0))
    return observe(jax.jit(problem.client_update), params, Batch(images, jnp.array(labels)))


def test_where_the_closed_form_is_exact():
    assert where_exact(client_of("vit-pre-norm-4-16-1", 1)) is not None
    assert where_exact(client_of("vit-pre-norm-4-16-1", 2)) is None
    assert where_exact(client_of("vit-pre-norm-fixed-4-16-1", 1)) is None
    assert where_exact(client_of("mlp", 1)) is None


@pytest.mark.slow
def test_one_image_behind_positions_is_exact():
    problem = client_of("vit-pre-norm-4-32-1", 1)
    image = jax.random.uniform(jax.random.key(1), (1, *IMAGE))
    seen = observed_by(problem, image, [1])
    found = jax.jit(search.run(whitened(problem), num_steps=1))(jax.random.key(0), seen)
    np.testing.assert_allclose(found.inputs, image, atol=1e-3)
    noise = jax.tree.map(lambda leaf: jax.random.normal(jax.random.key(2), leaf.shape), seen.update)
    searched = jax.jit(search.run(whitened(problem), num_steps=1))(jax.random.key(0), seen._replace(update=noise))
    assert np.all(np.isfinite(searched.inputs))
    assert float(searched.attack_loss) > 1e-2


@pytest.mark.slow
def test_two_images_are_told_apart_and_not_from_noise():
    problem = client_of("vit-pre-norm-4-32-1", 2)
    ramp = jnp.linspace(0.2, 0.8, 8)
    rows = jnp.broadcast_to(ramp[:, None, None], IMAGE)
    images = jnp.stack([rows, 1 - jnp.swapaxes(rows, 0, 1)])
    seen = observed_by(problem, images, [1, 3])
    solve = jax.jit(search.run(whitened(problem, horizon=200), num_steps=200))

    def decibels(seen):
        return metrics.evaluate(np.asarray(solve(jax.random.key(0), seen).inputs), np.asarray(images)).psnr_db

    other = observed_by(problem, images[:, ::-1, ::-1], [1, 3])
    assert decibels(seen).min() > 22
    assert decibels(seen._replace(update=other.update)).max() < 15
