"""The names that options take, such as those of attacks: for completion, and to say which option a word is for."""

from collections.abc import Mapping
from typing import Any


def known_names(option: str) -> Mapping[str, Mapping[str, Any]]:
    """The names that an option may be followed by, with their settings; empty if they are not known.

    Imports are here, since the commands that use no such names start faster without them.
    """
    from jaxinvert import data, labels, models
    from jaxinvert.attacks import registry
    from jaxinvert.data.tabular import TABLES
    from jaxinvert.defenses import registry as defenses

    attacks = {name: entry.hyperparameters for name, entry in sorted(registry.REGISTRY.items())}
    sets: dict[str, Mapping[str, Mapping[str, Any]]] = {
        "attack": attacks,
        "data": {name: {} for name in data.names()},
        "data-set": {name: {} for name in data.names()},
        "defense": {name: recipe.parameters for name, recipe in defenses.REGISTRY.items()},
        "defenses": {name: recipe.parameters for name, recipe in defenses.REGISTRY.items()},
        "label-rule": {name: {} for name in labels.REGISTRY},
        "model": {name: {} for name in models.REGISTRY},
        "table": {name: {} for name in TABLES},
    }
    return sets.get(option, {})


def flags_that_take(word: str) -> list[str]:
    """The options that may be followed by this name."""
    options = ("attack", "defenses", "defense", "model", "data", "table", "label-rule")
    return [option for option in options if word in known_names(option)]
