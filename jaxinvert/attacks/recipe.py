"""What an attack is built for, and what a command line needs to know of it."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from jaxinvert.attacks import objectives
from jaxinvert.models import Model
from jaxinvert.priors.generators import Prior
from jaxinvert.types import ArrayTree, Attack, Batch, ClientUpdateFn, Objective, Params, Scalar, Shape, SolveFn


class Setting(NamedTuple):
    """What an attack is built for.

    Attributes:
      client_update: the attacker's simulation of the client.
      model: the client's network.
      num_examples: `B`.
      joint_labels: whether an attack that reads labels shall optimize them along with the images instead.
      sent_statistics: the attacker's simulation of the running statistics that the client sends, if it does.
      gradient_chunk: examples whose gradient is computed at once, for attacks that simulate a gradient of their own.
      objective: how attacks that adapt to defenses compare updates; those that do use the cosine without one.
      prior: the attacker's generator, for attacks that search with one.
    """

    client_update: ClientUpdateFn
    model: Model
    num_examples: int
    joint_labels: bool = False
    sent_statistics: Callable[[Params, Batch], ArrayTree] | None = None
    gradient_chunk: int | None = None
    objective: Objective = objectives.cosine
    prior: Prior | None = None

    @property
    def images(self) -> dict[str, Any]:
        """Shape and normalization, as all attacks take them."""
        shape: Shape = (self.num_examples, *self.model.input_shape)
        return {"batch_shape": shape, "mean": self.model.mean, "std": self.model.std}

    @property
    def joint_classes(self) -> int | None:
        """`K` if labels are variables."""
        return self.model.num_classes if self.joint_labels else None


class Recipe(NamedTuple):
    """An attack under its name.

    Attributes:
      summary: one line for people.
      hyperparameters: names and defaults of what a user may set; all may be traced.
      needs: the fields of an observation that it reads.
      build: `(setting, hyperparameters, horizon) -> Attack` for an iterative attack, or a closed-form `SolveFn`.
      joint: whether labels may be variables instead of read.
      simulates: whether it simulates the client's whole training, and must know it where there are several steps.
      every_round: whether it looks at earlier rounds, too, where it sees them.
      adapts: whether it takes the objective of the setting, as an attacker who knows of a defense must.
      generates: whether it needs a generator.
    """

    summary: str
    hyperparameters: Mapping[str, float]
    needs: tuple[str, ...]
    build: Callable[[Setting, Mapping[str, Any], Scalar], Attack | SolveFn]
    joint: bool = False
    simulates: bool = True
    every_round: bool = False
    adapts: bool = False
    generates: bool = False
