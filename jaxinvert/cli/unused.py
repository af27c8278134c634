"""Refuses, or names in a note, fields that another choice makes meaningless: none is ignored in silence."""

import contextlib
from collections.abc import Collection, Iterable, Mapping, Sequence, Set
from typing import Any

from jaxinvert import audit as audits
from jaxinvert import data, jobs
from jaxinvert.cli.console import Terminal
from jaxinvert.cli.fields import flagged
from jaxinvert.jobs.automatic import AUTO
from jaxinvert.jobs.groups import AttackerConfig, SearchConfig
from jaxinvert.jobs.yaml_fields import places

AuditResults = Sequence[audits.Audited] | Mapping[str, tuple[jobs.JobConfig, audits.Explained]]

_OF_DATA = {
    "input_shape": "simulated clients take it from their data",
    "num_classes": "simulated clients take it from their data",
    "mean": "simulated clients take it from their data",
    "std": "simulated clients take it from their data",
}
_OF_CAPTURES = {
    **_OF_DATA,
    "update_kind": "what simulated clients send is known",
    "params": "simulated clients draw their parameters, or read those of checkpoint",
    "truth": "the images of simulated clients are known",
    "clients": "the number of simulated clients is targets",
}
"""Fields that describe captured updates, and why simulated clients need none."""

_OF_SIMULATION = {
    "targets": "there is one target for each captured update, and clients or update chooses them",
    "normalized": "mean and std say how the clients of captured updates normalize their inputs",
    "attack_free": "it is only computed for simulated clients",
}
"""Fields that describe simulated clients, and what captured updates have instead."""


def refuse_for_simulated(command: Any, given: Mapping[str, Any]) -> None:
    """Raises ValueError for a field that describes captured updates, where clients are to be simulated.

    Args:
      command: the command `Audit` with its YAML file.
      given: the fields that its flags or its file give.
    """
    for name, why in _OF_CAPTURES.items():
        if given.get(name) not in (None, ()):
            known = _of_data(name, command.data) if name in _OF_DATA else ""
            raise ValueError(
                f"{name} describes captured updates only; {why}{known}: leave it out, or give capture or update"
            )


def refuse_for_captured(given: Mapping[str, Any]) -> None:
    """Raises ValueError for a field that describes simulated clients, where updates are captured."""
    for name, why in _OF_SIMULATION.items():
        if given.get(name) or (name == "normalized" and name in given):
            raise ValueError(f"{name} is for simulated clients only; {why}: leave it out")


def refuse_without_truth(command: Any, capture: audits.Capture) -> None:
    """Raises ValueError for a field that says how reconstructions are compared, where the true images are unknown."""
    if capture.truth is None:
        for name in ("lpips", "candidates"):
            if (value := getattr(command, name)) != getattr(type(command), name):
                raise ValueError(
                    f"{name} is {value}, but nothing is compared without the true images: give truth, or leave it out"
                )


def _of_data(name: str, chosen: Any) -> str:
    """What the data set says, such as " (photos: 10 classes)"; nothing if it cannot be read."""
    with contextlib.suppress(ValueError, OSError, ImportError):
        split = "test" if chosen.split == "auto" else chosen.split
        dataset = data.load(chosen.name, split=split, size=chosen.size)
        figures = {
            "input_shape": " x ".join(map(str, dataset.images.shape[1:])),
            "num_classes": f"{dataset.num_classes} classes",
        }
        return f" ({chosen.name}: {figures.get(name) or ' '.join(f'{one:.3g}' for one in getattr(dataset, name))})"
    return ""


def refuse_without_epsilon(
    training: audits.Training | None, found: Iterable[audits.Privacy | None], defenses: Collection[str]
) -> None:
    """Raises ValueError for a training that determines an epsilon, where no defense has one.

    Args:
      training: the whole training, if it is given.
      found: the guarantee of every setting's defense.
      defenses: as named by the command.
    """
    if training is not None and all(one is None or one.epsilon is None for one in found):
        raise ValueError(
            "sampling_rate and training_steps determine the epsilon of dp-sgd, which none of the defenses "
            f"{' '.join(defenses)} has: name dp-sgd among them, or leave these two out"
        )


_PRECISION = "precision"
_OF_SEARCH = {place.flat_name for place in places(SearchConfig)} - {_PRECISION}
_OF_ATTACK = {place.flat_name for place in places(AttackerConfig)} | _OF_SEARCH


def note_of_rank(command: Any, command_line: str) -> None:
    """Prints a note on the standard error with the flags of attacks, which `rank` takes and does not use."""
    _note(flagged(command, command_line).keys() & _OF_ATTACK, "rank runs no attack; not used")


def note_of_closed_form(command: Any, task: jobs.Task, command_line: str) -> None:
    """Prints a note on the standard error with the flags of searches, if the job's attack does not search."""
    entry = command.attacker.entry
    if not task.program.iterates:
        steps = {"steps"} if entry.takes_horizon else set()
        given = flagged(command, command_line).keys() & _OF_SEARCH
        _note(given - steps, f"attack {entry.name!r} does not search; not used")


def note_of_audit(given: Set[str], found: AuditResults) -> None:
    """Prints a note on the standard error with the fields of searches, if the attacks of an audit were closed forms.

    Args:
      given: the fields that the command's flags or its file give.
      found: the audited settings, or what explains captured updates by the attacker's name.
    """
    if isinstance(found, Mapping):
        attacks = [(config, one.searched) for config, one in found.values()]
    else:
        attacks = [
            (one.config, one.summary["selected_by"] != "closed form")
            for setting in found
            for one in (*setting.attackers.values(), *(setting.leakage or {}).values())
        ]
    if any(searched for _, searched in attacks):
        return
    name = attacks[0][0].attacker.attack
    if name == AUTO:  # which takes no closed form of the controls' updates
        _note(given & _OF_SEARCH, "attack 'auto' took a closed form of every update; used by controls only")
    else:
        _note(given & _OF_SEARCH, f"attack {name!r} does not search; not used")


def _note(unused: Collection[str], why: str) -> None:
    if unused:
        flags = ", ".join(f"--{name.replace('_', '-')}" for name in sorted(unused))
        Terminal(stderr=True).print(f"note: {why}: {flags}", soft_wrap=True)
