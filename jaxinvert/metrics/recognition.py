"""Whether a reconstruction can be recognized: it is picked out of a line-up, by a measure that follows the eye.

PSNR does not say whether a person recognizes a picture: a faint, blurred or noisy one may be obvious at 15 dB, and a
uniform picture may score more. So a reconstruction is shown a *line-up*: its original among fillers. It is
*recognizable* if it resembles its original more than every filler, by HaarPSI. If the reconstruction does not depend
on the private image and fillers are of the same kind, this happens with probability `1 / (fillers + 1)`;
`python -m experiments.recognition` measures it for mean images, other images and blots, and measures which
distortions pass.

HaarPSI compares the luminance of two pictures by their coefficients of three Haar wavelets, after halving the
resolution: the two finest scales give the local similarity, the coarsest its weight::

    HaarPSI(a, b) = l^-1( sum_k sum_x l(S_k) W_k / sum_k sum_x W_k )^2,     l(t) = 1 / (1 + exp(-alpha t)),
    S_k(x) = 1/2 sum_j (2 |a_jk| |b_jk| + C) / (|a_jk|^2 + |b_jk|^2 + C),    W_k(x) = max(|a_3k|, |b_3k|)

with j = 1, 2, orientations k = 1, 2, C = 30^2 (for pixels of 0 ... 255) and alpha = 4.2.

Only an audit or a report may call this: it compares with the truth.

References:
  Reisenhofer, Bosse, Kutyniok, Wiegand: A Haar wavelet-based perceptual similarity index for image quality
  assessment. Signal Processing: Image Communication 61, 2018, arXiv:1607.06140.
"""

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from PIL import Image

from jaxinvert import data

NUM_FILLERS = 99
"""Fillers of a line-up."""
_C, _ALPHA = 30.0**2, 4.2
_LUMINANCE = np.array([0.299, 0.587, 0.114], np.float32)
_COPY_MSE, _CONTRAST, _MAX_GAIN = 1e-4, 0.25, 10.0


class LineUp(NamedTuple):
    """Results of `line_up`.

    Attributes:
      likeness: `[N]` HaarPSI of every reconstruction and its original, 0 ... 1; 1 for equal pictures.
      recognized: `[N]` booleans.
      num_fillers: fillers beside each original; with copies among them, the smallest number.
      num_own: how many of them are other originals.
    """

    likeness: np.ndarray
    recognized: np.ndarray
    num_fillers: int
    num_own: int

    @property
    def chance(self) -> float:
        """The probability that a reconstruction without any trace of its original is recognized."""
        return 1 / (1 + self.num_fillers)

    @property
    def p_value(self) -> float:
        """The probability that as many are recognized by chance, one-sided, for independent reconstructions."""
        total, found, chance = len(self.recognized), int(self.recognized.sum()), self.chance
        return 1 - math.fsum(
            math.comb(total, k) * chance**k * (1 - chance) ** (total - k) for k in range(found)
        )  # fmt: skip


def haarpsi(reconstructions: ArrayLike, truths: ArrayLike) -> np.ndarray:
    """HaarPSI of the luminance of every pair; pixels are clamped to [0, 1], and 0 where they are not finite.

    Args:
      reconstructions: `[N, H, W, C]` floats, C 1 or 3, sides of at least 4.
      truths: the same shape, in [0, 1].

    Returns:
      `[N]` in [0, 1].

    Raises:
      ValueError: for other shapes.
    """
    found, known = np.asarray(reconstructions, np.float32), np.asarray(truths, np.float32)
    if found.shape != known.shape or found.ndim != 4 or found.shape[3] not in (1, 3) or min(found.shape[1:3]) < 4:
        raise ValueError(
            f"reconstructions are {found.shape} and truths {known.shape}, expected two equal [N, H, W, C] with C "
            "1 or 3 and sides of at least 4"
        )
    return _similarity(_wavelets(found), _wavelets(known))


def line_up(reconstructions: ArrayLike, truths: ArrayLike) -> LineUp:
    """Shows every reconstruction its original among fillers, and says which ones it picks out by HaarPSI.

    Fillers are other originals, at most `NUM_FILLERS`, chosen at random, then tiles of the embedded photographs;
    copies of the original are left out. All pictures are first brought to the same contrast, at most tenfold, since
    anyone can stretch a faint one. Pictures of more than 64 pixels are compared as thumbnails, so that the time does
    not grow with their size. The tiles are of one kind with photographs only: for pictures of another kind (digits,
    X-rays), the chance holds with the number of other originals alone.

    Args:
      reconstructions: `[N, H, W, C]` floats, C 1 or 3, sides of at least 4, in the order of the originals.
      truths: `[N, H, W, C]` in [0, 1].

    Raises:
      ValueError: for other shapes.
    """
    likeness = haarpsi(reconstructions, truths)
    found, known = _thumbnails(reconstructions), _thumbnails(truths)
    order = np.random.default_rng(0).permutation(len(known))[: NUM_FILLERS + 1]
    fillers = np.concatenate([known[order], _tiles(known.shape[1:])])
    of_fillers, of_truths, of_found = (_wavelets(images, _CONTRAST) for images in (fillers, known, found))
    recognized, counts, own = np.zeros(len(known), bool), [], []
    for i, original in enumerate(known):
        others = np.flatnonzero(np.mean((fillers - original) ** 2, axis=(1, 2, 3)) > _COPY_MSE)[:NUM_FILLERS]
        counts.append(len(others))
        own.append(int(np.sum(others < len(order))))
        shown = [np.concatenate([scale[i : i + 1], of[others]]) for scale, of in zip(of_truths, of_fillers)]
        alike = _similarity([scale[i : i + 1] for scale in of_found], shown)
        recognized[i] = alike[0] > alike[1:].max(initial=0.0)
    return LineUp(likeness, recognized, min(counts, default=0), min(own, default=0))


