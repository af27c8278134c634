"""Clipping of the whole update to a maximal norm: `g min(1, C / |g|)`.

The direction is unchanged, and a cosine objective depends on nothing else: clipping alone protects only against
attacks that use the scale. Clipping every *example* before the mean, as DP-SGD does, is part of the client
(`clients.dp_fedsgd`).
"""

from jaxinvert.clients import clipped_to_norm
from jaxinvert.types import Defense, Key, Scalar, Update


def clipped(norm: Scalar) -> Defense:
    """Scales the update down to `norm` if it is longer.

    Args:
      norm: largest Euclidean norm over all tensors, positive; `inf` changes nothing. May be traced.
    """

    def defend(key: Key | None, update: Update) -> Update:
        del key
        return clipped_to_norm(update, norm)

    return defend
