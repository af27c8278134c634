"""`Generator`, a map from latents to images, and `Prior`, a generator with parameters."""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax

from jaxinvert.nn import draws
from jaxinvert.types import Array, Key, Params, Shape

Latents = tuple[Array, ...]
"""Standard normal under the prior, from the coarsest to the finest level; each `[B, ...]`."""


class Generator(NamedTuple):
    """A map from standard normal latents to images, as two pure functions.

    Attributes:
      name: name in the registry.
      output_shape: `(H, W, C)` of its images.
      latent_shapes: shapes of one image's latents, from the coarsest to the finest; each has its own learning rate.
      init: `key -> params`, untrained.
      apply: `(params, latents) -> images [B, H, W, C]`; pixels close to [0, 1], not clipped.
    """

    name: str
    output_shape: tuple[int, int, int]
    latent_shapes: tuple[tuple[int, ...], ...]
    init: Callable[[Key], Params]
    apply: Callable[[Params, Latents], Array]

    @property
    def num_latents(self) -> int:
        """Total size of one image's latents."""
        return sum(math.prod(shape) for shape in self.latent_shapes)


class Prior(NamedTuple):
    """A generator with its parameters."""

    generator: Generator
    params: Params


def draw_latents(key: Key, generator: Generator, batch_size: int) -> Latents:
    """Draws latents of `B` images from the prior, `N(0, 1)`."""
    keys = jax.random.split(key, len(generator.latent_shapes))
    return tuple(draws.normal(k, (batch_size, *shape)) for k, shape in zip(keys, generator.latent_shapes))


def halved(output_shape: Shape, *, at_least: int = 0) -> tuple[int, tuple[int, int]]:
    """Number of times an image's sides can be halved until the shorter has 4 ... 7 pixels, and the remaining sides.

    Args:
      output_shape: `(H, W, C)`.
      at_least: minimal number of halvings.

    Raises:
      ValueError: for sides that do not halve evenly.
    """
    height, width, _ = (int(size) for size in output_shape)
    times = int(math.log2(max(min(height, width), 4) / 4))
    if min(height, width) < 4 or times < at_least or height % 2**times or width % 2**times:
        raise ValueError(f"output_shape is {tuple(output_shape)}, expected sides that halve to 4 ... 7 pixels evenly")
    return times, (height >> times, width >> times)


def check_fits(generator: Generator, input_shape: Shape) -> None:
    """Raises ValueError if a generator's images do not fit the model's input shape.

    Args:
      generator: the attacker's generator.
      input_shape: `(H, W, C)` of the model.

    Raises:
      ValueError: naming both shapes.
    """
    if tuple(generator.output_shape) != tuple(input_shape):
        raise ValueError(
            f"generator {generator.name!r} makes images of shape {tuple(generator.output_shape)}, but the model "
            f"reads {tuple(input_shape)}: train one of that shape, python -m experiments.train_generator"
        )
