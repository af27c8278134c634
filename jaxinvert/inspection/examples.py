"""Examples on which a network is tried: the client's own, or natural images in the network's form."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxinvert import data
from jaxinvert.types import Array, Batch

NUM_EXAMPLES = 64
"""Number of examples for which the limits of the checks are set."""


def natural_images(input_shape: tuple[int, int, int], *, count: int = NUM_EXAMPLES) -> Array:
    """Tiles of the embedded photos, `[count, H, W, C]` in [0, 1], resized; uniform noise if inputs are no images.

    Gray images are the mean over the channels; images of other numbers of channels repeat it. Inputs of one pixel,
    such as records of a table, are uniform noise.
    """
    height, width, channels = input_shape
    if height == 1 or width == 1:
        return jax.random.uniform(jax.random.key(0), (count, *input_shape))
    tiles = data.load("photos", split="train").images
    chosen = tiles[np.linspace(0, len(tiles) - 1, count).astype(int)]
    if channels != chosen.shape[-1]:
        chosen = np.repeat(chosen.mean(axis=-1, keepdims=True), channels, axis=-1)
    resized = jax.image.resize(jnp.asarray(chosen), (count, height, width, channels), "linear")
    return jnp.clip(resized, 0.0, 1.0)


def with_labels_in_turn(inputs: Array, num_classes: int) -> Batch:
    """The examples with labels 0, 1, ... in turn: of an honest network most are wrong, and so have a gradient."""
    return Batch(inputs, jnp.arange(len(inputs)) % max(num_classes, 2))
