"""How close reconstructions come to the private images: MSE, PSNR, SSIM, one-to-one matching, summaries.

Only an audit may call this: everything here compares with the truth. One convention throughout: pixels are
clamped to [0, 1], the peak is 1, every number belongs to one image, and averages are over those numbers.

Edge cases:

| case | mse | psnr | ssim |
|---|---|---|---|
| perfect reconstruction | 0 | `MAX_PSNR_DB` = 120 dB | 1 |
| reconstruction beyond [0, 1] | of the clamped image | of the clamped image | of the clamped image |
| a NaN or infinite pixel anywhere in the reconstruction | 1 | 0 dB | -1 |
| image smaller than the 11x11 window | defined | defined | `ValueError` |

A broken reconstruction gets the worst value of each metric, never NaN: a NaN poisons every mean, and since
all comparisons with it are false it can hide a leak in another image.

References:
  Wang, Bovik, Sheikh, Simoncelli: Image quality assessment: from error visibility to structural similarity.
  IEEE Transactions on Image Processing 13(4), 2004 (SSIM).
  Kuhn: The Hungarian method for the assignment problem. Naval Research Logistics Quarterly 2, 1955.
"""

from typing import NamedTuple

import dm_pix
import jax
import jax.numpy as jnp
import numpy as np
import scipy  # whose modules are imported when they are used: this takes long
from jax.typing import ArrayLike

from jaxinvert.types import Array

MAX_PSNR_DB = 120.0
"""Cap of the PSNR: a root mean square error of 1e-6, a 4,000th of the step of an 8-bit pixel."""
SSIM_WINDOW = 11
"""Side of the Gaussian window (sigma 1.5); smaller images have a window of their own shorter side."""
_WORST_MSE = 1.0
_WORST_SSIM = -1.0
_RANGE_TOLERANCE = 1e-4


class Quality(NamedTuple):
    """Scores of one batch, in the order of the true images.

    Attributes:
      psnr_db: `[B]` in dB, 0 ... 120.
      ssim: `[B]` in [-1, 1].
      mse: `[B]` in [0, 1].
      permutation: `[B]` integers: `permutation[i]` is the reconstruction matched to true image `i`.
    """

    psnr_db: np.ndarray
    ssim: np.ndarray
    mse: np.ndarray
    permutation: np.ndarray


class Distribution(NamedTuple):
    """Statistics of one metric over images, as Python floats fit for JSON.

    Attributes:
      mean: average.
      std: population standard deviation.
      min: lowest value.
      q25: 25 % quantile (linear interpolation, as the other two).
      median: 50 % quantile.
      q75: 75 % quantile.
      max: highest value; for PSNR and SSIM the image that leaks most. Report it beside the mean: privacy is as
        good as the worst-protected image.
    """

    mean: float
    std: float
    min: float
    q25: float
    median: float
    q75: float
    max: float


class Summary(NamedTuple):
    """`Distribution` of each metric over `num_images` images."""

    num_images: int
    psnr_db: Distribution
    ssim: Distribution
    mse: Distribution


def mse(reconstructions: ArrayLike, truths: ArrayLike) -> Array:
    """Mean squared error per image, after clamping to [0, 1].

    Pure; works under jit and vmap.

    Args:
      reconstructions: `[..., H, W, C]` floats.
      truths: `[..., H, W, C]` floats in [0, 1].

    Returns:
      `[...]` in [0, 1]; 1 for a reconstruction with a non-finite pixel.

    Raises:
      ValueError: for different shapes, fewer than three axes, or values that are not floating point.
    """
    reconstructions, truths = _images(reconstructions, truths)
    differences = _clamp(_finite_or_zero(reconstructions)) - _clamp(truths)
    errors = jnp.mean(jnp.square(differences), axis=(-3, -2, -1))
    return jnp.where(_finite(reconstructions), errors, _WORST_MSE)


def psnr(reconstructions: ArrayLike, truths: ArrayLike) -> Array:
    """Peak signal-to-noise ratio per image: `-10 log10(mse)` dB, peak 1, at most `MAX_PSNR_DB`.

    Pure; works under jit and vmap.

    Example: a constant offset of 0.1 has an MSE of 0.01:
      >>> import jax.numpy as jnp
      >>> truth = jnp.full((8, 8, 3), 0.5)
      >>> round(float(psnr(truth + 0.1, truth)), 3)
      20.0

    Args:
      reconstructions: `[..., H, W, C]` floats.
      truths: `[..., H, W, C]` floats in [0, 1].

    Returns:
      `[...]` in dB; 0 for a reconstruction with a non-finite pixel.

    Raises:
      ValueError: as `mse`.
    """
    decibels = -10.0 * jnp.log10(jnp.maximum(mse(reconstructions, truths), 10 ** (-MAX_PSNR_DB / 10)))
    # The logarithm rounds differently under jit: keep exact ends, and 0 rather than -0.
    return jnp.where(decibels > 0, jnp.minimum(decibels, MAX_PSNR_DB), 0.0)


