"""Scores that compare reconstructions with the truth, image by image, for attacks and controls alike."""

from typing import NamedTuple

import jax
import numpy as np

from jaxinvert import metrics, models
from jaxinvert.audit import retrieval
from jaxinvert.audit.measures import IMAGES, Measure
from jaxinvert.metrics import perceptual
from jaxinvert.types import Batch


class Images(NamedTuple):
    """Images with their classes, as NumPy arrays: `inputs [..., H, W, C]` in [0, 1] and `labels [...]`."""

    inputs: np.ndarray
    labels: np.ndarray


class Ground(NamedTuple):
    """Truth and candidates, which only the audit knows.

    Attributes:
      truth: private batches, `inputs [T, B, H, W, C]` in [0, 1], `labels [T, B]`.
      candidates: private images and others of the same kind, `inputs [N, H, W, C]`, `labels [N]`.
      private: `[T, B]` index of each private image among the candidates.
      pool: the candidates, prepared for `score`; by default prepared in every call.
      of_classes: whether labels are classes; else they are numbers of distinct labels, and an attack that knows
        labels knows the true ones.
    """

    truth: Images
    candidates: Images
    private: np.ndarray
    pool: retrieval.Pool | None = None
    of_classes: bool = True

    @property
    def labels(self) -> np.ndarray:
        """`[N]`: classes of the candidates."""
        return self.candidates.labels

    @property
    def same(self) -> np.ndarray:
        """`[N]`, see `retrieval.Pool`."""
        return (self.pool or retrieval.pool(self.candidates.inputs)).same

    @property
    def measure(self) -> Measure:
        """What is measured."""
        return IMAGES


class Scores(NamedTuple):
    """Scores of reconstructions, `[T, B]` each, in the order of the true images if not stated otherwise.

    Attributes:
      psnr_db: PSNR in dB, 0 ... 120.
      ssim: SSIM, -1 ... 1.
      mse: mean squared error, 0 ... 1.
      identified: whether the image, or a copy of it, is picked among all candidates.
      identified_in_class: 1 or 0, whether it is picked among candidates of its class; NaN if the class has no other
        candidates, or the reconstructions have no labels.
      matched: `[T, B, H, W, C]` the reconstructions, one-to-one in the order of the true images.
      lpips: LPIPS, at least 0, lower means more similar; `None` unless requested.
      picked: candidates picked among all, in the order of the reconstructions, `retrieval.NOBODY` for none; `None` if
        nothing was compared.
      picked_in_class: `picked` among candidates of each reconstruction's label; `None` without labels.
      recognized: `identified` by the lowest LPIPS instead of the highest correlation; `None` unless requested.
    """

    psnr_db: np.ndarray
    ssim: np.ndarray
    mse: np.ndarray
    identified: np.ndarray
    identified_in_class: np.ndarray
    matched: np.ndarray
    lpips: np.ndarray | None = None
    picked: np.ndarray | None = None
    picked_in_class: np.ndarray | None = None
    recognized: np.ndarray | None = None

    @property
    def by_client(self) -> np.ndarray:
        """`[T]`: mean PSNR in dB."""
        return self.psnr_db.mean(axis=1)

    @property
    def second_by_client(self) -> np.ndarray:
        """`[T]`: mean SSIM."""
        return self.ssim.mean(axis=1)


def ground_truth(truth: Batch, images: np.ndarray, labels: np.ndarray, *, num_candidates: int) -> Ground:
    """Truth and candidates: the private images and others from the same source.

    Args:
      truth: private batches, `inputs [T, B, H, W, C]`, `labels [T, B]`.
      images: `[M, H, W, C]`, of which the first `T x B` are the private images, in order.
      labels: `[M]` their classes.
      num_candidates: number of candidates, including the private images; fewer if `images` has fewer.

    Raises:
      ValueError: if `images` do not begin with the private ones.
    """
    targets, size = truth.labels.shape[:2]
    ids = models.label_ids(labels)
    num_private = targets * size
    if len(images) < num_private or not np.array_equal(
        images[:num_private], truth.inputs.reshape(-1, *images.shape[1:])
    ):
        raise ValueError(f"the first {num_private} candidates must be the private images, in their order")
    total = max(num_candidates, num_private)
    candidates = Images(np.asarray(images[:total], np.float32), ids[:total])
    private = np.arange(num_private).reshape(targets, size)
    of_classes = truth.labels.ndim == 2 and bool(np.issubdtype(truth.labels.dtype, np.integer))
    own = np.asarray(truth.labels) if of_classes else ids[:num_private].reshape(targets, size)
    pool = retrieval.pool(candidates.inputs)
    return Ground(Images(np.asarray(truth.inputs), own), candidates, private, pool, of_classes)


