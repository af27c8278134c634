"""Truth and reconstructions meet: scores of every private image, for attacks and for controls alike."""

from typing import NamedTuple

import jax
import numpy as np

from jaxinvert import metrics
from jaxinvert.audit.retrieval import identified
from jaxinvert.metrics import perceptual
from jaxinvert.types import Batch


class Images(NamedTuple):
    """Images with their classes, as NumPy arrays: `inputs [..., H, W, C]` in [0, 1] and `labels [...]`."""

    inputs: np.ndarray
    labels: np.ndarray


class Ground(NamedTuple):
    """What only the audit knows.

    Attributes:
      truth: private batches, `inputs [T, B, H, W, C]` in [0, 1], `labels [T, B]`.
      candidates: `inputs [N, H, W, C]`, `labels [N]`: the private images and others of the same kind.
      private: `[T, B]`, where among the candidates each private image is.
    """

    truth: Images
    candidates: Images
    private: np.ndarray


class Scores(NamedTuple):
    """How close reconstructions come, image by image, `[T, B]` each, in the order of the truth.

    Attributes:
      psnr_db: 0 ... 120.
      ssim: -1 ... 1.
      mse: 0 ... 1.
      identified: whether the image is chosen among all candidates.
      identified_in_class: 1 or 0, whether among those of its own class; NaN where there are no others, or where the
        reconstruction has no labels.
      matched: `[T, B, H, W, C]` the reconstructions, one-to-one in the order of the truth.
      lpips: 0 and more, less is more alike; `None` unless it was asked for.
    """

    psnr_db: np.ndarray
    ssim: np.ndarray
    mse: np.ndarray
    identified: np.ndarray
    identified_in_class: np.ndarray
    matched: np.ndarray
    lpips: np.ndarray | None = None


def ground_truth(truth: Batch, images: np.ndarray, labels: np.ndarray, *, num_candidates: int) -> Ground:
    """Private images with others from the same source as candidates.

    Args:
      truth: `inputs [T, B, H, W, C]`, `labels [T, B]`.
      images: `[M, H, W, C]`, the first `T x B` of which are the private ones, in order.
      labels: `[M]`.
      num_candidates: how many to compare with, the private ones included; fewer if there are no more.

    Raises:
      ValueError: if `images` do not begin with the private ones.
    """
    targets, size = truth.labels.shape
    num_private = targets * size
    if len(images) < num_private or not np.array_equal(
        images[:num_private], truth.inputs.reshape(-1, *images.shape[1:])
    ):
        raise ValueError(f"the first {num_private} candidates must be the private images, in their order")
    total = max(num_candidates, num_private)
    pool = Images(np.asarray(images[:total], np.float32), np.asarray(labels[:total]))
    return Ground(Images(*map(np.asarray, truth)), pool, np.arange(num_private).reshape(targets, size))


def score(found: np.ndarray, used_labels: np.ndarray | None, ground: Ground, *, with_lpips: bool = False) -> Scores:
    """Scores reconstructions of all clients.

    Args:
      found: `[T, B, H, W, C]`, each batch in any order.
      used_labels: `[T, B]` classes that the reconstructions were made for, if any.
      ground: what they are compared with.
      with_lpips: whether to measure LPIPS, too.

    Raises:
      ValueError: as `perceptual.lpips`.
    """
    found = np.asarray(found, np.float32)
    quality = jax.tree.map(lambda *leaves: np.stack(leaves), *map(metrics.evaluate, found, ground.truth.inputs))
    matched = np.take_along_axis(found, quality.permutation[:, :, None, None, None], axis=1)
    lpips = None
    if with_lpips:
        flat = (images.reshape(-1, *images.shape[2:]) for images in (matched, ground.truth.inputs))
        lpips = perceptual.lpips(*flat).reshape(ground.private.shape)
    return Scores(
        quality.psnr_db,
        quality.ssim,
        quality.mse,
        np.stack([identified(one, ground.candidates.inputs, own) for one, own in zip(found, ground.private)]),
        _identified_in_class(found, used_labels, ground),
        matched,
        lpips,
    )


def _identified_in_class(found: np.ndarray, used_labels: np.ndarray | None, ground: Ground) -> np.ndarray:
    """As `identified`, class by class, for images with others of their class among the candidates."""
    chosen = np.full(ground.private.shape, np.nan)
    if used_labels is None:
        return chosen
    for t, true_labels in enumerate(ground.truth.labels):
        for label in np.unique(true_labels):
            own, rivals = true_labels == label, np.flatnonzero(ground.candidates.labels == label)
            if len(rivals) <= own.sum():
                continue
            made_for = found[t][used_labels[t] == label][: len(rivals)]
            private = np.searchsorted(rivals, ground.private[t][own])
            chosen[t][own] = identified(made_for, ground.candidates.inputs[rivals], private) if len(made_for) else 0
    return chosen
