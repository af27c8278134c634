"""The groups of a job's configuration: data, model, client, defense, observation, attacker, search.

Most groups have a `check` method for their own fields; `checks` validates combinations of groups.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import tyro

from jaxinvert import data, labels, models
from jaxinvert.attacks import registry
from jaxinvert.defenses.registry import NONE, Chain, parse
from jaxinvert.jobs.limits import (
    MAX_CHUNK,
    MAX_CLIENTS,
    MAX_EXAMPLES,
    MAX_LOCAL_STEPS,
    MAX_ROUNDS,
    MAX_STEPS,
    MAX_WIDTH,
    at_least,
    between,
    check_model_name,
    positive,
)
from jaxinvert.jobs.yaml_fields import nearest
from jaxinvert.nn import Precision
from jaxinvert.observation.observe import FEDSGD
from jaxinvert.priors import generators
from jaxinvert.types import LocalTraining


@dataclass(frozen=True)
class DataConfig:
    """The clients' private examples.

    Attributes:
      name: name of a data set, a folder of images, or an npz file.
      split: part of the data set with the private images, such as `test` or `test[100:]`.
      size: side length of the images in pixels; by default that of the data set.
      num_examples: number of examples in each client's batch.
      targets: number of updates to attack; their private batches are consecutive examples of the split.
    """

    name: Annotated[str, tyro.conf.arg(name="data")] = "photos"
    split: str = "test"
    size: int | None = None
    num_examples: int = 1
    targets: int = 4

    @property
    def holds_training(self) -> bool:
        """Whether the private images may be images that models are trained on here."""
        return any(part in self.split for part in ("train", "all", *(data.PARTS if self.name == "photos" else ())))

    @property
    def holds_private_tiles(self) -> bool:
        """Whether the private images are from photographs of which there is no public tile."""
        return self.name == "photos" and re.fullmatch(r"private(\[[^]]*\])?", self.split) is not None

    def check(self) -> None:
        """Raises ValueError for a number out of range."""
        between(1, MAX_EXAMPLES, num_examples=self.num_examples, targets=self.targets)
        at_least(1, size=self.size)


@dataclass(frozen=True)
class ModelConfig:
    """The clients' network.

    Attributes:
      name: name of the network, see `jaxinvert list`; or `module:function`, a function that returns your own network;
        importing the module runs its code.
      normalized: whether the network normalizes its inputs by the data set's mean and standard deviation.
      checkpoint: safetensors file with the network's parameters; by default they are randomly initialized.
      batch_norm: whether the clients' BatchNorm layers use running statistics ("eval") or batch statistics ("train").
      dropout: whether the clients' dropout and other random layers are off ("eval"), or draw ("train"); the attacker
        then simulates clients by draws of its own. For your own network.
      head: path of your own network's last dense layer, such as `params/classifier`; by default it is found.
      frozen: layers of the network that the clients do not train, by path or by the library's names.
      personal: layers that the clients train but do not send, such as personal heads.
      lora_rank: rank of low-rank adapters (LoRA), which are then all that the clients train; by default there are
        none and the clients train the network itself.
      lora_layers: dense layers that have adapters, by name ("query" for all of that name) or path.
    """

    name: Annotated[str, tyro.conf.arg(name="model")] = "lenet"
    normalized: bool = True
    checkpoint: Path | None = None
    batch_norm: Literal["eval", "train"] = "eval"
    dropout: Literal["eval", "train"] = "eval"
    head: str | None = None
    frozen: tuple[str, ...] = ()
    personal: tuple[str, ...] = ()
    lora_rank: int | None = None
    lora_layers: tuple[str, ...] = models.LORA_LAYERS

    @property
    def options(self) -> dict[str, Any]:
        """Options of the network's factory; without those at their defaults, which a factory may not have."""
        return {
            item.name: value
            for item in fields(self)
            if item.name in ("batch_norm", "dropout", "head") and (value := getattr(self, item.name)) != item.default
        }

    def with_roles(self, model: models.Model) -> models.Model:
        """The network with its adapters, and the layers that clients do not train or do not send."""
        if self.lora_rank is not None:
            model = models.with_lora(model, self.lora_rank, layers=self.lora_layers)
        return models.with_personal(models.with_frozen(model, self.frozen), self.personal)

    def check(self) -> None:
        """Raises ValueError for a rank, or a size in the network's name, that is out of range."""
        between(1, MAX_WIDTH, lora_rank=self.lora_rank)
        if self.lora_rank is None and self.lora_layers != models.LORA_LAYERS:
            raise ValueError(f"lora_layers is {self.lora_layers}, which only lora_rank uses")
        if not models.is_external(self.name):
            check_model_name(self.name)