@functools.cache
def _tiles(shape: tuple[int, ...]) -> np.ndarray:
    """Tiles of the embedded photographs, in random order, as `[N, *shape]`."""
    images = data.load("photos", split="train").images
    pixels = np.rint(255 * images[np.random.default_rng(1).permutation(len(images))]).astype(np.uint8)
    height, width, channels = shape
    pictures = [Image.fromarray(one).convert("RGB" if channels == 3 else "L") for one in pixels]
    resized = [np.asarray(one.resize((width, height), Image.Resampling.LANCZOS)) for one in pictures]
    return np.stack(resized).reshape(-1, *shape).astype(np.float32) / 255


def _thumbnails(images: ArrayLike) -> np.ndarray:
    """Finite pictures in [0, 1] whose longer side has at most 64 to 127 pixels, by averaging blocks."""
    images = np.clip(np.nan_to_num(np.asarray(images, np.float32), nan=0.0, posinf=1.0, neginf=0.0), 0, 1)
    block = max(images.shape[1:3]) // 64
    height, width = (side // max(block, 1) for side in images.shape[1:3])
    if block < 2 or min(height, width) < 4:
        return images
    images = images[:, : height * block, : width * block]
    return images.reshape(len(images), height, block, width, block, -1).mean(axis=(2, 4))


def _wavelets(images: np.ndarray, contrast: float | None = None) -> list[np.ndarray]:
    """`[N, 2, h, w]` of each scale: absolute Haar coefficients of the halved luminance of 0 ... 255, zero-padded.

    With a `contrast`, the luminance is first brought to this standard deviation and to a mean of 1/2.
    """
    images = np.clip(np.nan_to_num(np.asarray(images, np.float32), nan=0.0, posinf=1.0, neginf=0.0), 0, 1)
    luminance = images @ _LUMINANCE if images.shape[3] == 3 else images[..., 0]
    if contrast is not None:
        spread = np.maximum(luminance.std(axis=(1, 2), keepdims=True), contrast / _MAX_GAIN)
        luminance = (luminance - luminance.mean(axis=(1, 2), keepdims=True)) * contrast / spread + 0.5
    luminance = 255 * luminance
    luminance = (_sums(_sums(luminance, -1, 1, axis=1), -1, 1, axis=2) / 4)[:, ::2, ::2]
    scales = []
    for half in (1, 2, 4):
        vertical, horizontal = _sums(luminance, -half, half, axis=2), _sums(luminance, -half, half, axis=1)
        differences = [
            _sums(part, -half, 0, axis=axis) - _sums(part, 0, half, axis=axis)
            for part, axis in ((vertical, 1), (horizontal, 2))
        ]
        scales.append(np.abs(np.stack(differences, axis=1)) / (2 * half))
    return scales


def _sums(images: np.ndarray, start: int, stop: int, *, axis: int) -> np.ndarray:
    """Sums over the neighbors `start <= offset < stop` of every pixel along an axis, zero outside of the picture."""
    width, length = max(-start, stop), images.shape[axis]
    padding = [(width, width) if at == axis else (0, 0) for at in range(images.ndim)]
    padded = np.pad(images, padding)
    shifted = [np.take(padded, np.arange(width + at, width + at + length), axis=axis) for at in range(start, stop)]
    return np.sum(shifted, axis=0)


def _similarity(first: Sequence[np.ndarray], second: Sequence[np.ndarray]) -> np.ndarray:
    """`[N]`: HaarPSI of pictures by their coefficients; one picture on a side is compared with all of the other."""
    local = sum((2 * a * b + _C) / (a**2 + b**2 + _C) for a, b in zip(first[:2], second[:2])) / 2
    weight = np.maximum(first[2], second[2]).astype(np.float64) + 1e-9
    mean = np.sum(weight / (1 + np.exp(-_ALPHA * local)), axis=(1, 2, 3)) / np.sum(weight, axis=(1, 2, 3))
    return (np.log(mean / (1 - mean)) / _ALPHA) ** 2
