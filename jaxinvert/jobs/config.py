"""What a job is: names and numbers, checked, and what they mean as functions."""

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Literal

import numpy as np

from jaxinvert import labels
from jaxinvert.attacks import adaptive, registry
from jaxinvert.attacks.recipe import Recipe
from jaxinvert.defenses import registry as defenses
from jaxinvert.observation import threat_models
from jaxinvert.observation.observe import FEDSGD
from jaxinvert.observation.threat_models import ThreatModel
from jaxinvert.priors import generators
from jaxinvert.types import LocalTraining


@dataclass(frozen=True)
class JobConfig:
    """What to attack, how, and for how long.

    Attributes:
      attack: name of the attack, see `jaxinvert list`.
      model: name of the clients' network; or `module:function`, a network of your own: the module is imported, which
        runs it, and the function called.
      normalized: whether the network subtracts the data set's mean from its inputs and divides by its deviation.
      checkpoint: safetensors file with the network's parameters; by default they are fresh.
      data: name of a data set, a folder of images, or an npz file.
      split: part of the data set that holds the victims, such as `test` or `test[100:]`.
      size: side of the images in pixels; by default the data set's own.
      num_examples: examples in each client's batch.
      targets: updates to attack; consecutive examples of the split are the private batches behind them.
      restarts: random starts per target; the lowest attack loss wins.
      steps: optimizer steps of an iterative attack.
      seed: determines the model, the starts and all else that is random.
      threat_model: what the attacker is granted: A (the update alone) to E, see `jaxinvert list`; surrogate images
        are the split `train` of the same data.
      labels: "known" grants the labels to an attack that needs them, whatever the threat model; "restored" recovers
        them from the update first, in ascending order; "joint" makes them variables of the attack.
      label_rule: recovers the labels, see `jaxinvert list`; by default "moments", with surrogate images if granted.
      client: "fedsgd" sends one gradient, "fedavg" what local training changed.
      local_optimizer: of a fedavg client: plain gradient descent, momentum 0.9, or Adam.
      local_lr: its learning rate.
      local_weight_decay: decoupled, times the learning rate.
      local_epochs: passes of a fedavg client over its examples.
      local_batch_size: examples per local step of a fedavg client; by default all.
      local_order: whether the attacker knows the order in which a fedavg client visits its examples.
      batch_norm: whether the clients' BatchNorm layers use the running statistics ("eval") or the batch's ("train").
      aggregate: clients whose mean is all that the server sees of them, as under secure aggregation.
      defense: what the clients do to their updates, see `jaxinvert list`; several in their order, joined by "+".
      defense_settings: its numbers, such as `keep 0.1`; `top-k.keep 0.1` where several of a chain have one.
      adaptive: whether the attacker knows of the defense, and adapts what it simulates and how it compares.
      rounds: rounds of training in which every client sends an update on the same batch, all of them seen; between
        them the server subtracts the mean update of all targets.
      server_lr: times the mean update; by default 1 for fedavg and 0.01 for fedsgd, whose updates are gradients.
      tv: weight of the total variation, if the attack has one.
      lr: learning rate of the attack's optimizer, if it has one.
      generator: of an attack that searches with one, as `experiments.train_generator` writes it; by default the small
        one that comes with jaxinvert, trained on the photos' tiles, 32 px.
      settings: the attack's other settings, such as `group 0 noise 0.1`; see `jaxinvert list`.
      chunk: restarts x targets that run side by side on a device; by default chosen by device and model size.
      devices: devices to spread restarts x targets over; by default one.
      gradient_chunk: examples whose gradient is computed at once, so that the memory of gradients does not grow with
        the batch; by default all. Not with batch_norm="train", which couples examples.
    """

    attack: str = "inverting-gradients"
    model: str = "lenet"
    normalized: bool = True
    checkpoint: Path | None = None
    data: str = "photos"
    split: str = "test"
    size: int | None = None
    num_examples: int = 1
    targets: int = 4
    restarts: int = 8
    steps: int = 2000
    seed: int = 0
    threat_model: Literal["A", "B", "C", "D", "E"] = "C"
    labels: Literal["known", "restored", "joint"] = "known"
    label_rule: str | None = None
    client: Literal["fedsgd", "fedavg"] = "fedsgd"
    local_optimizer: Literal["sgd", "momentum", "adam"] = "sgd"
    local_lr: float = 0.01
    local_weight_decay: float = 0.0
    local_epochs: int = 1
    local_batch_size: int | None = None
    local_order: Literal["known", "unknown"] = "known"
    batch_norm: Literal["eval", "train"] = "eval"
    aggregate: int = 1
    defense: str = defenses.NONE
    defense_settings: dict[str, float] = field(default_factory=dict)
    adaptive: bool = False
    rounds: int = 1
    server_lr: float | None = None
    tv: float | None = None
    lr: float | None = None
    generator: Path | None = None
    settings: dict[str, float] = field(default_factory=dict)
    chunk: int | None = None
    devices: int | None = None
    gradient_chunk: int | None = None

    def __post_init__(self) -> None:
        """Refuses what no job can mean."""
        at_least = dict.fromkeys(("num_examples", "targets", "restarts", "local_epochs", "aggregate", "rounds"), 1)
        at_least |= {"steps": 0, "seed": 0}
        for name, least in at_least.items():
            if (value := getattr(self, name)) < least:
                raise ValueError(f"{name} is {value}, expected at least {least}")
        for name, below in {"steps": 2**31 - 1, "seed": 2**32}.items():
            if (value := getattr(self, name)) >= below:
                raise ValueError(f"{name} is {value}, expected less than {below}")
        for name in ("size", "chunk", "devices", "gradient_chunk", "local_batch_size"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"{name} is {value}, expected at least 1")
        for name, value in {"tv": self.tv, "lr": self.lr, **self.settings}.items():
            if value is not None and not 0 <= value <= float(np.finfo(np.float32).max):
                raise ValueError(f"{name} is {value}, expected a finite float32 of at least 0")
        if not 0 <= self.local_weight_decay < np.inf:
            raise ValueError(
                f"local_weight_decay is {self.local_weight_decay}, expected a finite number of at least 0"
            )
        if not 0 < self.local_lr < np.inf:
            raise ValueError(f"local_lr is {self.local_lr}, expected a positive number")
        if self.server_lr is not None and not 0 < self.server_lr < np.inf:
            raise ValueError(f"server_lr is {self.server_lr}, expected a positive number")
        if self.num_examples % self.num_examples_per_step:
            raise ValueError(
                f"local_batch_size is {self.local_batch_size}, expected a divisor of num_examples {self.num_examples}"
            )
        if self.attack not in registry.REGISTRY:
            raise ValueError(f"unknown attack {self.attack!r}; known are {', '.join(registry.REGISTRY)}")
        self.hyperparameters()
        self._refuse_what_has_no_effect()
        self._refuse_defenses_that_do_not_fit()
        if "batch_stats" in self.recipe.needs and self.batch_norm == "eval":
            raise ValueError(f"attack {self.attack!r} needs clients in train mode: batch_norm='train'")
        if self.labels == "joint" and not self.recipe.joint:
            able = [name for name, recipe in registry.REGISTRY.items() if recipe.joint]
            raise ValueError(f"attack {self.attack!r} cannot take labels as variables; {', '.join(able)} can")
        if self.labels != "known" and "labels" not in self.recipe.needs:
            raise ValueError(f"labels is {self.labels!r}, but attack {self.attack!r} reads no labels")
        if self.label_rule is not None and self.labels != "restored":
            raise ValueError(f"label_rule is {self.label_rule!r}, which only labels='restored' uses")
        if self.label_rule is not None and self.label_rule not in labels.REGISTRY:
            raise ValueError(f"unknown label rule {self.label_rule!r}; known are {', '.join(labels.REGISTRY)}")

        if self.gradient_chunk is not None and self.batch_norm == "train":
            raise ValueError(
                f"gradient_chunk is {self.gradient_chunk}, but batch_norm='train' couples all examples of a batch"
            )
        plain = self.local_optimizer == "sgd" and self.local_weight_decay == 0
        if not plain and ("local_training" in self.rule_needs or self.attack == "general-deep-leakage"):
            raise ValueError(
                "labels are restored from what rate times steps makes of gradients, which holds for plain sgd "
                "only; sign rules (bias-sign, idlg, llg, yin) need no such thing"
            )

    def _refuse_what_has_no_effect(self) -> None:
        """Raises ValueError for a setting that nothing would read."""
        if self.client == "fedsgd":
            for item in fields(self):
                if item.name.startswith("local_") and getattr(self, item.name) != item.default:
                    raise ValueError(f"{item.name} is {getattr(self, item.name)}, which only client='fedavg' uses")
        if self.generator is not None and not self.recipe.generates:
            able = [name for name, recipe in registry.REGISTRY.items() if recipe.generates]
            raise ValueError(
                f"generator is {self.generator}, but attack {self.attack!r} uses none; {', '.join(able)} do"
            )
        if self.rounds == 1 and self.server_lr is not None:
            raise ValueError(f"server_lr is {self.server_lr}, which only several rounds use")
        if self.rounds > 1 and not self.recipe.every_round:
            able = [name for name, recipe in registry.REGISTRY.items() if recipe.every_round]
            raise ValueError(
                f"rounds is {self.rounds}, but attack {self.attack!r} looks at one; {', '.join(able)} look at all"
            )
        for name, shortcut in {"tv": self.tv, "learning_rate": self.lr}.items():
            if shortcut is not None and name in self.settings:
                raise ValueError(f"{name} is given twice, as {shortcut} and as {self.settings[name]}")

    def _refuse_defenses_that_do_not_fit(self) -> None:
        """Raises ValueError for a defense that these clients cannot have, or this attacker cannot adapt to."""
        self.defense_numbers()
        for name in defenses.names_in(self.defense):
            recipe = defenses.REGISTRY[name]
            if recipe.single_examples and self.batch_norm == "train":
                raise ValueError(f"defense {name!r} looks at single examples, which batch_norm='train' couples")
            if self.num_examples < recipe.least_examples:
                raise ValueError(
                    f"defense {name!r} does nothing with num_examples {self.num_examples}, expected at least "
                    f"{recipe.least_examples}"
                )
            if recipe.changes_model and self.checkpoint is not None:
                raise ValueError(f"defense {name!r} adds layers, of which {self.checkpoint} has no parameters")
            if recipe.one_step and self.client != "fedsgd":
                raise ValueError(f"defense {name!r} is that of one gradient: it needs client='fedsgd'")
        if self.adaptive:
            if self.defense == defenses.NONE:
                raise ValueError("adaptive is True, but there is no defense to adapt to")
            if self.aggregate > 1:
                raise ValueError(
                    f"adaptive is True, but nobody is known to adapt to the mean of {self.aggregate} defended updates"
                )
            adaptive.counter_summary(self.defense)
            if not self.recipe.adapts:
                able = [name for name, recipe in registry.REGISTRY.items() if recipe.adapts]
                raise ValueError(f"attack {self.attack!r} does not adapt to defenses; {', '.join(able)} do")

    @property
    def recipe(self) -> Recipe:
        """The attack under its name."""
        return registry.REGISTRY[self.attack]

    @property
    def generator_file(self) -> Path | None:
        """The attacker's generator, if the attack uses one."""
        return (self.generator or generators.DEFAULT) if self.recipe.generates else None

    @property
    def chosen_label_rule(self) -> str:
        """The rule that restores labels."""
        surrogate = threat_models.LADDER[self.threat_model].surrogate
        return self.label_rule or ("moments-surrogate" if surrogate else "moments")

    @property
    def num_private(self) -> int:
        """Examples behind each update that the server sees."""
        return self.num_examples * self.aggregate

    @property
    def num_examples_per_step(self) -> int:
        """Examples behind each of the client's gradients."""
        return self.num_examples if self.client == "fedsgd" else self.local_batch_size or self.num_examples

    @property
    def local_training(self) -> LocalTraining:
        """How the client trains."""
        if self.client == "fedsgd":
            return FEDSGD
        return LocalTraining(self.local_lr, self.local_epochs * self.num_examples // self.num_examples_per_step)

    @property
    def server_rate(self) -> float:
        """What the server multiplies the mean update by."""
        return self.server_lr or (0.01 if self.client == "fedsgd" else 1.0)

    @property
    def needs(self) -> tuple[str, ...]:
        """The fields of the observation that the attack reads."""
        needs = dict.fromkeys(self.recipe.needs)
        if self.labels != "known":
            del needs["labels"]
        if self.client == "fedavg" and self.recipe.simulates:
            needs["local_training"] = None
        if self.adaptive:
            needs["defense"] = None
        return tuple(needs)

    @property
    def rule_needs(self) -> tuple[str, ...]:
        """The fields of the observation that the label rule reads, if there is one."""
        return labels.REGISTRY[self.chosen_label_rule].needs if self.labels == "restored" else ()

    @property
    def granted(self) -> ThreatModel:
        """The threat model, with the labels where they are known and needed."""
        threat_model = threat_models.LADDER[self.threat_model]
        sends_statistics = self.batch_norm == "train"
        return threat_model._replace(
            labels="labels" in self.needs,
            batch_stats=threat_model.batch_stats and sends_statistics,
            earlier_params=threat_model.earlier_params and self.rounds > 1,
            earlier_updates=threat_model.earlier_updates and self.rounds > 1,
        )

    def hyperparameters(self) -> dict[str, float]:
        """The attack's hyper-parameters: its defaults, replaced by what was given.

        Raises:
          ValueError: if one was given that the attack does not have.
        """
        known = registry.REGISTRY[self.attack].hyperparameters
        named = {"tv": self.tv, "learning_rate": self.lr}
        given = {**{name: value for name, value in named.items() if value is not None}, **self.settings}
        if unknown := sorted(given.keys() - known.keys()):
            raise ValueError(
                f"attack {self.attack!r} has no {' and no '.join(unknown)}; it has {sorted(known) or 'none'}"
            )
        return {**known, **given}

    def defense_numbers(self) -> dict[str, float]:
        """The numbers of the defense under their full names: its defaults, replaced by what was given.

        Raises:
          ValueError: for an unknown defense or number, or one out of range.
        """
        return defenses.numbers_of(self.defense, self.defense_settings)
