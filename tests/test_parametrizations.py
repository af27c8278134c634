"""Pixels in normalized space: decode and projection by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxinvert import parametrizations

MEAN, STD = (0.5, 0.4, 0.3), (0.25, 0.2, 0.1)


def test_decode_undoes_the_normalization_and_project_lands_in_the_box():
    pixels = parametrizations.pixels((2, 3, 3, 3), mean=MEAN, std=STD)
    variables = pixels.init(jax.random.key(0)) * 10
    expected = np.asarray(variables) * np.array(STD) + np.array(MEAN)
    np.testing.assert_allclose(pixels.decode(variables), expected, rtol=1e-5)
    projected = pixels.project(variables)
    np.testing.assert_allclose(pixels.decode(projected), np.clip(expected, 0, 1), atol=1e-6)
    np.testing.assert_array_equal(pixels.project(projected), projected)


def test_start_is_standard_normal_and_depends_on_the_key():
    pixels = parametrizations.pixels((4, 16, 16, 3), mean=MEAN, std=STD)
    start = pixels.init(jax.random.key(1))
    # 3,072 draws: the standard error of mean and std is below 0.02; a start of twice the scale fails.
    assert abs(float(start.mean())) < 0.08
    assert abs(float(start.std()) - 1) < 0.06
    assert not jnp.array_equal(start, pixels.init(jax.random.key(2)))


def test_float64_starts_at_the_same_point():
    with jax.enable_x64(True):
        double = parametrizations.pixels((1, 4, 4, 3), dtype=jnp.float64).init(jax.random.key(0))
    single = parametrizations.pixels((1, 4, 4, 3)).init(jax.random.key(0))
    assert double.dtype == jnp.float64
    np.testing.assert_array_equal(np.asarray(double, np.float32), single)


def test_refuses_a_normalization_that_does_not_fit_the_channels():
    with pytest.raises(ValueError, match=r"std has shape \(2,\), expected a scalar or the 3 channels"):
        parametrizations.pixels((1, 4, 4, 3), std=(1.0, 2.0))


def test_soft_labels_are_a_softmax_beside_the_images():
    both = parametrizations.with_soft_labels(parametrizations.pixels((2, 3, 3, 3)), batch_size=2, num_classes=4)
    images, logits = both.init(jax.random.key(0))
    assert logits.shape == (2, 4)
    batch = both.decode((images * 10, jnp.log(jnp.array([[1.0, 2, 3, 4], [1, 1, 1, 1]]))))
    np.testing.assert_allclose(batch.labels, [[0.1, 0.2, 0.3, 0.4], [0.25] * 4], rtol=1e-6)
    np.testing.assert_array_equal(batch.inputs, images * 10)
    projected, same_logits = both.project((images * 10, logits))
    assert float(projected.max()) <= 1
    np.testing.assert_array_equal(same_logits, logits)


@pytest.mark.parametrize("each", [False, True])
def test_a_start_at_pictures_is_near_them_and_depends_on_the_key(each):
    shape, std = (2, 3, 4, 3), np.array([0.1, 0.2, 0.4])
    pictures = np.asarray(jax.random.uniform(jax.random.key(1), shape if each else shape[1:]))
    images = parametrizations.pixels(shape, mean=(0.2, 0.5, 0.7), std=std)
    started = parametrizations.start_at(images, pictures, batch_shape=shape, mean=(0.2, 0.5, 0.7), std=std)
    found = [np.asarray(started.decode(started.init(jax.random.key(k)))) for k in range(2)]
    noise = (found[0] - np.broadcast_to(pictures, shape)) / std[None, None, None]
    np.testing.assert_allclose(noise, 0.1 * images.init(jax.random.key(0)), atol=1e-5)
    assert np.abs(found[0] - found[1]).max() > 1e-3


def test_refuses_to_start_at_pictures_of_another_shape():
    images = parametrizations.pixels((2, 2, 2, 1))
    with pytest.raises(ValueError, match=r"has shape \(3, 2, 2, 1\), expected \(2, 2, 1\) or \(2, 2, 2, 1\)"):
        parametrizations.start_at(images, jnp.zeros((3, 2, 2, 1)), batch_shape=(2, 2, 2, 1))
