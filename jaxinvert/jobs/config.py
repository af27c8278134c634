"""What a job is: a configuration in groups, see `groups`, and what follows from several of them.

Command lines and YAML files know all fields by flat names (`--data`, `--num-examples`, `--attack` ...).
`JobConfig.of` takes them, and `flat` gives them back.
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
    at_least,
    less_than,
)
from jaxinvert.jobs.yaml_fields import build, flatten
from jaxinvert.observation import threat_models
from jaxinvert.observation.threat_models import ThreatModel
from jaxinvert.types import LocalTraining


@dataclass(frozen=True)
class JobConfig:
    """What to attack, how, and for how long.

    Attributes:
      data: the victims' examples.
      model: the clients' network.
      client: how one client trains.
      defense: what the clients do to their updates.
      observation: what the server sees of the clients.
      attacker: which attack, and what the attacker knows and does beside it.
      search: how long and where an attack searches.
      seed: determines the model, the starts and all else that is random.
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
        """Refuses what no job can mean; groups are checked first, then what concerns several of them."""
        for group in (self.data, self.client, self.defense, self.observation, self.attacker, self.search):
            group.check()
        at_least(0, seed=self.seed)
        less_than(2**32, seed=self.seed)
        batch_norm, num_examples, entry = self.model.batch_norm, self.data.num_examples, self.attacker.entry
        checks.check_batches(self.client, num_examples, batch_norm=batch_norm)
        checks.check_attack(
            self.attacker, self.client, self.observation, batch_norm=batch_norm, reads=self.rule_needs
        )
        checks.check_defense(
            self.defense, self.client, num_examples, batch_norm=batch_norm, checkpoint=self.model.checkpoint
        )
        if self.attacker.adaptive:
            checks.check_adaptive(self.defense, entry, aggregate=self.observation.aggregate)

    @classmethod
    def of(cls, **fields: Any) -> Self:
        """A configuration from fields by their flat names; the others have their defaults.

        Raises:
          ValueError: for an unknown name, or values that no job can have.

        >>> JobConfig.of(model="mlp", num_examples=2).data.num_examples
        2
        """
        return build(cls, fields)

    def replace(self, **fields: Any) -> Self:
        """The same configuration with other values of some fields, by their flat names."""
        return build(type(self), fields, base=self)

    @property
    def flat(self) -> dict[str, Any]:
        """All fields of a job by their flat names, none of a subclass's."""
        return flatten(self, of=JobConfig)

    @property
    def num_private(self) -> int:
        """Examples behind each update that the server sees."""
        return self.data.num_examples * self.observation.aggregate

    @property
    def num_examples_per_step(self) -> int:
        """Examples behind each of the client's gradients."""
        return self.client.num_examples_per_step(self.data.num_examples)

    @property
    def local_training(self) -> LocalTraining:
        """How the client trains."""
        return self.client.local_training(self.data.num_examples)

    @property
    def server_rate(self) -> float:
        """What the server multiplies the mean update by."""
        return self.observation.server_lr or (0.01 if self.client.kind == "fedsgd" else 1.0)

    @property
    def chosen_label_rule(self) -> str:
        """The rule that restores labels."""
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
        """The fields of the observation that the label rule reads, if there is one."""
        return labels.REGISTRY[self.chosen_label_rule].needs if self.attacker.labels == "restored" else ()

    @property
    def granted(self) -> ThreatModel:
        """The threat model, with the labels where they are known and needed."""
        threat_model = threat_models.LADDER[self.observation.threat_model]
        several_rounds = self.observation.rounds > 1
        return threat_model._replace(
            labels="labels" in self.needs,
            batch_stats=threat_model.batch_stats and self.model.batch_norm == "train",
            earlier_params=threat_model.earlier_params and several_rounds,
            earlier_updates=threat_model.earlier_updates and several_rounds,
        )
