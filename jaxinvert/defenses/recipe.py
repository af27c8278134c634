"""What a defense is built for and from."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

from jaxinvert.clients import dp_fedsgd, fedsgd
from jaxinvert.defenses.noise import dp_noise_scale
from jaxinvert.models import Model, training_loss
from jaxinvert.types import ClientUpdateFn, Scalar

Numbers = Mapping[str, Scalar]
"""Strengths by name."""


class Setting(NamedTuple):
    """What a defense is built for.

    Attributes:
      model: the client's network.
      num_examples: `B`, behind one update.
      gradient_chunk: examples whose gradient is computed at once.
      train: `(loss_fn, *, dropout_key=None, change=None) -> client_update`, as `clients.fedsgd`: how the client
        trains, for defenses that take part in it.
    """

    model: Model
    num_examples: int
    gradient_chunk: int | None = None
    train: Callable[..., ClientUpdateFn] = fedsgd


def per_example_clipping(setting: Setting, numbers: Numbers) -> ClientUpdateFn:
    """A client of one gradient that clips those of single examples to the number `norm`."""
    loss_fn = training_loss(setting.model)
    return dp_fedsgd(loss_fn, clip_norm=numbers["norm"], chunk_size=setting.gradient_chunk)


def dp_scale(setting: Setting, numbers: Numbers) -> Scalar:
    """Standard deviation of the noise of DP-SGD on the mean gradient."""
    return dp_noise_scale(numbers["multiplier"], numbers["norm"], setting.num_examples)