def ssim(reconstructions: ArrayLike, truths: ArrayLike) -> Array:
    """Structural similarity per image, after clamping to [0, 1]; color images: mean over channels.

    The constants of the paper: Gaussian window 11x11, sigma 1.5, K1 = 0.01, K2 = 0.03, range 1, windows
    inside the image only. Equals scikit-image's `structural_similarity` with `gaussian_weights=True,
    sigma=1.5, use_sample_covariance=False, data_range=1`. Pure; works under jit and vmap.

    Args:
      reconstructions: `[..., H, W, C]` floats. Images with fewer than 11 rows or columns get a window of as many.
      truths: `[..., H, W, C]` floats in [0, 1].

    Returns:
      `[...]` in [-1, 1]; -1 for a reconstruction with a non-finite pixel.

    Raises:
      ValueError: as `mse`.
    """
    reconstructions, truths = _images(reconstructions, truths)
    window = min(SSIM_WINDOW, *truths.shape[-3:-1])
    stack = (-1, *truths.shape[-3:])
    x, y = _clamp(_finite_or_zero(reconstructions)).reshape(stack), _clamp(truths).reshape(stack)
    scores = jnp.asarray(dm_pix.ssim(x, y, filter_size=window)).reshape(truths.shape[:-3])
    return jnp.where(_finite(reconstructions), scores, _WORST_SSIM)


def match_one_to_one(reconstructions: ArrayLike, truths: ArrayLike) -> np.ndarray:
    """Pairs reconstructions with true images so that the total MSE is least, each used exactly once.

    A batch gradient does not know the order of its examples, so a reconstruction is right up to a
    permutation. One-to-one, because a best match with reuse would reward a batch collapsed onto one image.
    Host-side (SciPy, float64): not for use under jit.

    Args:
      reconstructions: `[B, ...]` floats, clamped to [0, 1] first; an example with a non-finite value gets
        whatever the others leave over.
      truths: `[B, ...]` floats in [0, 1], B at least 1.

    Returns:
      `permutation [B]`: `reconstructions[permutation]` is in the order of `truths`.

    Raises:
      ValueError: for different shapes.
    """
    reconstructions = np.asarray(reconstructions, np.float64)
    truths = np.asarray(truths, np.float64)
    if reconstructions.shape != truths.shape or truths.ndim < 1:
        raise ValueError(
            f"reconstructions and truths must have the same shape [B, ...], got {reconstructions.shape} and "
            f"{truths.shape}"
        )
    batch_size = truths.shape[0]
    if batch_size == 1:
        return np.zeros(1, int)
    x = truths.reshape(batch_size, -1).clip(0, 1)
    y = reconstructions.reshape(batch_size, -1)
    broken = np.logical_not(np.isfinite(y).all(axis=1))
    y = np.where(broken[:, None], 0.0, y).clip(0, 1)
    # |x - y|^2 = |x|^2 + |y|^2 - 2 <x, y> needs [B, B] numbers rather than [B, B, pixels]. Centering first
    # keeps the cancellation, some 1e-16 of |x|^2 in float64, small even for a batch of nearly equal images.
    center = x.mean(axis=0)
    x, y = x - center, y - center
    costs = np.sum(x**2, axis=1)[:, None] + np.sum(y**2, axis=1)[None, :] - 2 * x @ y.T
    costs[:, broken] = x.shape[1] * _WORST_MSE
    _, permutation = scipy.optimize.linear_sum_assignment(costs)
    return permutation


