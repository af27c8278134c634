"""`Problem`: the client, model and batch size that an attack is built for. `declare`: an attack's requirements.

Every attack is a function `attack(problem, *, its hyperparameters)`. It returns an iterative `Attack`, or a `SolveFn`
that solves in closed form. Hyperparameters are the keyword arguments annotated as `Scalar`; they may be traced.
`horizon`, if present, is the number of steps over which the learning rate decays.
"""

import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TypeVar, cast

import jax

from jaxinvert.models import BATCH_NORM_MOMENTUM, Model
from jaxinvert.models.text_transformer import TextModel
from jaxinvert.nn import at_full_precision
from jaxinvert.priors import parametrizations
from jaxinvert.priors.generators import Prior
from jaxinvert.schema import Schema
from jaxinvert.types import (
    Array,
    ArrayTree,
    Attack,
    Batch,
    ClientUpdateFn,
    Objective,
    Parametrization,
    Params,
    Scalar,
    SolveFn,
)


class Problem(NamedTuple):
    """Everything the attacker knows before it sees an update; an attack is built from it.

    Attributes:
      client_update: the attacker's simulation of the client.
      model: the client's network.
      num_examples: `B`, the number of examples in the client's batch.
      joint_labels: whether an attack that reads labels optimizes them jointly with the images instead.
      sent_statistics: `(params, batch) -> running statistics`, the attacker's simulation of the statistics that a
        client with BatchNorm in train mode sends with its update; `None` if it sends none.
      momentum: of these running statistics, the share of the old value (Flax's convention).
      gradient_chunk: examples per gradient computation, for attacks that simulate a gradient instead of the client.
      objective: distance between updates for an attacker who adapts to a defense; `None` for the attack's own.
      one_epoch: the attacker's simulation of one pass of local training, for attacks that give every pass its own
        images; `None` if the client trains for one pass.
      num_epochs: passes of the client over its examples.
      prior: the attacker's image generator, for attacks that use one.
      schema: the columns of a record, for attacks on tabular data.
    """

    client_update: ClientUpdateFn
    model: Model
    num_examples: int
    joint_labels: bool = False
    sent_statistics: Callable[[Params, Batch], ArrayTree] | None = None
    momentum: Scalar = BATCH_NORM_MOMENTUM
    gradient_chunk: int | None = None
    objective: Objective | None = None
    one_epoch: ClientUpdateFn | None = None
    num_epochs: int = 1
    prior: Prior | None = None
    schema: Schema | None = None

    @property
    def batch_shape(self) -> tuple[int, int, int, int]:
        """`(B, H, W, C)`."""
        return (self.num_examples, *self.model.input_shape)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """`(H, W, C)`."""
        return self.model.input_shape

    @property
    def mean_image(self) -> Array:
        """`[1, 1, 1, C]`, the mean that the model subtracts from its inputs."""
        return parametrizations.per_channel("mean", self.model.mean, self.batch_shape)

    @property
    def std_image(self) -> Array:
        """`[1, 1, 1, C]`, the standard deviation that the model divides its inputs by."""
        return parametrizations.per_channel("std", self.model.std, self.batch_shape)

    def pixels(self, start_images: Array | None = None) -> Parametrization:
        """Pixels in units of the model's standard deviation, with bounds that correspond to [0, 1].

        Args:
          start_images: initial images, `[H, W, C]` or `[B, H, W, C]` in [0, 1]; by default normal noise.
        """
        mean, std = self.model.mean, self.model.std
        images = parametrizations.pixels(self.batch_shape, mean=mean, std=std)
        if start_images is None:
            return images
        return parametrizations.start_at(images, start_images, batch_shape=self.batch_shape, mean=mean, std=std)

    def with_soft_labels(
        self, images: Parametrization, *, squash: Callable[[Array], Array] = jax.nn.softmax
    ) -> Parametrization:
        """The parametrization of images with soft labels `[B, K]` added; they start at `squash` of `N(0, 1)`."""
        return parametrizations.with_soft_labels(
            images, batch_size=self.num_examples, num_classes=self.model.num_classes, squash=squash
        )


