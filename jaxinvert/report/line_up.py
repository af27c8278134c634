"""The line-up behind a page's headline: which reconstructions show a person what the private image was."""

import numpy as np

from jaxinvert.metrics.recognition import LineUp, line_up

_LEAST_SIDE = 4
_MAX_IMAGES = 2_000


def line_up_of(originals: np.ndarray, rebuilt: np.ndarray) -> LineUp | None:
    """The line-up of uint8 images `[N, H, W, C]`, or `None` if they are too small or too many to compare."""
    if min(originals.shape[1:3]) < _LEAST_SIDE or len(originals) > _MAX_IMAGES:
        return None
    return line_up(rebuilt.astype(np.float32) / 255, originals.astype(np.float32) / 255)
