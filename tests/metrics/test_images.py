"""Metrics against numbers by hand, against scikit-image, and against the ways in which audits fool themselves."""

import itertools
import json

import hypothesis
import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from skimage import metrics as skimage_metrics

from jaxinvert import metrics

settings = hypothesis.settings(max_examples=25, deadline=None)
batches = hnp.arrays(np.float32, (3, 4, 5, 2), elements=st.floats(0, 1, width=32))
any_floats = st.floats(-2, 3, width=32) | st.sampled_from([np.nan, np.inf, -np.inf])
any_batches = hnp.arrays(np.float32, (3, 4, 5, 2), elements=any_floats)


def images(seed=0, shape=(4, 16, 20, 3)):
    return np.random.default_rng(seed).uniform(size=shape).astype(np.float32)


def noisy(truths, scale=0.1, seed=1):
    noise = scale * np.random.default_rng(seed).standard_normal(truths.shape)
    return np.clip(truths + noise, 0, 1).astype(np.float32)


def test_psnr_of_a_known_offset():
    """An offset of d has MSE d^2: 10 log10(1 / d^2) = -20 log10(d) dB; 0.1 -> 20 dB, 0.01 -> 40 dB."""
    truth = np.full((8, 8, 3), 0.5, np.float32)
    for offset, decibels in [(0.1, 20.0), (-0.1, 20.0), (0.01, 40.0), (0.5, 6.0206)]:
        np.testing.assert_allclose(metrics.psnr(truth + offset, truth), decibels, atol=1e-3)
        np.testing.assert_allclose(metrics.mse(truth + offset, truth), offset**2, rtol=1e-4)


def test_limits():
    truth = images()
    np.testing.assert_array_equal(metrics.psnr(truth, truth), [metrics.MAX_PSNR_DB] * 4)
    np.testing.assert_array_equal(metrics.mse(truth, truth), [0.0] * 4)
    np.testing.assert_allclose(metrics.ssim(truth, truth), [1.0] * 4, atol=1e-5)
    black, white = np.zeros((8, 8, 1), np.float32), np.ones((8, 8, 1), np.float32)
    assert metrics.psnr(black, white) == 0.0
    assert not np.signbit(metrics.psnr(black, white))


@pytest.mark.parametrize("metric", [metrics.mse, metrics.psnr, metrics.ssim])
def test_reconstructions_are_clamped_first(metric):
    truth = np.round(images())  # black and white
    wild = np.where(truth > 0.5, 7.0, -3.0).astype(np.float32)
    np.testing.assert_array_equal(metric(wild, truth), metric(truth, truth))


@pytest.mark.parametrize("channels", [1, 3])
def test_psnr_and_ssim_equal_scikit_image(channels):
    truths = images(shape=(4, 24, 17, channels))
    truths[1] = np.linspace(0, 1, 17, dtype=np.float32)[None, :, None]
    truths[2] = 0.25
    reconstructions = noisy(truths, 0.2)
    for truth, image, psnr, ssim in zip(
        truths,
        reconstructions,
        metrics.psnr(reconstructions, truths),
        metrics.ssim(reconstructions, truths),
        strict=True,
    ):
        expected = skimage_metrics.peak_signal_noise_ratio(truth, image, data_range=1)
        np.testing.assert_allclose(psnr, expected, rtol=1e-5)
        expected = skimage_metrics.structural_similarity(
            truth.astype(np.float64),
            image.astype(np.float64),
            data_range=1,
            channel_axis=-1,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
        )
        np.testing.assert_allclose(ssim, expected, atol=2e-4)


@pytest.mark.parametrize("side", [8, 7, 1])
def test_small_images_have_one_window_of_their_own_size(side):
    """Gaussian-weighted moments of the whole image, by the paper's formula."""
    truth, image = images(shape=(side, side, 1)), images(seed=1, shape=(side, side, 1))
    offsets = np.arange(side) - (side - 1) / 2
    weights = np.exp(-np.square(offsets) / (2 * 1.5**2))
    weights = np.outer(weights, weights) / np.sum(weights) ** 2
    x, y = truth[..., 0].astype(np.float64), image[..., 0].astype(np.float64)
    mean_x, mean_y = np.sum(weights * x), np.sum(weights * y)
    covariance = np.sum(weights * x * y) - mean_x * mean_y
    variances = np.sum(weights * (x**2 + y**2)) - mean_x**2 - mean_y**2
    expected = (2 * mean_x * mean_y + 1e-4) * (2 * covariance + 9e-4)
    expected /= (mean_x**2 + mean_y**2 + 1e-4) * (variances + 9e-4)
    np.testing.assert_allclose(metrics.ssim(image, truth), expected, atol=1e-4)
    assert float(metrics.ssim(truth, truth)) == pytest.approx(1, abs=1e-5)


