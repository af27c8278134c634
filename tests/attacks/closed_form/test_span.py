"""Spans of gradients that are known by construction, and known images in them."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxinvert import clients, models
from jaxinvert.attacks.closed_form import span as spans
from jaxinvert.attacks.closed_form.certificate import Status
from jaxinvert.attacks.closed_form.known_patches import known_patches
from jaxinvert.types import Batch

WIDTH, NUM_UNITS = 24, 40


def planted(num_rows, weakest=1e-3):
    """A layer's gradient of `num_rows` inputs, whose singular values reach down to about `weakest`; the inputs."""
    rng = np.random.default_rng(num_rows)
    rows = rng.normal(size=(num_rows, WIDTH))
    strength = np.logspace(0, np.log10(weakest), num_rows)
    outputs = np.linalg.qr(rng.normal(size=(NUM_UNITS, num_rows)))[0] * strength
    return np.concatenate([rows, np.ones((num_rows, 1))], axis=1).T @ outputs.T, rows


def read(gradient, candidates, tolerances):
    with jax.enable_x64(True):
        span = spans.column_span(jnp.asarray(gradient, jnp.float64), tolerance=tolerances.rank)
        return span, np.asarray(spans.distances(span, jnp.asarray(candidates))) <= tolerances.distance


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("num_rows", [1, 10, 23])
def test_exactly_the_rows_are_inside(dtype, num_rows):
    """The update's rounding, of float32 or float64, is what the tolerances are for; the algebra is float64."""
    gradient, rows = planted(num_rows)
    others = np.random.default_rng(0).normal(size=(500, WIDTH))
    span, inside = read(
        gradient.astype(dtype), np.concatenate([rows, others]), spans.tolerances(float(np.finfo(dtype).eps))
    )
    assert int(span.rank) == num_rows
    assert inside.tolist() == [True] * num_rows + [False] * 500


def test_tolerances_of_another_resolution_fail():
    """Those of float64 take float32's rounding for inputs: full. Those of half precision miss what is weak."""
    gradient, rows = planted(10)
    gradient = gradient.astype(np.float32)
    full, _ = read(gradient, rows, spans.tolerances(float(np.finfo(np.float64).eps)))
    assert int(full.rank) == WIDTH + 1
    missed, _ = read(gradient, rows, spans.tolerances(float(np.finfo(np.float16).eps)))
    assert int(missed.rank) < 10


def test_a_decomposition_in_float32_misses_what_one_in_float64_finds():
    """Directions of 1e-5 of the largest are turned by rounding: in float64 by no more than the update's own."""
    gradient, rows = planted(10, weakest=1e-5)
    found = {}
    for precise in (False, True):
        with jax.enable_x64(precise):
            dtype = jnp.float64 if precise else jnp.float32
            span = spans.column_span(jnp.asarray(gradient, dtype), tolerance=3e-6)
            found[precise] = float(jnp.max(spans.distances(span, jnp.asarray(rows, dtype))))
    assert found[True] < 1e-10
    assert found[False] > 1e-6


@pytest.mark.parametrize(
    ("gradient", "status"),
    [(np.zeros((5, 7)), Status.ZERO), (np.full((5, 7), np.inf), Status.NOT_FINITE), (np.eye(5), Status.SPAN_FULL)],
)
def test_statuses(gradient, status):
    span, inside = read(gradient, np.ones((3, 4)), spans.tolerances(1e-16))
    assert int(spans.doubt(span, jnp.all(inside))) == status
    assert np.all(np.isfinite(span.basis))


@pytest.mark.slow
def test_known_images_are_told_from_unknown_ones():
    model = models.create("vit-pre-norm-8-24-1", input_shape=(16, 16, 1), num_classes=5, mean=(0.4,), std=(0.3,))
    client = jax.jit(clients.fedsgd(models.cross_entropy(model.apply)))
    params = model.init(jax.random.key(0))
    images = jax.random.uniform(jax.random.key(1), (9, 16, 16, 1))

    candidates = images.at[-1, :8, :8].set(images[0, :8, :8])
    updates = [client(params, Batch(images[first : first + 3], jnp.arange(3))) for first in (0, 3)]
    read = partial(known_patches, images=candidates, mean=model.mean, std=model.std)
    inside, status = read(updates[0])
    assert int(status) == Status.CERTIFIED
    assert inside.all(axis=1).tolist() == [True] * 3 + [False] * 6
    assert inside[-1].tolist() == [True, False, False, False]  # a patch that it shares
    inside, status = read(jax.tree.map(jnp.add, *updates))  # 24 patches, as many as units
    assert int(status) == Status.SPAN_FULL
    assert not inside.any()
    with pytest.raises(ValueError, match=r"has 64 inputs, which is no patch of images \(2, 12, 12, 1\)"):
        known_patches(params, jnp.zeros((2, 12, 12, 1)))