def score(found: np.ndarray, used_labels: np.ndarray | None, ground: Ground, *, with_lpips: bool = False) -> Scores:
    """Scores the reconstructions of all clients.

    Args:
      found: `[T, B, H, W, C]` reconstructions, each batch in any order.
      used_labels: `[T, B]` labels that the attack used, if any.
      ground: truth and candidates.
      with_lpips: whether to measure LPIPS, and to pick by the LPIPS of every reconstruction and candidate, too.

    Raises:
      ValueError: see `perceptual.lpips`.
    """
    found = np.asarray(found, np.float32)
    if used_labels is not None and not ground.of_classes:
        used_labels = ground.truth.labels
    quality = jax.tree.map(lambda *leaves: np.stack(leaves), *map(metrics.evaluate, found, ground.truth.inputs))
    matched = np.take_along_axis(found, quality.permutation[:, :, None, None, None], axis=1)
    pool = ground.pool or retrieval.pool(ground.candidates.inputs)
    lpips = recognized = None
    if with_lpips:
        flat = (images.reshape(-1, *images.shape[2:]) for images in (matched, ground.truth.inputs))
        lpips = perceptual.lpips(*flat).reshape(ground.private.shape)
        closeness = (_closeness(one, ground.candidates.inputs) for one in found)
        recognized = retrieval.identified_by(np.stack([*map(retrieval.pick, closeness)]), ground.private, pool.same)
    picked = np.full(ground.private.shape, retrieval.NOBODY)
    in_class = None if used_labels is None else picked.copy()
    for t, correlation in enumerate(retrieval.correlations(found, pool)):
        picked[t] = retrieval.pick(correlation)
        if in_class is not None and used_labels is not None:
            in_class[t] = pick_in_class(correlation, used_labels[t], ground.candidates.labels)
    return Scores(
        quality.psnr_db,
        quality.ssim,
        quality.mse,
        retrieval.identified_by(picked, ground.private, pool.same),
        _identified_in_class(in_class, ground, pool),
        matched,
        lpips,
        picked,
        in_class,
        recognized,
    )


def _closeness(found: np.ndarray, candidates: np.ndarray) -> np.ndarray:
    """`[B, N]`, higher for a lower LPIPS; rows of zeros for reconstructions that are not finite."""
    finite = np.all(np.isfinite(found), axis=(1, 2, 3))
    return np.where(finite[:, None], 1 / (1 + perceptual.lpips_to_all(found, candidates)), 0.0)


def pick_in_class(correlation: np.ndarray, used_labels: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """`[B]`: candidates picked by the reconstructions of each class among the candidates of that class.

    Args:
      correlation: `[B, N]`, see `retrieval.pick`.
      used_labels: `[B]` classes of the reconstructions.
      labels: `[N]` classes of the candidates.
    """
    chosen = np.full(len(used_labels), retrieval.NOBODY)
    for label in np.unique(used_labels):
        made_for, members = used_labels == label, np.flatnonzero(labels == label)
        if len(members):
            chosen[made_for] = retrieval.pick(correlation[made_for], members)
    return chosen


def _identified_in_class(picked: np.ndarray | None, ground: Ground, pool: retrieval.Pool) -> np.ndarray:
    """`[T, B]`: 1 or 0, whether images are identified in their class; NaN if it has no other candidates."""
    if picked is None:
        return np.full(ground.private.shape, np.nan)
    labels = ground.truth.labels
    own = (labels[:, :, None] == labels[:, None, :]).sum(axis=2)
    members = (labels[:, :, None] == ground.candidates.labels).sum(axis=2)
    return np.where(own < members, retrieval.identified_by(picked, ground.private, pool.same), np.nan)
