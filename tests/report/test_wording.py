"""Numbers, durations and captions as people read them."""

import math
from pathlib import Path

import numpy as np
import pytest

from jaxinvert import report
from jaxinvert.report import wording
from jaxinvert.report.pictures import flat_psnr


def test_flat_picture_scores_its_variance():
    half = np.zeros((4, 4, 1), np.uint8)
    half[:2] = 255
    # Mean 1/2, so every pixel is off by 1/2: PSNR = -10 log10(1/4) = 20 log10(2).
    assert flat_psnr(half) == pytest.approx(20 * math.log10(2))
    assert flat_psnr(np.zeros((4, 4, 3), np.uint8)) == math.inf


def test_captions_name_what_there_is():
    images = [{"class_name": "cat", "psnr_db": 41.23, "ssim": 0.99}, {"label": 3}, {}]
    assert report.captions({"images": images}) == ["cat · 41.2 dB · SSIM 0.990", "class 3", "image 2"]


@pytest.mark.parametrize(
    ("value", "key", "expected"),
    [
        (None, "", "—"), (math.nan, "ssim", "NaN"), (math.inf, "psnr_db", "∞"),
        (-math.inf, "", "-∞"), (4800, "", "4,800"),
        (12345, "seed", "12345"), (0.1, "", "0.1"), (True, "", "True"), (Path("a/b"), "", "a/b"),
        (41.25, "psnr_db", "41.2"), (1e-4, "mse", "1.00e-04"),
    ],
)  # fmt: skip
def test_numbers_for_people(value, key, expected):
    assert wording.number(value, key) == expected


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (0.0042, "4.2 ms"),
        (4.21, "4.2 s"),
        (59.97, "1 min 00 s"),
        (192.3, "3 min 12 s"),
        (7500, "2 h 05 min"),
        (None, "—"),
    ],
)
def test_durations_for_people(seconds, expected):
    assert wording.duration(seconds) == expected
