"""`JobConfig`: the configuration of a job, with one group of fields per actor (see `groups`) and derived values.

Command lines and YAML files use flat names for all fields (`--data`, `--num-examples`, `--attack` ...).
`JobConfig.of` builds a configuration from flat names, and `flat` returns them.
"""

from dataclasses import dataclass, field
from typing import Any, Self

from jaxinvert import labels
from jaxinvert.jobs import checks
from jaxinvert.jobs.groups import (
    AttackerConfig,
    ClientConfig,
    DataConfig,
    DefenseConfig,
    ModelConfig,
    ObservationConfig,
    SearchConfig,
)
from jaxinvert.jobs.limits import MAX_SEED, between
from jaxinvert.jobs.yaml_fields import build, flatten
from jaxinvert.observation import threat_models
from jaxinvert.observation.threat_models import ThreatModel
from jaxinvert.types import LocalTraining


@dataclass(frozen=True)
class JobConfig:
    """The configuration of a job: clients, observation, attack and search.

    Attributes:
      data: the clients' private examples.
      model: the clients' network.
      client: how one client trains.
      defense: the clients' defense.
      observation: what the server sees of the clients.
      attacker: the attack and the attacker's knowledge.
      search: length and placement of the search.
      seed: random seed; determines the model, the starts and everything else that is random.
    """

    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    client: ClientConfig = field(default_factory=ClientConfig)
    defense: DefenseConfig = field(default_factory=DefenseConfig)
    observation: ObservationConfig = field(default_factory=ObservationConfig)
    attacker: AttackerConfig = field(default_factory=AttackerConfig)
    search: SearchConfig = field(default_factory=SearchConfig)
    seed: int = 0

    def __post_init__(self) -> None:
        """Checks each group, then combinations of groups."""
        for group in (self.data, self.model, self.client, self.defense, self.observation, self.attacker, self.search):
            group.check()
        between(0, MAX_SEED, seed=self.seed)
        batch_norm, num_examples, entry = self.model.batch_norm, self.data.num_examples, self.attacker.entry
        checks.check_batches(self.client, num_examples, batch_norm=batch_norm, reads=self.rule_needs)
        checks.check_attack(
            self.attacker, self.client, self.observation, batch_norm=batch_norm, reads=self.rule_needs
        )
        checks.check_defense(
            self.defense, self.client, num_examples, batch_norm=batch_norm, checkpoint=self.model.checkpoint
        )
        checks.check_dropout(self.model, self.client, self.defense)
        if self.attacker.adaptive:
            checks.check_adaptive(self.defense, entry, aggregate=self.observation.aggregate)

    @classmethod
    def of(cls, **fields: Any) -> Self:
        """Builds a configuration from fields by flat names; omitted fields have their defaults.

        Raises:
          ValueError: for an unknown name, or values that are not possible.

        >>> JobConfig.of(model="mlp", num_examples=2).data.num_examples
        2
        """
        return build(cls, fields)

    def replace(self, **fields: Any) -> Self:
        """The same configuration with some fields replaced, by flat names."""
        return build(type(self), fields, base=self)

    @property
    def flat(self) -> dict[str, Any]:
        """All fields of `JobConfig` by flat names, without those of a subclass."""
        return flatten(self, of=JobConfig)

    @property
    def num_private(self) -> int:
        """Number of private examples per observed update."""
        return self.data.num_examples * self.observation.aggregate

    @property
    def num_examples_per_step(self) -> int:
        """Number of examples per local gradient."""
        return self.client.num_examples_per_step(self.data.num_examples)

    @property
    def local_training(self) -> LocalTraining:
        """Learning rate and number of local steps of each client."""
        return self.client.local_training(self.data.num_examples)

    @property
    def server_rate(self) -> float:
        """The server's learning rate, the factor of the mean update."""
        return self.observation.server_lr or (0.01 if self.client.kind == "fedsgd" else 1.0)

    @property
    def chosen_label_rule(self) -> str:
        """The rule that restores labels: the given one, or a default for the threat model."""
        surrogate = threat_models.LADDER[self.observation.threat_model].surrogate
        return self.attacker.label_rule or ("moments-surrogate" if surrogate else "moments")

    @property
    def needs(self) -> tuple[str, ...]:
        """The fields of the observation that the attack reads."""
        entry = self.attacker.entry
        needs = dict.fromkeys(entry.needs)
        if self.attacker.labels != "known":
            del needs["labels"]
        if self.client.kind == "fedavg" and entry.traits.simulates:
            needs["local_training"] = None
        if self.attacker.adaptive:
            needs["defense"] = None
        return tuple(needs)

    @property
    def rule_needs(self) -> tuple[str, ...]:
        """The fields of the observation that the label rule reads; empty unless labels are restored."""
        return labels.REGISTRY[self.chosen_label_rule].needs if self.attacker.labels == "restored" else ()

    @property
    def granted(self) -> ThreatModel:
        """The threat model of this job, with labels added if the attack reads known labels."""
        threat_model = threat_models.LADDER[self.observation.threat_model]
        several_rounds = self.observation.rounds > 1
        return threat_model._replace(
            labels="labels" in self.needs,
            batch_stats=threat_model.batch_stats and self.model.batch_norm == "train",
            earlier_params=threat_model.earlier_params and several_rounds,
            earlier_updates=threat_model.earlier_updates and several_rounds,
        )