def test_monochrome_pairs():
    """Flat images a and b: SSIM = (2ab + 0.01^2) / (a^2 + b^2 + 0.01^2), since all variances vanish."""
    a, b = 0.25, 0.75
    flat_a, flat_b = np.full((12, 12, 3), a, np.float32), np.full((12, 12, 3), b, np.float32)
    expected = (2 * a * b + 1e-4) / (a**2 + b**2 + 1e-4)
    np.testing.assert_allclose(metrics.ssim(flat_a, flat_b), expected, atol=1e-3)
    np.testing.assert_allclose(metrics.ssim(flat_a, flat_a), 1.0, atol=1e-5)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_broken_reconstructions_score_worst(bad):
    """One bad pixel is enough; the other images of the batch keep their scores."""
    truth = images()
    broken = truth.copy()
    broken[2, 3, 4, 0] = bad
    np.testing.assert_array_equal(metrics.mse(broken, truth), [0, 0, 1, 0])
    np.testing.assert_array_equal(metrics.psnr(broken, truth), [120, 120, 0, 120])
    np.testing.assert_allclose(metrics.ssim(broken, truth), [1, 1, -1, 1], atol=1e-5)
    quality = metrics.evaluate(broken[[2, 0, 3, 1]], truth)
    np.testing.assert_array_equal(quality.psnr_db, [120, 120, 0, 120])
    quality = metrics.evaluate(np.full_like(truth, bad), truth)
    assert np.all(quality.psnr_db == 0)
    assert np.all(quality.ssim == -1)
    assert sorted(quality.permutation) == [0, 1, 2, 3]


def test_broken_reconstructions_survive_debug_nans():
    with jax.debug_nans(True):
        metrics.ssim(np.full((12, 12, 1), np.inf, np.float32), images(shape=(12, 12, 1)))


@pytest.mark.slow
def test_any_leading_axes_jit_and_vmap():
    truths, reconstructions = images(shape=(2, 3, 12, 12, 3)), noisy(images(shape=(2, 3, 12, 12, 3)))
    for metric in (metrics.mse, metrics.psnr, metrics.ssim):
        scores = metric(reconstructions, truths)
        assert scores.shape == (2, 3)
        assert metric(reconstructions[0, 0], truths[0, 0]).shape == ()
        np.testing.assert_allclose(jax.jit(metric)(reconstructions, truths), scores, rtol=1e-5)
        np.testing.assert_allclose(jax.vmap(metric)(reconstructions, truths), scores, rtol=1e-5)
        np.testing.assert_allclose(metric(reconstructions[1, 2], truths[1, 2]), scores[1, 2], rtol=1e-5)


def test_half_precision_is_scored_in_float32():
    truth = images()
    rounded = jnp.asarray(truth, jnp.bfloat16)
    by_hand = np.mean((np.asarray(rounded, np.float64) - truth) ** 2, axis=(1, 2, 3))
    np.testing.assert_allclose(metrics.mse(rounded, truth), by_hand, rtol=1e-4)
    np.testing.assert_array_equal(metrics.psnr(rounded, rounded), [metrics.MAX_PSNR_DB] * 4)


def test_evaluate_undoes_any_permutation():
    truth = images()
    reconstructions = noisy(truth)
    scores = metrics.evaluate(reconstructions, truth)
    np.testing.assert_array_equal(scores.permutation, np.arange(4))
    np.testing.assert_allclose(scores.psnr_db, metrics.psnr(reconstructions, truth), rtol=1e-6)
    for order in itertools.permutations(range(4)):
        shuffled = metrics.evaluate(reconstructions[list(order)], truth)
        np.testing.assert_array_equal(np.array(order)[shuffled.permutation], np.arange(4))
        for name in ("psnr_db", "ssim", "mse"):
            np.testing.assert_array_equal(getattr(shuffled, name), getattr(scores, name))


def test_a_collapsed_batch_does_not_score_well():
    """Four copies of one true image: one match may claim it, the others pay. Reuse would score 120 dB twice."""
    truth = images()
    collapsed = np.repeat(truth[1:2], 4, axis=0)
    quality = metrics.evaluate(collapsed, truth)
    assert sorted(quality.permutation) == [0, 1, 2, 3]
    np.testing.assert_array_equal(quality.psnr_db > 20, [False, True, False, False])
    # Noise against noise: mean (x - y)^2 of two independent U(0, 1) is 1/6, that is 7.8 dB.
    np.testing.assert_allclose(np.delete(quality.psnr_db, 1), 7.78, atol=0.5)


def test_matching_is_the_best_of_all_permutations():
    truth, reconstructions = images(3, (5, 4, 4, 1)), images(4, (5, 4, 4, 1))
    costs = [
        [np.mean((a.astype(np.float64) - b) ** 2) for b in reconstructions] for a in truth
    ]  # [truth, reconstruction]
    best = min(itertools.permutations(range(5)), key=lambda p: sum(costs[i][j] for i, j in enumerate(p)))
    np.testing.assert_array_equal(metrics.match_one_to_one(reconstructions, truth), best)


def test_matching_tells_nearly_equal_images_apart():
    """Images 1e-4 apart on a common background: the expanded square must not drown them in rounding."""
    base = images(5, (1, 32, 32, 3)).astype(np.float64)
    truth = np.clip(base + 1e-4 * np.random.default_rng(6).standard_normal((6, 32, 32, 3)), 0, 1)
    order = np.array([3, 1, 5, 0, 2, 4])
    np.testing.assert_array_equal(order[metrics.match_one_to_one(truth[order], truth)], np.arange(6))


