"""HaarPSI is its equation; the line-up recognizes what the eye does, and chance does not."""

import math

import numpy as np
import pytest
from scipy import ndimage, signal

from jaxinvert import data
from jaxinvert.metrics import recognition


@pytest.fixture(scope="module")
def photos():
    return data.load("photos", split="private[:40]").images


def plain_haarpsi(first, second):
    """The equation with explicit kernels, for one pair `[H, W, 3]`."""

    def coefficients(image):
        luminance = 255 * (image @ np.array([0.299, 0.587, 0.114]))
        luminance = signal.convolve2d(luminance, np.ones((2, 2)) / 4, mode="same")[::2, ::2]
        found = {}
        for scale in (1, 2, 3):
            kernel = 2.0**-scale * np.ones((2**scale, 2**scale))
            kernel[: 2**scale // 2] *= -1
            found[0, scale] = np.abs(signal.convolve2d(luminance, kernel, mode="same"))
            found[1, scale] = np.abs(signal.convolve2d(luminance, kernel.T, mode="same"))
        return found

    a, b = coefficients(first), coefficients(second)
    above, below = 0.0, 0.0
    for k in (0, 1):
        weight = np.maximum(a[k, 3], b[k, 3])
        similarity = sum((2 * a[k, j] * b[k, j] + 900) / (a[k, j] ** 2 + b[k, j] ** 2 + 900) for j in (1, 2)) / 2
        above += np.sum(weight / (1 + np.exp(-4.2 * similarity)))
        below += np.sum(weight)
    return (math.log(above / below / (1 - above / below)) / 4.2) ** 2


def test_haarpsi_is_its_equation(photos):
    expected = [plain_haarpsi(a.astype(float), b.astype(float)) for a, b in zip(photos[:6], photos[6:12])]
    np.testing.assert_allclose(recognition.haarpsi(photos[:6], photos[6:12]), expected, atol=2e-4)
    np.testing.assert_allclose(recognition.haarpsi(photos[:6], photos[:6]), 1, atol=1e-6)


def test_haarpsi_falls_with_the_distortion_and_survives_what_is_not_finite(photos):
    blurred = [recognition.haarpsi(ndimage.gaussian_filter(photos, (0, s, s, 0)), photos).mean() for s in (1, 2, 4)]
    assert blurred[0] > blurred[1] > blurred[2]
    assert np.isfinite(recognition.haarpsi(np.full_like(photos, np.nan), photos)).all()
    with pytest.raises(ValueError, match=r"expected two equal \[N, H, W, C\]"):
        recognition.haarpsi(photos[:2], photos[:3])


def test_what_the_eye_recognizes_is_recognized(photos):
    noise = np.random.default_rng(0).normal(size=photos.shape)
    for changed in (
        0.3 * photos + 0.3,  # faint
        0.4 * photos,  # dark
        photos + 0.15 * noise,
        ndimage.gaussian_filter(photos, (0, 1.5, 1.5, 0)),
        np.roll(photos, (1, 1), (1, 2)),
    ):
        assert recognition.line_up(changed, photos).recognized.mean() > 0.9


def test_chance_is_what_it_says(photos):
    others, mean = np.roll(photos, 11, axis=0), np.broadcast_to(photos.mean(axis=0), photos.shape)
    found = recognition.line_up(np.concatenate([others, mean]), np.concatenate([photos, photos]))
    assert found.num_fillers == recognition.NUM_FILLERS
    assert found.chance == pytest.approx(0.01)
    assert found.recognized.sum() <= 3  # 80 tries, one expected
    blind = recognition.line_up(np.full_like(photos, np.inf), photos)
    assert not blind.recognized.any()
    assert blind.p_value == 1


def test_copies_of_an_original_are_no_fillers(photos):
    found = recognition.line_up(photos[[0, 0, 0]], photos[[0, 0, 0]])
    assert found.recognized.all()
    assert found.num_own == 0


def test_the_p_value_is_the_binomial_tail():
    found = recognition.LineUp(np.ones(2), np.array([True, False]), 99, 0)
    assert found.p_value == pytest.approx(1 - 0.99**2)


@pytest.mark.parametrize("shape", [(28, 28, 1), (9, 14, 3), (224, 200, 3), (4, 4, 1)])
def test_pictures_of_any_shape(shape):
    images = np.random.default_rng(0).random((3, *shape)).astype(np.float32)
    assert recognition.line_up(images, images).recognized.all()