def evaluate(reconstruction_inputs: ArrayLike, true_inputs: ArrayLike) -> Quality:
    """Matches a batch of reconstructions to the truth and scores every pair.

    Host-side; its scores are jitted, and compiled once per batch shape. `permutation` also brings
    reconstructed labels into the order of the truth.

    Args:
      reconstruction_inputs: `[B, H, W, C]` floats, in any order.
      true_inputs: `[B, H, W, C]` floats in [0, 1].

    Returns:
      The scores, in the order of `true_inputs`.

    Raises:
      ValueError: for different shapes, not four axes, images below the window, or a truth outside [0, 1]
        (such as one in a model's normalized space, where PSNR would mean something else).
    """
    reconstructions: np.ndarray = np.asarray(reconstruction_inputs)
    truths: np.ndarray = np.asarray(true_inputs)
    if reconstructions.shape != truths.shape or truths.ndim != 4 or truths.shape[0] < 1:
        raise ValueError(
            "reconstruction_inputs and true_inputs must have the same shape [B, H, W, C], got "
            f"{reconstructions.shape} and {truths.shape}"
        )
    # Negated, so that a NaN counts as outside.
    if not (truths.min() >= -_RANGE_TOLERANCE and truths.max() <= 1 + _RANGE_TOLERANCE):
        raise ValueError(f"true_inputs must lie in [0, 1], got values in [{truths.min()}, {truths.max()}]")
    permutation = match_one_to_one(reconstructions, truths)
    psnr_db, ssim_, mse_ = jax.device_get(_scores(reconstructions[permutation], truths))
    return Quality(psnr_db=psnr_db, ssim=ssim_, mse=mse_, permutation=permutation)


@jax.jit
def _scores(reconstructions: ArrayLike, truths: ArrayLike) -> tuple[Array, Array, Array]:
    return psnr(reconstructions, truths), ssim(reconstructions, truths), mse(reconstructions, truths)


def relative_data_leakage(ssim_of_reconstruction: ArrayLike, ssim_of_prior: ArrayLike) -> np.ndarray:
    """RDLV: how much closer a reconstruction is than the picture the attack knew before (Hatamizadeh et al. 2022).

    `(SSIM(reconstruction, image) - SSIM(prior, image)) / SSIM(prior, image)`: 0 where the update taught the attacker
    nothing, negative where the attack made things worse.

    Args:
      ssim_of_reconstruction: `[...]`.
      ssim_of_prior: `[...]`, not 0 (small values inflate the quotient: choose a prior that resembles the images).
    """
    prior = np.asarray(ssim_of_prior, np.float64)
    return (np.asarray(ssim_of_reconstruction, np.float64) - prior) / prior


def summarize(quality: Quality) -> Summary:
    """Statistics over all images of one or many batches.

    Args:
      quality: scores with any leading axes, for example `[B]` or `[T, B]`.

    Returns:
      The summary, made of Python numbers.

    Raises:
      ValueError: for no image at all, or scores that are not finite (none of this module's are).
    """
    return Summary(
        num_images=int(np.size(quality.mse)),
        psnr_db=distribution("psnr_db", quality.psnr_db),
        ssim=distribution("ssim", quality.ssim),
        mse=distribution("mse", quality.mse),
    )


def distribution(name: str, values: ArrayLike) -> Distribution:
    """Statistics of the metric `name` over `values` of any shape.

    Raises:
      ValueError: for no value at all, or one that is not finite.
    """
    values = np.asarray(values, np.float64).ravel()
    if values.size == 0 or not np.isfinite(values).all():
        raise ValueError(f"{name} must be a non-empty array of finite scores, got {values}")
    lowest, q25, median, q75, highest = np.quantile(values, (0, 0.25, 0.5, 0.75, 1)).tolist()
    return Distribution(
        mean=float(values.mean()),
        std=float(values.std()),
        min=lowest,
        q25=q25,
        median=median,
        q75=q75,
        max=highest,
    )


def _images(reconstructions: ArrayLike, truths: ArrayLike) -> tuple[Array, Array]:
    """Both as arrays, checked."""
    reconstructions, truths = jnp.asarray(reconstructions), jnp.asarray(truths)
    if reconstructions.shape != truths.shape or truths.ndim < 3:
        raise ValueError(
            "reconstructions and truths must have the same shape [..., H, W, C], got "
            f"{reconstructions.shape} and {truths.shape}"
        )
    for name, images in (("reconstructions", reconstructions), ("truths", truths)):
        if not jnp.issubdtype(images.dtype, jnp.floating):
            raise ValueError(f"{name} must be floats in [0, 1], got {images.dtype}")
    return reconstructions, truths


def _clamp(images: Array) -> Array:
    # Scores in half precision would be off by decibels: at least float32.
    return jnp.clip(images.astype(jnp.promote_types(images.dtype, jnp.float32)), 0.0, 1.0)


def _finite_or_zero(images: Array) -> Array:
    """Non-finite pixels as zeros: their image's score is replaced, and `jax_debug_nans` stays usable."""
    return jnp.where(jnp.isfinite(images), images, 0.0)


def _finite(images: Array) -> Array:
    """`[...]`: whether all pixels of an image are finite."""
    return jnp.all(jnp.isfinite(images), axis=(-3, -2, -1))