@dataclass(frozen=True)
class ClientConfig:
    """How one client trains.

    Attributes:
      kind: a "fedsgd" client sends one gradient, a "fedavg" client the change of its parameters by local training.
      local_optimizer: local optimizer of a fedavg client: plain SGD, SGD with momentum, or Adam.
      local_lr: learning rate of a fedavg client's local optimizer.
      local_momentum: momentum of the local optimizer "momentum".
      local_weight_decay: decoupled weight decay of a fedavg client, multiplied by the local learning rate.
      local_epochs: number of passes of a fedavg client over its examples.
      local_batch_size: number of examples per local step of a fedavg client; by default all. If it does not divide
        the client's examples, the last step of every pass takes the rest.
      local_order: whether the attacker knows the order in which a fedavg client visits its examples.
      gradient_chunk: number of examples per gradient computation, which bounds the memory for large batches; by
        default all. Not possible with batch_norm="train", which couples examples.
    """

    kind: Annotated[Literal["fedsgd", "fedavg"], tyro.conf.arg(name="client")] = "fedsgd"
    local_optimizer: Literal["sgd", "momentum", "adam"] = "sgd"
    local_lr: float = 0.01
    local_momentum: float = 0.9
    local_weight_decay: float = 0.0
    local_epochs: int = 1
    local_batch_size: int | None = None
    local_order: Literal["known", "unknown"] = "known"
    gradient_chunk: int | None = None

    def check(self) -> None:
        """Raises ValueError for a number out of range, or for options of local training with "fedsgd"."""
        between(1, MAX_LOCAL_STEPS, local_epochs=self.local_epochs)
        between(1, MAX_EXAMPLES, gradient_chunk=self.gradient_chunk, local_batch_size=self.local_batch_size)
        if not 0 <= self.local_weight_decay < np.inf:
            raise ValueError(
                f"local_weight_decay is {self.local_weight_decay}, expected a finite number of at least 0"
            )
        positive(local_lr=self.local_lr)
        if not 0 < self.local_momentum < 1:
            raise ValueError(f"local_momentum is {self.local_momentum}, expected a number between 0 and 1")
        if self.local_momentum != 0.9 and self.local_optimizer != "momentum":
            raise ValueError(f"local_momentum is {self.local_momentum}, which only local_optimizer='momentum' uses")
        if self.kind == "fedsgd":
            for item in fields(self):
                if item.name.startswith("local_") and getattr(self, item.name) != item.default:
                    raise ValueError(f"{item.name} is {getattr(self, item.name)}, which only client='fedavg' uses")

    def num_examples_per_step(self, num_examples: int) -> int:
        """Number of examples per local gradient of a client with `num_examples` examples; the last may have fewer."""
        return num_examples if self.kind == "fedsgd" else min(self.local_batch_size or num_examples, num_examples)

    def local_training(self, num_examples: int) -> LocalTraining:
        """Learning rate and number of local steps of a client with `num_examples` examples."""
        if self.kind == "fedsgd":
            return FEDSGD
        return LocalTraining(
            self.local_lr, self.local_epochs * -(-num_examples // self.num_examples_per_step(num_examples))
        )


@dataclass(frozen=True)
class DefenseConfig:
    """The defense that the clients apply to their updates.

    Attributes:
      name: name of the defense, see `jaxinvert list`; several are joined by "+" in the order of application.
      settings: parameters of the defense, such as `keep 0.1`, or `top-k.keep 0.1` if several defenses of a chain have
        a parameter of that name.
    """

    name: Annotated[str, tyro.conf.arg(name="defense")] = NONE
    settings: Annotated[dict[str, float], tyro.conf.arg(name="defense-settings")] = field(default_factory=dict)

    @cached_property
    def chain(self) -> Chain:
        """The defenses, in the order in which a client applies them.

        Raises:
          ValueError: for an unknown or repeated name, or a defense that must be first but is not.
        """
        if ":" in self.name:
            raise ValueError(
                f"defense is {self.name!r}, expected names alone; settings are given by --defense-settings keep 0.1, "
                "and in files by defense_settings: {keep: 0.1}"
            )
        return parse(self.name)

    @cached_property
    def parameters(self) -> dict[str, float]:
        """The defenses' parameters under their full names: the given values, else the defaults.

        Raises:
          ValueError: for an unknown parameter, or one out of range.
        """
        return self.chain.parameters(self.settings)

    def check(self) -> None:
        """Raises ValueError for an unknown defense or parameter, or one out of range."""
        _ = self.parameters


@dataclass(frozen=True)
class ObservationConfig:
    """What the server sees of the clients.

    Attributes:
      threat_model: what the attacker is granted, from A (only the update) to E, see `jaxinvert list threat-models`;
        surrogate images are from the split `train` of the same data set.
      aggregate: number of clients that are securely aggregated: the server sees only their mean update.
      rounds: number of training rounds that the server observes; every client uses the same batch in all rounds, and
        the server subtracts the mean update of all targets after each round.
      server_lr: server learning rate between rounds, the factor of the mean update; by default 1 for fedavg and 0.01
        for fedsgd, whose updates are gradients.
    """

    threat_model: Literal["A", "B", "C", "D", "E"] = "C"
    aggregate: int = 1
    rounds: int = 1
    server_lr: float | None = None

    def check(self) -> None:
        """Raises ValueError for a number out of range, or a server learning rate with one round."""
        between(1, MAX_CLIENTS, aggregate=self.aggregate)
        between(1, MAX_ROUNDS, rounds=self.rounds)
        if self.server_lr is not None:
            positive(server_lr=self.server_lr)
            if self.rounds == 1:
                raise ValueError(f"server_lr is {self.server_lr}, which only several rounds use")


@dataclass(frozen=True)
class AttackerConfig:
    """The attack, and the attacker's knowledge.

    Attributes:
      attack: name of the attack, see `jaxinvert list`.
      labels: "known" grants the labels to an attack that needs them, under any threat model; "restored" recovers them
        from the update first, in ascending order; "joint" optimizes them together with the images.
      label_rule: rule that restores the labels with `--labels restored`, see `jaxinvert list`; by default "moments",
        with surrogate images if granted.
      adaptive: whether the attacker knows the defense and adapts its simulation of the client and its objective.
      tv: weight of the attack's total variation, if it has one.
      lr: learning rate of the attack's optimizer, if it has one.
      settings: other hyperparameters of the attack, such as `group 0 noise 0.1`, see `jaxinvert list`.
      generator: file with an image generator, written by `experiments.train_generator`, for attacks that use one; by
        default a small generator included in jaxinvert, trained on 32 px tiles of the data set photos.
    """

    attack: str = "inverting-gradients"
    labels: Literal["known", "restored", "joint"] = "known"
    label_rule: str | None = None
    adaptive: bool = False
    tv: float | None = None
    lr: float | None = None
    settings: dict[str, float] = field(default_factory=dict)
    generator: Path | None = None

    @property
    def entry(self) -> registry.Entry:
        """The registry's entry of the attack.

        Raises:
          ValueError: for an unknown name.
        """
        if self.attack not in registry.REGISTRY:
            known, close = ", ".join(registry.REGISTRY), nearest(self.attack, registry.REGISTRY)
            raise ValueError(f"unknown attack {self.attack!r}; known are {known}{close}")
        return registry.REGISTRY[self.attack]

    @property
    def hyperparameters(self) -> dict[str, float]:
        """The attack's hyperparameters: the given values, else the defaults.

        Raises:
          ValueError: if a hyperparameter is given twice, or the attack does not have it.
        """
        known, shortcuts = self.entry.hyperparameters, {"tv": self.tv, "learning_rate": self.lr}
        given = {name: value for name, value in shortcuts.items() if value is not None}
        if twice := sorted(given.keys() & self.settings.keys()):
            raise ValueError(f"{twice[0]} is given twice, as {given[twice[0]]} and as {self.settings[twice[0]]}")
        given |= self.settings
        if unknown := sorted(given.keys() - known.keys()):
            raise ValueError(
                f"attack {self.attack!r} has no {' and no '.join(unknown)}; it has {sorted(known) or 'none'}"
            )
        return {**known, **given}

    @property
    def generator_file(self) -> Path | None:
        """The attacker's generator; `None` if the attack uses none."""
        return (self.generator or generators.DEFAULT) if self.entry.traits.generates else None

    def check(self) -> None:
        """Raises ValueError for an unknown name, a number out of range, or an option that the attack cannot use."""
        for name, value in {"tv": self.tv, "lr": self.lr, **self.settings}.items():
            if value is not None and not 0 <= value <= float(np.finfo(np.float32).max):
                raise ValueError(f"{name} is {value}, expected a finite float32 of at least 0")
        _ = self.hyperparameters
        traits = self.entry.traits
        if self.labels == "joint" and not traits.joint_labels:
            able = attacks_that(lambda entry: entry.traits.joint_labels)
            raise ValueError(f"attack {self.attack!r} cannot optimize labels; {able} can")
        if self.labels != "known" and "labels" not in self.entry.needs:
            raise ValueError(f"labels is {self.labels!r}, but attack {self.attack!r} reads no labels")
        if self.label_rule is not None and self.labels != "restored":
            raise ValueError(f"label_rule is {self.label_rule!r}, which only labels='restored' uses")
        if self.label_rule is not None and self.label_rule not in labels.REGISTRY:
            known, close = ", ".join(labels.REGISTRY), nearest(self.label_rule, labels.REGISTRY)
            raise ValueError(f"unknown label rule {self.label_rule!r}; known are {known}{close}")
        if self.generator is not None and not traits.generates:
            able = attacks_that(lambda entry: entry.traits.generates)
            raise ValueError(f"generator is {self.generator}, but attack {self.attack!r} uses none; {able} do")


@dataclass(frozen=True)
class SearchConfig:
    """Length and placement of an attack's search.

    Attributes:
      restarts: number of random starts per target; the one with the lowest attack loss is returned.
      steps: number of optimizer steps of an iterative attack.
      chunk: number of searches (restarts x targets) run at once on each device; by default chosen from device and
        model size.
      devices: number of devices over which restarts x targets are distributed; by default one.
      precision: precision of matrix products and convolutions, of clients and attack, on accelerators: "highest" is
        float32 as on CPUs; "high" and "default" round operands to fewer bits, which is faster and loses detail.
        Closed forms and attacks with a line search have the highest anyway.
    """

    restarts: int = 8
    steps: int = 2000
    chunk: int | None = None
    devices: int | None = None
    precision: Precision = "highest"

    def check(self) -> None:
        """Raises ValueError for a number out of range."""
        between(1, MAX_EXAMPLES, restarts=self.restarts)
        between(1, MAX_CHUNK, chunk=self.chunk, devices=self.devices)
        between(0, MAX_STEPS, steps=self.steps)


def attacks_that(can: Callable[[registry.Entry], bool]) -> str:
    """The names of all attacks for which `can` holds, for messages."""
    return ", ".join(name for name, entry in registry.REGISTRY.items() if can(entry))
