"""Dead leaves have statistics like those of photographs: measured beside the embedded ones."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxinvert import data
from jaxinvert.priors.bases import opponent_colors
from jaxinvert.priors.dead_leaves import dead_leaves


@pytest.fixture(scope="module")
def pictures():
    return jax.jit(lambda key: dead_leaves(key, (200, 32, 32, 3)))(jax.random.key(0))


def falls(pictures):
    """By what power of the frequency the amplitude of brightness falls, from 2 to 12 periods per image."""
    gray = np.asarray(pictures).mean(axis=-1)
    power = np.mean(np.abs(np.fft.fft2(gray - gray.mean(axis=(1, 2), keepdims=True))) ** 2, axis=0)
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(32) * 32, np.fft.fftfreq(32) * 32))
    chosen = (frequency >= 2) & (frequency <= 12)
    return -np.polyfit(np.log(frequency[chosen]), np.log(power[chosen]) / 2, 1)[0]


def test_their_spectrum_falls_as_that_of_photographs(pictures):
    photographs = data.load("photos").images
    assert abs(falls(pictures) - falls(photographs)) < 0.7
    noise = jax.random.uniform(jax.random.key(1), pictures.shape)
    assert abs(falls(noise) - falls(photographs)) > 1


def test_they_are_bright_and_dark_and_hardly_colored(pictures):
    assert 0 <= float(pictures.min()) < 0.1
    assert 0.9 < float(pictures.max()) <= 1
    assert abs(float(pictures.mean()) - 0.5) < 0.06
    brightness, *colors = (pictures @ opponent_colors(3)).std(axis=(0, 1, 2))
    assert all(0.1 < float(color / brightness) < 0.5 for color in colors)


def test_every_picture_and_key_has_its_own_leaves_in_any_shape():
    gray = dead_leaves(jax.random.key(0), (2, 8, 12, 1))
    assert gray.shape == (2, 8, 12, 1)
    assert not jnp.array_equal(gray[0], gray[1])
    assert not jnp.array_equal(gray, dead_leaves(jax.random.key(1), (2, 8, 12, 1)))