@pytest.mark.parametrize(
    ("reconstructions", "truths", "message"),
    [
        (images(), images()[:3], "same shape"),
        (images()[0], images()[0], "same shape .B, H, W, C."),
        (images(), 2 * images() - 1, r"lie in \[0, 1\]"),
        (images(), np.full((4, 16, 20, 3), np.nan, np.float32), r"lie in \[0, 1\]"),
        (np.zeros((1, 12, 12, 1), int), np.zeros((1, 12, 12, 1)), "reconstructions must be floats"),
    ],
)
def test_evaluate_refuses(reconstructions, truths, message):
    with pytest.raises(ValueError, match=message):
        metrics.evaluate(reconstructions, truths)


@pytest.mark.parametrize("metric", [metrics.mse, metrics.psnr, metrics.ssim])
def test_metrics_refuse(metric):
    with pytest.raises(ValueError, match="same shape"):
        metric(images(), images()[:1])  # no silent broadcasting
    with pytest.raises(ValueError, match="same shape"):
        metric(images()[0, 0], images()[0, 0])
    with pytest.raises(ValueError, match="truths must be floats"):
        metric(images(), np.ones(images().shape, np.uint8))


def test_matching_refuses():
    with pytest.raises(ValueError, match="same shape"):
        metrics.match_one_to_one(images(), images()[:1])


def test_evaluate_compiles_once_per_shape(monkeypatch):
    traces, psnr = [], metrics.psnr
    monkeypatch.setattr(metrics.images, "psnr", lambda *arrays: traces.append(None) or psnr(*arrays))
    truth = images(shape=(2, 13, 14, 1))  # a shape that no other test uses
    for seed in range(3):
        metrics.evaluate(noisy(truth, seed=seed), jnp.asarray(truth))
    assert len(traces) == 1


def test_summary_by_hand():
    quality = metrics.Quality(
        psnr_db=np.array([[10.0, 30.0], [20.0, 40.0]], np.float32),
        ssim=np.array([[0.1, 0.5], [0.3, 0.9]], np.float32),
        mse=np.array([[0.1, 0.001], [0.01, 0.0001]], np.float32),
        permutation=np.array([[0, 1], [1, 0]]),
    )
    summary = metrics.summarize(quality)
    assert summary.num_images == 4
    # Quantile q of 4 values lies at position 3q between the sorted ones: 0.75 -> 17.5, 2.25 -> 32.5.
    np.testing.assert_allclose(summary.psnr_db, (25.0, np.sqrt(125), 10.0, 17.5, 25.0, 32.5, 40.0))
    assert summary.ssim.max == pytest.approx(0.9)
    assert summary.mse.min == pytest.approx(0.0001)
    assert json.loads(json.dumps(summary, allow_nan=False))[0] == 4


def test_summary_refuses_nothing_and_nan():
    empty = metrics.Quality(*[np.zeros(0)] * 4)
    with pytest.raises(ValueError, match="non-empty"):
        metrics.summarize(empty)
    with pytest.raises(ValueError, match="finite"):
        metrics.summarize(metrics.Quality(np.array([np.nan]), *[np.zeros(1)] * 3))


@settings
@hypothesis.given(any_batches, batches)
def test_scores_stay_in_range(reconstructions, truths):
    mse, psnr = metrics.mse(reconstructions, truths), metrics.psnr(reconstructions, truths)
    assert np.all((mse >= 0) & (mse <= 1))
    assert np.all((psnr >= 0) & (psnr <= metrics.MAX_PSNR_DB))


@settings
@hypothesis.given(batches, batches)
def test_mse_is_symmetric_and_psnr_falls_with_it(a, b):
    np.testing.assert_array_equal(metrics.mse(a, b), metrics.mse(b, a))
    order = np.argsort(metrics.mse(a, b))
    assert np.all(np.diff(np.asarray(metrics.psnr(a, b))[order]) <= 0)


@settings
@hypothesis.given(any_batches, batches, st.permutations(range(3)))
def test_matching_does_not_depend_on_the_order(reconstructions, truths, order):
    """Always a permutation, never worse than the given order, and the same total whatever the order."""
    permutation = metrics.match_one_to_one(reconstructions, truths)
    assert sorted(permutation) == [0, 1, 2]
    total = np.sum(metrics.mse(reconstructions[permutation], truths))
    assert total <= np.sum(metrics.mse(reconstructions, truths)) + 1e-6
    shuffled = reconstructions[np.array(order)]
    again = metrics.mse(shuffled[metrics.match_one_to_one(shuffled, truths)], truths)
    np.testing.assert_allclose(np.sum(again), total, rtol=1e-5, atol=1e-6)


def test_relative_data_leakage_by_hand():
    found = metrics.relative_data_leakage([0.6, 0.4, 0.2], [0.4, 0.4, 0.4])
    np.testing.assert_allclose(found, [0.5, 0.0, -0.5])
