"""A bound on the norm of the whole update: `g min(1, C / |g|)`.

The direction stays, and a cosine sees nothing else: alone, clipping protects from nothing but attacks that rely on
the scale. Clipping every *example* before the mean, as DP-SGD does, is the client's affair (`clients.dp_fedsgd`).
"""

from jaxinvert.clients import clipped_to_norm
from jaxinvert.types import Defense, Key, Scalar, Update


def clipped(norm: Scalar) -> Defense:
    """Scales the update down to `norm` where it is longer.

    Args:
      norm: largest Euclidean norm over all tensors, positive; `inf` changes nothing. May be traced.
    """

    def defend(key: Key | None, update: Update) -> Update:
        del key
        return clipped_to_norm(update, norm)

    return defend
