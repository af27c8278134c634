"""Which patches of known images a Vision Transformer was trained on: `span`'s check on its layer of patches.

The layer that makes tokens reads every patch of the batch, so its gradient's columns combine the batch's patches. An
image whose every patch lies in their span is in the batch; one that shares its sky shows as much. It asks for neither
labels nor positions nor a batch of one, but for fewer patches in the batch than the layer has units, and than a patch
has numbers: large patches, few images.
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
        raise ValueError(f"{layout.patches} reads {num_numbers} numbers: no patch of images {images.shape}")
    limits = spans.tolerances(float(jnp.finfo(gradient.dtype).eps))

    def exact(gradient: Array, patches: Array) -> tuple[Array, Array]:
        span = spans.column_span(gradient, tolerance=limits.rank)
        inside = spans.distances(span, patches) <= limits.distance
        status = spans.doubt(span, span.rank >= min(gradient.shape) - 1)
        return inside & (status == Status.CERTIFIED), status

    return in_float64(exact)(gradient, to_patches(normalized, side))
