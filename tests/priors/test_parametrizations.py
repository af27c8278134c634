"""Pixels in normalized space: decode and projection by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxinvert.priors import parametrizations

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


def test_a_frequency_is_its_cosine_in_units_of_the_spectrum():
    spectrum = parametrizations.spectrum((1, 4, 4, 1))
    np.testing.assert_array_equal(spectrum.decode(jnp.zeros((1, 4, 4, 1))), jnp.full((1, 4, 4, 1), 0.5))
    one = jnp.zeros((1, 4, 4, 1)).at[0, 1, 2, 0].set(3.0)
    down, across = np.meshgrid(np.arange(4), np.arange(4), indexing="ij")
    falling = (1 + np.hypot(down, across)) ** -1.5
    amplitude = falling[1, 2] * 0.25 / np.sqrt(np.mean(falling**2))
    wave = np.cos(np.pi * (down + 0.5) / 4) * np.cos(np.pi * 2 * (across + 0.5) / 4) * np.sqrt(2 / 4) ** 2
    np.testing.assert_allclose(spectrum.decode(one)[0, :, :, 0], 0.5 + 3 * amplitude * wave, atol=1e-6)


@pytest.mark.slow
def test_standard_normal_variables_have_the_contrast_of_photographs():
    spectrum = parametrizations.spectrum((64, 8, 16, 3))
    images = spectrum.decode(jax.random.normal(jax.random.key(0), (64, 8, 16, 3)))
    # The lowest frequency has most of the energy: its 64 draws leave a standard error of 9 % in the deviation.
    assert abs(float(images.std()) / 0.25 - 1) < 0.3
    gray = images.mean(axis=3, keepdims=True)
    assert float((images - gray).std()) < 0.2 * float(gray.std())


@pytest.mark.slow
def test_the_spectrum_holds_every_image_and_project_clips_its_pixels():
    spectrum = parametrizations.spectrum((2, 5, 6, 3))
    images = jax.random.uniform(jax.random.key(0), (2, 5, 6, 3))
    # From a start at the images, nothing is left to find; projecting what is in the box changes nothing.
    at_images = parametrizations.spectrum((2, 5, 6, 3), around=images)
    np.testing.assert_allclose(at_images.decode(at_images.project(jnp.zeros((2, 5, 6, 3)))), images, atol=1e-6)
    wild = 20 * jax.random.normal(jax.random.key(1), (2, 5, 6, 3))
    projected = spectrum.project(wild)
    np.testing.assert_allclose(spectrum.decode(projected), jnp.clip(spectrum.decode(wild), 0, 1), atol=1e-5)
    np.testing.assert_allclose(spectrum.decode(spectrum.project(projected)), spectrum.decode(projected), atol=1e-5)


def test_the_spectrum_of_a_picture_decodes_to_it():
    picture = jax.random.uniform(jax.random.key(0), (2, 5, 6, 3))
    decoded = parametrizations.spectrum((2, 5, 6, 3)).decode(parametrizations.spectrum_of(picture))
    np.testing.assert_allclose(decoded, picture, atol=1e-5)


def test_the_spectrum_starts_near_a_picture_and_refuses_one_of_another_shape():
    picture = jax.random.uniform(jax.random.key(0), (5, 6, 3))
    around = parametrizations.spectrum((2, 5, 6, 3), around=picture)
    start = around.decode(around.init(jax.random.key(1)))
    assert 0 < float(jnp.abs(start - picture[None]).max()) < 0.3
    with pytest.raises(ValueError, match=r"the picture to start at has shape \(5, 6, 1\), expected \(5, 6, 3\)"):
        parametrizations.spectrum((2, 5, 6, 3), around=picture[:, :, :1])
