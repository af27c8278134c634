"""Threat models: which fields of an `Observation` the attacker may read. No attack result is meaningful without one.

The update is always granted. `observe` fills exactly the granted fields; an attack that reads others fails before it
starts and lists what is missing. Of the five presets, each grants all that the one before it grants:

| preset | attacker                                          | also grants                              |
|--------|---------------------------------------------------|------------------------------------------|
| A      | an eavesdropper                                   | the updates alone                        |
| B      | an eavesdropper who knows the task                | the model and its parameters             |
| C      | an honest-but-curious server that set the training| batch size, rate, local steps, defense   |
| D      | a server with public data of the same kind        | surrogate images                         |
| E      | a server with knowledge about the client's data   | labels; running statistics if sent       |

Most published attacks assume C plus known labels: `KNOWN_LABELS`, the default of `observe`.
"""

from collections.abc import Iterable
from typing import NamedTuple

MEANINGS = {
    "params": "the model and the parameters that the client trained on",
    "update": "the client's update",
    "num_examples": "the number of the client's examples",
    "local_training": "the client's learning rate and number of local steps",
    "surrogate": "public images of the same kind",
    "labels": "the label of every example",
    "batch_stats": "the running statistics after local training",
    "defense": "the parameters of the client's defense",
    "earlier_params": "the parameters in earlier rounds on the same examples",
    "earlier_updates": "the client's updates of earlier rounds on the same examples",
}
"""What each field of an observation means, for messages and reports."""


class ThreatModel(NamedTuple):
    """Which fields of an `Observation` the attacker is granted; the update is always granted.

    Attributes:
      params: the model and its parameters, as sent to the client.
      num_examples: the number of the client's examples.
      local_training: the client's learning rate and number of local steps.
      labels: the label of every example.
      surrogate: public images similar to the clients' data.
      batch_stats: the client's running statistics, if it sends any.
      defense: the parameters of the client's defense, which an adaptive attacker needs.
      earlier_params: the parameters in earlier rounds on the same examples, if the attacker observed them.
      earlier_updates: the client's updates of these rounds.
    """

    params: bool = True
    num_examples: bool = True
    local_training: bool = True
    labels: bool = True
    surrogate: bool = False
    batch_stats: bool = False
    defense: bool = True
    earlier_params: bool = True
    earlier_updates: bool = True

    @property
    def granted(self) -> tuple[str, ...]:
        """Names of the fields an attack may read."""
        return ("update", *(field for field, is_granted in self._asdict().items() if is_granted))

    @property
    def withheld(self) -> tuple[str, ...]:
        """Names of the fields that are `None`."""
        return tuple(field for field, is_granted in self._asdict().items() if not is_granted)


KNOWN_LABELS = ThreatModel()
_C = ThreatModel(labels=False)
LADDER: dict[str, ThreatModel] = {
    "A": _C._replace(params=False, num_examples=False, local_training=False, defense=False, earlier_params=False),
    "B": _C._replace(num_examples=False, local_training=False, defense=False),
    "C": _C,
    "D": _C._replace(surrogate=True),
    "E": ThreatModel(surrogate=True, batch_stats=True),
}


def check_needs(threat_model: ThreatModel, needs: Iterable[str], *, attack: str) -> None:
    """Raises ValueError for an attack that reads fields the threat model withholds.

    Args:
      threat_model: the fields that the attacker is granted.
      needs: names of `Observation` fields.
      attack: name of the attack, for the message.

    Raises:
      ValueError: naming the attack and every missing field.

    >>> check_needs(LADDER["C"], ["update", "labels"], attack="inverting-gradients")
    Traceback (most recent call last):
    ...
    ValueError: inverting-gradients needs what the threat model withholds: labels (the label of every example)
    """
    if missing := [field for field in needs if field in threat_model.withheld]:
        named = ", ".join(f"{field} ({MEANINGS[field]})" for field in missing)
        raise ValueError(f"{attack} needs what the threat model withholds: {named}")