class TextProblem(NamedTuple):
    """Everything an attacker on text knows before it sees an update; an attack is built from it.

    Attributes:
      client_update: the attacker's simulation of the client.
      model: the client's transformer.
      num_sequences: `B`, the number of sequences in the client's batch.
      bigrams: `[V, V]` log-probabilities of a token after another, from public text; `None` if the attacker has none.
    """

    client_update: ClientUpdateFn
    model: TextModel
    num_sequences: int
    bigrams: Array | None = None

    @property
    def num_examples(self) -> int:
        """`B`, under the name used by attacks on images."""
        return self.num_sequences


class Traits(NamedTuple):
    """Declared requirements and abilities of an attack.

    Attributes:
      reads: the fields of an observation that it needs in addition to `params`, `update` and `num_examples`.
      joint_labels: whether it can optimize labels instead of reading them, see `Problem.joint_labels`.
      simulates: whether it simulates the client's whole training, which it must know if there are several steps.
      every_round: whether it uses earlier rounds if the attacker observed them.
      adapts: whether it uses `Problem.objective`, which is required for adapting to a defense.
      generates: whether it needs `Problem.prior`.
      restores_labels: whether it restores labels by a rule that assumes updates to be sums of equally weighted
        gradients.
      any_loss: whether it needs no labels and works for any loss; attacks that read labels do anyway.
      reports: keys of `Reconstruction.info` that are kept in the record of every target.
      reconstructs: what a client holds: attacks on images are registered by name, those on records and text are not.
    """

    reads: tuple[str, ...] = ()
    joint_labels: bool = False
    simulates: bool = True
    every_round: bool = False
    adapts: bool = False
    generates: bool = False
    restores_labels: bool = False
    any_loss: bool = False
    reports: tuple[str, ...] = ()
    reconstructs: Literal["images", "records", "text"] = "images"


AttackFn = Callable[..., Attack | SolveFn]
"""`(problem, *, hyperparameters) -> Attack`, or `-> SolveFn` for a closed form."""

_AnyAttackFn = TypeVar("_AnyAttackFn", bound=AttackFn)


def declare(*reads: str, **traits: Any) -> Callable[[_AnyAttackFn], _AnyAttackFn]:
    """A decorator that attaches `Traits` to an attack; `traits_of` reads them.

    What the attack returns computes matrix products and convolutions in full float32 on every device, unless the
    caller chooses by `jax.default_matmul_precision`.

    Args:
      *reads: see `Traits`.
      **traits: the other fields of `Traits`.

    >>> @declare("labels", joint_labels=True)
    ... def my_attack(problem: Problem): ...
    >>> traits_of(my_attack).reads
    ('labels',)
    """
    declared = Traits(reads, **traits)

    def attach(attack: _AnyAttackFn) -> _AnyAttackFn:
        @functools.wraps(attack)
        def precise(*args: Any, **kwargs: Any) -> Attack | SolveFn:
            built = attack(*args, **kwargs)
            if not isinstance(built, Attack):
                return at_full_precision(built)
            init, step, decode = built
            return Attack(at_full_precision(init), at_full_precision(step), at_full_precision(decode))

        precise.traits = declared  # type: ignore[attr-defined]
        return cast(_AnyAttackFn, precise)

    return attach


def traits_of(attack: AttackFn) -> Traits:
    """The traits that `declare` attached to an attack or to the function of a `functools.partial`, or `Traits()`."""
    return getattr(getattr(attack, "func", attack), "traits", Traits())


def is_declared(function: object) -> bool:
    """Whether `declare` made a function an attack."""
    return isinstance(getattr(function, "traits", None), Traits)


def require_single_example(problem: Problem, *, attack: str) -> None:
    """Checks that a batch has one example.

    Raises:
      ValueError: naming the attack and the number of examples, if there are more.
    """
    if problem.num_examples != 1:
        raise ValueError(f"{attack} inverts updates of one example; this problem has {problem.num_examples}")
