"""Tests whether patches of known images are in a Vision Transformer's training batch, by the span check (`span`).

The inputs of the patch embedding layer are all patches of the batch, so the columns of its gradient are combinations
of them. An image with all patches in their span is in the batch; an image with some patches in common, such as sky,
matches in part. Labels, positions and batch size are arbitrary, but the batch must have fewer patches than the layer
has units and than a patch has pixels times channels: large patches, few images.
"""

import jax.numpy as jnp

from jaxinvert.attacks.closed_form import span as spans
from jaxinvert.attacks.closed_form.april import VIT, Layout
from jaxinvert.attacks.closed_form.certificate import Status
from jaxinvert.attacks.closed_form.precision import in_float64
from jaxinvert.models.vit import to_patches
from jaxinvert.priors.parametrizations import per_channel
from jaxinvert.trees import leaves_by_path
from jaxinvert.types import Array, PerChannel, Update


def known_patches(
    update: Update,
    images: Array,
    *,
    layout: Layout = VIT,
    mean: PerChannel = 0.0,
    std: PerChannel = 1.0,
) -> tuple[Array, Array]:
    """Looks for the patches of images in an update.

    Works: for few images with large patches; labels, positions and batch size do not matter.

    Fails: where the batch has more patches than the layer has units, or than a patch has values.

    Args:
      update: of one client, FedSGD.
      images: `[N, H, W, C]` candidates in [0, 1].
      layout: of the update.
      mean: scalar or `[C]`, the normalization that the model applies first.
      std: scalar or `[C]`.

    Returns:
      Whether each patch is in the batch, `[N, n]` bool, in rows from the upper left; and `[]` int32, a
      `certificate.Status`: `NOT_FINITE`, `ZERO`, `SPAN_FULL` if the gradient's rank is as high as its shape allows,
      less one (behind a norm, gradients sum to zero), with all of which nothing is found, or else `CERTIFIED`.

    Raises:
      ValueError: if the update has no such layer, or it reads no patches of such images.
    """
    normalized = (images - per_channel("mean", mean, images.shape)) / per_channel("std", std, images.shape)
    gradient = spans.read_gradient(leaves_by_path(update), [layout.patches])
    num_numbers, channels = len(gradient) - 1, images.shape[-1]
    side = round((num_numbers // channels) ** 0.5)
    if side**2 * channels != num_numbers or any(size % side for size in images.shape[1:3]):
        raise ValueError(f"{layout.patches} has {num_numbers} inputs, which is no patch of images {images.shape}")
    limits = spans.tolerances(float(jnp.finfo(gradient.dtype).eps))

    def exact(gradient: Array, patches: Array) -> tuple[Array, Array]:
        span = spans.column_span(gradient, tolerance=limits.rank)
        inside = spans.distances(span, patches) <= limits.distance
        status = spans.doubt(span, span.rank >= min(gradient.shape) - 1)
        return inside & (status == Status.CERTIFIED), status

    return in_float64(exact)(gradient, to_patches(normalized, side))
