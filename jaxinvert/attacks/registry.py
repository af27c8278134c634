"""The registry of attacks by name, for command lines, sweeps and experiments; library code calls their functions.

`register(my_attack)` registers a new attack. Its name, hyperparameters, defaults and summary are read from the
function's signature, its docstring and its `declare` decorator; when it works and fails, from the docstring's
paragraphs "Works: ..." and "Fails: ...".
"""

import inspect
import re
import typing
from collections.abc import Mapping
from typing import NamedTuple

from jaxinvert.attacks import closed_form, optimization
from jaxinvert.attacks.problem import AttackFn, Problem, TextProblem, Traits, is_declared, traits_of
from jaxinvert.types import Attack, Scalar, SolveFn

_ALWAYS_READ = ("params", "update", "num_examples")
_HORIZON = "horizon"


class Entry(NamedTuple):
    """A registered attack.

    Attributes:
      name: name on command lines, such as "inverting-gradients".
      attack: the function.
      summary: one line for users, the first sentence of the docstring.
      hyperparameters: names and defaults of the keyword arguments annotated as `Scalar`; all may be traced.
      takes_horizon: whether it has the keyword argument `horizon`.
      traits: its declared requirements and abilities.
      works: when it works, the paragraph of the docstring that begins with "Works:"; empty without one.
      fails: when it fails, the paragraph that begins with "Fails:"; empty without one.
    """

    name: str
    attack: AttackFn
    summary: str
    hyperparameters: Mapping[str, float]
    takes_horizon: bool
    traits: Traits
    works: str = ""
    fails: str = ""

    @property
    def needs(self) -> tuple[str, ...]:
        """The fields of an observation that the attack reads."""
        return (*_ALWAYS_READ, *self.traits.reads)

    @property
    def abilities(self) -> tuple[str, ...]:
        """What the traits say beside `needs`, in words."""
        traits = self.traits
        said = {
            "needs an image generator": traits.generates,
            "simulates the client's whole training": traits.simulates,
            "restores the labels by itself": traits.restores_labels,
            "can optimize the labels instead of reading them": traits.joint_labels,
            "needs no labels and works for any loss": traits.any_loss,
            "uses earlier rounds if they were observed": traits.every_round,
            "can adapt to a known defense": traits.adapts,
        }
        return tuple(words for words, true in said.items() if true)

    def build(
        self,
        problem: Problem | TextProblem,
        hyperparameters: Mapping[str, Scalar] | None = None,
        horizon: Scalar | None = None,
    ) -> Attack | SolveFn:
        """Builds the attack for a problem.

        Args:
          problem: what the attack is built for.
          hyperparameters: by name; omitted ones have their defaults.
          horizon: number of steps over which the learning rate decays; ignored if the attack has no horizon.
        """
        options = dict(hyperparameters or {})
        if self.takes_horizon and horizon is not None:
            options[_HORIZON] = horizon
        return self.attack(problem, **options)


def entry_of(attack: AttackFn, *, name: str | None = None, summary: str | None = None) -> Entry:
    """Reads name, summary, hyperparameters, and when it works from an attack's function.

    Args:
      attack: `(problem, *, hyperparameters) -> Attack | SolveFn`.
      name: by default the function's name, with hyphens.
      summary: by default the first sentence of the docstring.

    Raises:
      ValueError: for a function without a parameter for the problem, or a hyperparameter without a default.

    >>> entry = entry_of(optimization.inverting_gradients)
    >>> entry.name, dict(entry.hyperparameters)
    ('inverting-gradients', {'tv': 0.01, 'learning_rate': 0.1})
    """
    function = getattr(attack, "func", attack)
    parameters = inspect.signature(attack).parameters
    if not parameters:
        raise ValueError(f"{function.__name__} takes no arguments, expected attack(problem, *, hyperparameters)")
    hints = typing.get_type_hints(function)
    scalars = {key: p for key, p in parameters.items() if hints.get(key) == Scalar and key != _HORIZON}
    if missing := [key for key, p in scalars.items() if p.default is inspect.Parameter.empty]:
        raise ValueError(f"{function.__name__}: hyperparameter {missing[0]} needs a default")
    return Entry(
        name=name or function.__name__.replace("_", "-"),
        attack=attack,
        summary=summary or first_sentence(function),
        hyperparameters={key: float(p.default) for key, p in scalars.items()},
        takes_horizon=_HORIZON in parameters,
        traits=traits_of(attack),
        works=_paragraph(function, "Works"),
        fails=_paragraph(function, "Fails"),
    )


def _paragraph(documented: object, name: str) -> str:
    """The paragraph of a docstring that begins with a name and a colon, without these, in one line; else empty."""
    found = re.search(rf"^{name}: (.*?)(?:\n\n|\Z)", inspect.getdoc(documented) or "", flags=re.DOTALL | re.MULTILINE)
    return " ".join(found[1].split()) if found else ""


def first_sentence(documented: object) -> str:
    """The first sentence of a docstring without its final period; empty without a docstring."""
    text = " ".join((inspect.getdoc(documented) or "").split("\n\n")[0].split())
    return re.split(r"(?<!et al)\. ", text)[0].removesuffix(".").replace("`", "")


REGISTRY: dict[str, Entry] = {}
"""Attacks on images by name; `register` adds to it."""
TEXT: dict[str, Entry] = {}
"""Attacks on text by name."""


def register(attack: AttackFn, *, name: str | None = None, summary: str | None = None) -> AttackFn:
    """Registers an attack by name for jobs, command lines, sweeps and audits; returns the attack.

    Raises:
      ValueError: see `entry_of`; also if another attack has the name.
    """
    entry = entry_of(attack, name=name, summary=summary)
    if entry.name in REGISTRY and REGISTRY[entry.name].attack is not attack:
        raise ValueError(f"another attack is already registered as {entry.name!r}")
    REGISTRY[entry.name] = entry
    return attack


for _package in (closed_form, optimization):
    for _name in _package.__all__:
        _attack = getattr(_package, _name)
        if is_declared(_attack) and traits_of(_attack).reconstructs == "images":
            register(_attack)
        elif is_declared(_attack) and traits_of(_attack).reconstructs == "text":
            TEXT[entry_of(_attack).name] = entry_of(_attack)
