"""What a job is: names and numbers, checked, and what they mean as functions."""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import optax

from jaxinvert import models, threat_models
from jaxinvert.attacks import registry
from jaxinvert.clients import fedavg, fedsgd
from jaxinvert.observe import FEDSGD
from jaxinvert.threat_models import ThreatModel
from jaxinvert.types import ClientUpdateFn, LocalTraining


@dataclass(frozen=True)
class JobConfig:
    """What to attack, how, and for how long.

    Attributes:
      attack: name of the attack, see `jaxinvert list`.
      model: name of the client's network, freshly initialized.
      data: name of a data set, a folder of images, or an npz file.
      split: part of the data set that holds the victims, such as `test` or `test[100:]`.
      size: side of the images in pixels; by default the data set's own.
      num_examples: examples in each client's batch.
      targets: clients to attack; consecutive examples of the split are their private batches.
      restarts: random starts per target; the lowest attack loss wins.
      steps: optimizer steps of an iterative attack.
      seed: determines the model, the starts and all else that is random.
      threat_model: what the attacker is granted: A (the update alone) to E, see `jaxinvert list`.
      labels: "known" grants the labels to an attack that needs them, whatever the threat model.
      client: "fedsgd" sends one gradient, "fedavg" what local training changed.
      local_lr: learning rate of a fedavg client's gradient descent.
      local_epochs: passes of a fedavg client over its examples.
      local_batch_size: examples per local step of a fedavg client; by default all.
      tv: weight of the total variation, if the attack has one.
      lr: learning rate of the attack's optimizer, if it has one.
      chunk: restarts x targets that run side by side; by default chosen by device and model size.
    """

    attack: str = "inverting-gradients"
    model: str = "lenet"
    data: str = "photos"
    split: str = "test"
    size: int | None = None
    num_examples: int = 1
    targets: int = 4
    restarts: int = 8
    steps: int = 2000
    seed: int = 0
    threat_model: Literal["A", "B", "C", "D", "E"] = "C"
    labels: Literal["known"] = "known"
    client: Literal["fedsgd", "fedavg"] = "fedsgd"
    local_lr: float = 0.01
    local_epochs: int = 1
    local_batch_size: int | None = None
    tv: float | None = None
    lr: float | None = None
    chunk: int | None = None

    def __post_init__(self) -> None:
        """Refuses what no job can mean."""
        at_least = {"num_examples": 1, "targets": 1, "restarts": 1, "steps": 0, "seed": 0, "local_epochs": 1}
        for field, least in at_least.items():
            if (value := getattr(self, field)) < least:
                raise ValueError(f"{field} is {value}, expected at least {least}")
        for field, below in {"steps": 2**31 - 1, "seed": 2**32}.items():
            if (value := getattr(self, field)) >= below:
                raise ValueError(f"{field} is {value}, expected less than {below}")
        for field in ("size", "chunk", "local_batch_size"):
            if (value := getattr(self, field)) is not None and value < 1:
                raise ValueError(f"{field} is {value}, expected at least 1")
        for field in ("tv", "lr"):
            value = getattr(self, field)
            if value is not None and not 0 <= value <= float(np.finfo(np.float32).max):
                raise ValueError(f"{field} is {value}, expected a finite float32 of at least 0")
        if not 0 < self.local_lr < np.inf:
            raise ValueError(f"local_lr is {self.local_lr}, expected a positive number")
        if self.num_examples % self.num_examples_per_step:
            raise ValueError(
                f"local_batch_size is {self.local_batch_size}, expected a divisor of num_examples {self.num_examples}"
            )
        if self.attack not in registry.REGISTRY:
            raise ValueError(f"unknown attack {self.attack!r}; known are {', '.join(registry.REGISTRY)}")
        self.hyperparameters()

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
    def granted(self) -> ThreatModel:
        """The threat model, with the labels where they are needed; these clients send no running statistics."""
        threat_model = threat_models.LADDER[self.threat_model]
        return threat_model._replace(labels="labels" in registry.REGISTRY[self.attack].needs, batch_stats=False)

    def hyperparameters(self) -> dict[str, float]:
        """The attack's hyper-parameters: its defaults, replaced by what was given.

        Raises:
          ValueError: if one was given that the attack does not have.
        """
        known = registry.REGISTRY[self.attack].hyperparameters
        given = {
            name: value for name, value in {"tv": self.tv, "learning_rate": self.lr}.items() if value is not None
        }
        if unknown := sorted(given.keys() - known.keys()):
            raise ValueError(
                f"attack {self.attack!r} has no {' and no '.join(unknown)}; it has {sorted(known) or 'none'}"
            )
        return {**known, **given}


def client_update(config: JobConfig, model: models.Model) -> ClientUpdateFn:
    """What the client computes, and the attacker simulates."""
    loss_fn = models.cross_entropy(model.apply)
    if config.client == "fedsgd":
        return fedsgd(loss_fn)
    return fedavg(
        loss_fn,
        optimizer=optax.sgd(config.local_lr),
        batch_size=config.num_examples_per_step,
        num_epochs=config.local_epochs,
    )


def assumptions(config: JobConfig) -> dict[str, Any]:
    """What the attacker knew and did not know, in words."""
    rate, num_steps = config.local_training
    size = config.num_examples_per_step
    clients = {
        "fedsgd": "FedSGD: one gradient of the mean loss over the batch",
        "fedavg": f"FedAvg: {num_steps} local steps of {size} examples, learning rate {rate:g}",
    }
    return {
        "threat_model": config.threat_model,
        "known": [threat_models.MEANINGS[field] for field in config.granted.granted],
        "unknown": ["the images", *(threat_models.MEANINGS[field] for field in config.granted.withheld)],
        "client": f"{clients[config.client]}; no defense; BatchNorm, if any, in eval mode",
    }
