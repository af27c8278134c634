"""What a defense is built for (`ClientFacts`), and what the registry knows of it (`Recipe`)."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from jaxinvert.clients import dp_fedsgd, fedsgd
from jaxinvert.defenses.composition import identity
from jaxinvert.defenses.noise import dp_noise_scale
from jaxinvert.models import Model
from jaxinvert.types import ClientUpdateFn, Defense, Key, Params, Scalar

Parameters = Mapping[str, Scalar]
"""A defense's parameters by name; all may be traced."""


class Parameter(NamedTuple):
    """A parameter of a defense: its default, and the most it can be; it is always positive."""

    default: float
    most: float = float(np.finfo(np.float32).max)


class ClientFacts(NamedTuple):
    """The client that a defense is built for.

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


ProtectFn = Callable[[ClientFacts, Parameters, Key | None, ClientUpdateFn], ClientUpdateFn]
"""`(facts, parameters, key, client_update) -> client_update`."""


def _same_update(facts: ClientFacts, parameters: Parameters, params: Params) -> Defense:
    del facts, parameters, params
    return identity


class Recipe(NamedTuple):
    """A defense as the registry knows it.

    Attributes:
      summary: one line for people.
      parameters: its parameters; all may be traced. An attacker that adapts must know them.
      client: what happens before there is an update; `None` if nothing does. The key may be `None` unless
        `draws_first`.
      update: `(facts, parameters, params) -> defense`, what happens to the update.
      extend: `model -> model`, what the server adds to the network; `None` if nothing.
      draws_first: whether `client` draws random numbers.
      single_examples: whether it looks at examples one by one.
      least_examples: behind an update for it to do anything.
      one_step: whether it is defined for a client that sends one gradient only.
      no_epsilon: why it is not differentially private; empty for a defense that is.
    """

    summary: str
    parameters: Mapping[str, Parameter]
    client: ProtectFn | None = None
    update: Callable[[ClientFacts, Parameters, Params], Defense] = _same_update
    extend: Callable[[Model], Model] | None = None
    draws_first: bool = False
    single_examples: bool = False
    least_examples: int = 1
    one_step: bool = False
    no_epsilon: str = ""

    @property
    def changes_client(self) -> bool:
        """Whether it acts before there is an update; such a defense comes first."""
        return self.client is not None

    @property
    def changes_model(self) -> bool:
        """Whether the network is another one with it."""
        return self.extend is not None


def per_example_clipping(facts: ClientFacts, parameters: Parameters) -> ClientUpdateFn:
    """A client of one gradient that clips those of single examples to the parameter `norm`."""
    return dp_fedsgd(facts.model.loss, clip_norm=parameters["norm"], chunk_size=facts.gradient_chunk)


def dp_scale(facts: ClientFacts, parameters: Parameters) -> Scalar:
    """Standard deviation of the noise of DP-SGD on the mean gradient."""
    return dp_noise_scale(parameters["multiplier"], parameters["norm"], facts.num_examples)
