"""`Recipe`, the registry's description of a defense, and `ClientFacts`, the client that a defense is built for."""

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
    """A parameter of a defense: its default and its maximum; it is always positive."""

    default: float
    most: float = float(np.finfo(np.float32).max)


class ClientFacts(NamedTuple):
    """The client that a defense is built for.

    Attributes:
      model: the client's network.
      num_examples: number of examples `B` in the client's batch.
      gradient_chunk: number of examples per gradient computation.
      train: `(loss_fn, *, dropout_key=None, change=None) -> client_update`, the client's training for defenses that
        modify it; see `clients.fedsgd`.
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
    """The registry's description of a defense.

    Attributes:
      summary: one line for users.
      parameters: its parameters; all may be traced. An adaptive attacker must know them.
      client: transforms the client's computation of the update; `None` if unchanged. The key may be `None` unless
        `draws_first`.
      update: `(facts, parameters, params) -> defense`, the transformation of the update.
      extend: `model -> model`, adds layers to the network; `None` if unchanged.
      draws_first: whether `client` draws random numbers.
      random: whether `update` draws random numbers.
      single_examples: whether it processes examples one by one.
      least_examples: the minimum number of examples for which it has an effect.
      one_step: whether it is defined only for a client that sends one gradient.
      no_epsilon: why it is not differentially private; empty for a defense that is.
    """

    summary: str
    parameters: Mapping[str, Parameter]
    client: ProtectFn | None = None
    update: Callable[[ClientFacts, Parameters, Params], Defense] = _same_update
    extend: Callable[[Model], Model] | None = None
    draws_first: bool = False
    random: bool = False
    single_examples: bool = False
    least_examples: int = 1
    one_step: bool = False
    no_epsilon: str = ""

    @property
    def changes_client(self) -> bool:
        """Whether it changes the computation of the update; such a defense must be first in a chain."""
        return self.client is not None

    @property
    def changes_model(self) -> bool:
        """Whether it changes the network."""
        return self.extend is not None


def per_example_clipping(facts: ClientFacts, parameters: Parameters) -> ClientUpdateFn:
    """A client that sends one gradient, the mean of per-example gradients clipped to the parameter `norm`."""
    return dp_fedsgd(facts.model.loss, clip_norm=parameters["norm"], chunk_size=facts.gradient_chunk)


def dp_scale(facts: ClientFacts, parameters: Parameters) -> Scalar:
    """Standard deviation of DP-SGD's noise on the mean gradient."""
    return dp_noise_scale(parameters["multiplier"], parameters["norm"], facts.num_examples)
