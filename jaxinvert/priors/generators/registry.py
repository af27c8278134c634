"""Generators by name, and their files: safetensors whose facts say which network it is.

A file from outside is checked before a tensor is read, as `models.load_checkpoint` does, and its images must fit the
model that is attacked.
"""

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
from jaxinvert.types import Shape

REGISTRY: dict[str, Callable[..., Generator]] = {
    "pyramid": lambda **options: pyramid(**options).generator,
    "convolutional": convolutional,
    "style": style,
}
"""Name -> factory with keyword arguments `output_shape` and sizes of its own."""

DEFAULT = Path(__file__).parent / "photos-32.safetensors"
"""The generator that comes with the package; beside it stands what it was trained on."""


def save_prior(path: Path, prior: Prior, *, options: Mapping[str, int], facts: Mapping[str, Any]) -> None:
    """Writes a trained generator, in float16: a prior needs no more.

    Args:
      path: such as `photos-32.safetensors`.
      prior: generator and parameters.
      options: the sizes that its factory was given beside `output_shape`.
      facts: what else to keep, such as the data's name.

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
      path: from `save_prior`; by default the one that comes with the package.
      input_shape: `(H, W, C)` that its images must have.

    Raises:
      FileNotFoundError: if there is no such file.
      ValueError: if it is no whole safetensors file, is no generator's, lacks a weight or has one of a wrong shape;
        or if its images do not have `input_shape`.
    """
    path = DEFAULT if path is None else Path(path)
    facts = read_facts(path)
    name, shape, options = (facts.get(field) for field in ("generator", "output_shape", "options"))
    if not isinstance(name, str):
        raise ValueError(f"{path} holds no generator: python -m experiments.train_generator writes such files")
    if name not in REGISTRY:
        raise unknown_value("generator", name, REGISTRY)
    if not isinstance(shape, list) or not isinstance(options, dict) or not _are_sizes([*shape, *options.values()]):
        raise ValueError(f"{path} is damaged: its output_shape is {shape!r} and its options are {options!r}")
    try:
        generator = REGISTRY[name](output_shape=tuple(shape), **options)
        like = jax.eval_shape(generator.init, jax.random.key(0))
    except TypeError as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    if input_shape is not None:
        check_fits(generator, input_shape)
    return Prior(generator, load_checkpoint(path, like))


def _are_sizes(numbers: list[Any]) -> bool:
    return len(numbers) >= 3 and all(type(number) is int and 0 < number <= _LARGEST for number in numbers)


_LARGEST = 4096
"""No size in a file makes a network that would not fit in memory before its weights are looked at."""
