"""What the rest of jaxinvert knows of a generator: latents in, images out."""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax

from jaxinvert.types import Array, Key, Params, Shape

Latents = tuple[Array, ...]
"""Standard normal under the prior, from the coarsest to the finest; each `[B, ...]`."""


class Generator(NamedTuple):
    """A map from standard normal latents to images, as two pure functions.

    Attributes:
      name: as in the registry.
      output_shape: `(H, W, C)` of the images it makes.
      latent_shapes: of one image's latents, from the coarsest to the finest; each is moved with a rate of its own.
      init: `key -> params`, untrained.
      apply: `(params, latents) -> images [B, H, W, C]`; pixels, close to [0, 1] but not clipped.
    """

    name: str
    output_shape: tuple[int, int, int]
    latent_shapes: tuple[tuple[int, ...], ...]
    init: Callable[[Key], Params]
    apply: Callable[[Params, Latents], Array]

    @property
    def num_latents(self) -> int:
        """Numbers in the latents of one image."""
        return sum(math.prod(shape) for shape in self.latent_shapes)


class Prior(NamedTuple):
    """A generator with parameters: all that an attacker brings along."""

    generator: Generator
    params: Params


def draw_latents(key: Key, generator: Generator, batch_size: int) -> Latents:
    """Latents of `B` images from the prior, `N(0, 1)`."""
    keys = jax.random.split(key, len(generator.latent_shapes))
    return tuple(jax.random.normal(k, (batch_size, *shape)) for k, shape in zip(keys, generator.latent_shapes))


def halved(output_shape: Shape, *, at_least: int = 0) -> tuple[int, tuple[int, int]]:
    """How often the sides of an image can be halved, and what remains: 4 ... 7 pixels, the longer side more.

    Args:
      output_shape: `(H, W, C)`.
      at_least: so often.

    Raises:
      ValueError: for sides that do not halve evenly so far.
    """
    height, width, _ = (int(size) for size in output_shape)
    times = int(math.log2(max(min(height, width), 4) / 4))
    if min(height, width) < 4 or times < at_least or height % 2**times or width % 2**times:
        raise ValueError(f"output_shape is {tuple(output_shape)}, expected sides that halve to 4 ... 7 pixels evenly")
    return times, (height >> times, width >> times)


def check_fits(generator: Generator, input_shape: Shape) -> None:
    """Refuses a generator whose images a model cannot read.

    Args:
      generator: of the attacker.
      input_shape: `(H, W, C)` of the model.

    Raises:
      ValueError: naming both shapes.
    """
    if tuple(generator.output_shape) != tuple(input_shape):
        raise ValueError(
            f"generator {generator.name!r} makes images of shape {tuple(generator.output_shape)}, but the model "
            f"reads {tuple(input_shape)}: train one of that shape, python -m experiments.train_generator"
        )
