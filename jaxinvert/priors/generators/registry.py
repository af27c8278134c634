"""Registry of generators by name; saves and loads them as safetensors files whose metadata names the network.

An untrusted file is checked before a tensor is read, see `models.load_checkpoint`. The generator's images must fit
the attacked model.
"""

import reprlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from jaxinvert.models.checkpoints import load_checkpoint, read_facts, save_checkpoint
from jaxinvert.models.layers import unknown_value
from jaxinvert.priors.generators.convolutional import convolutional
from jaxinvert.priors.generators.generator import Generator, Prior, check_fits
from jaxinvert.priors.generators.pyramid import pyramid
from jaxinvert.priors.generators.style import style
from jaxinvert.readers.json_files import printable
from jaxinvert.types import Shape

REGISTRY: dict[str, Callable[..., Generator]] = {
    "pyramid": lambda **options: pyramid(**options).generator,
    "convolutional": convolutional,
    "style": style,
}
"""Name -> factory with keyword argument `output_shape` and further sizes."""

DEFAULT = Path(__file__).parent / "photos-32.safetensors"
"""The generator shipped with the package; the file LICENSES beside it lists its training data."""


def save_prior(path: Path, prior: Prior, *, options: Mapping[str, int], facts: Mapping[str, Any]) -> None:
    """Writes a trained generator in float16, which is precise enough for a prior.

    Args:
      path: such as `photos-32.safetensors`.
      prior: generator and parameters.
      options: arguments of its factory other than `output_shape`.
      facts: further metadata, such as the name of the training data.

    Raises:
      ValueError: for parameters beyond float16's range.
    """
    stored = jax.tree.map(lambda leaf: leaf.astype(jnp.float16), prior.params)
    if not all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in jax.tree.leaves(stored)):
        raise ValueError("the generator's parameters exceed the range of float16")
    generator = prior.generator
    known = {"generator": generator.name, "output_shape": generator.output_shape, "options": dict(options)}
    save_checkpoint(path, stored, {**facts, **known})


def load_prior(path: Path | None = None, *, input_shape: Shape | None = None) -> Prior:
    """Reads a trained generator.

    Args:
      path: a file written by `save_prior`; by default the generator shipped with the package.
      input_shape: required shape `(H, W, C)` of its images.

    Raises:
      FileNotFoundError: if the file does not exist.
      ValueError: if the file is no complete safetensors file, holds no generator, lacks a weight or has one of the
        wrong shape; or if the images do not have `input_shape`.
    """
    path = DEFAULT if path is None else Path(path)
    facts = read_facts(path)
    name, shape, options = (facts.get(field) for field in ("generator", "output_shape", "options"))
    if not isinstance(name, str):
        raise ValueError(f"{path} holds no generator: python -m experiments.train_generator writes such files")
    if name not in REGISTRY:
        raise unknown_value("generator", printable(name, limit=80), REGISTRY)
    if not isinstance(shape, list) or not isinstance(options, dict) or not _are_sizes(shape, options):
        found = f"its output_shape is {reprlib.repr(shape)} and its options are {reprlib.repr(options)}"
        raise ValueError(f"{path} is damaged: {printable(found)}, expected sizes from 1 to {_LARGEST}")
    try:
        generator = REGISTRY[name](output_shape=tuple(shape), **options)
        like = jax.eval_shape(generator.init, jax.random.key(0))
    except TypeError as error:
        raise ValueError(f"{path} is damaged: {printable(str(error))}") from error
    if input_shape is not None:
        check_fits(generator, input_shape)
    return Prior(generator, load_checkpoint(path, like))


def _are_sizes(shape: list[Any], options: Mapping[str, Any]) -> bool:
    """Whether a shape has three sizes, and all options are sizes, too."""
    numbers = [*shape, *options.values()]
    return len(shape) == 3 and all(type(number) is int and 0 < number <= _LARGEST for number in numbers)


_LARGEST = 4096
"""Limit on the sizes in a file, so that building the network cannot exhaust memory before the weights are checked."""
