"""The options of a command, read off its dataclass: names, types, defaults, and the explanations of docstrings."""

import functools
import inspect
import re
import types
from collections.abc import Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args, get_origin

import tyro

from jaxinvert.jobs.yaml_fields import default_of, places


class Flag(NamedTuple):
    """One option, or one word without a name.

    Attributes:
      name: such as `num-examples`.
      group: the actor that it belongs to, such as `client`; empty for the command itself.
      hint: the type of its value.
      default: its default.
      text: its explanation.
      positional: whether it is a word without a name.
    """

    name: str
    group: str
    hint: Any
    default: Any
    text: str
    positional: bool

    @property
    def kind(self) -> Any:
        """Its type without `None`."""
        options = get_args(self.hint) if isinstance(self.hint, types.UnionType) else (self.hint,)
        return next(option for option in options if option is not type(None))

    @property
    def is_switch(self) -> bool:
        """Whether it takes no value."""
        return self.kind is bool

    @property
    def is_required(self) -> bool:
        """Whether it has no default."""
        return self.default is MISSING

    @property
    def choices(self) -> tuple[str, ...]:
        """All its possible values, if they are a fixed few."""
        return get_args(self.kind) if get_origin(self.kind) is Literal else ()

    @property
    def least_and_most(self) -> tuple[int, int | None]:
        """How many words it takes; `None` is any number."""
        if self.is_switch:
            return 0, 0
        if get_origin(self.kind) is dict or (get_origin(self.kind) is tuple and get_args(self.kind)[-1] is Ellipsis):
            return 0, None
        size = len(get_args(self.kind)) if get_origin(self.kind) is tuple else 1
        return size, size

    @property
    def spelling(self) -> str:
        """How it is written, with a placeholder for its value."""
        if self.positional:
            return self.name.upper() if self.is_required else f"[{self.name.upper()}]"
        if self.is_switch:
            return f"--[no-]{self.name}" if self.default is True else f"--{self.name}"
        return f"--{self.name} {_placeholder(self.kind)}"


@functools.cache
def flags_of(kind: type) -> tuple[Flag, ...]:
    """The options of a command, in the order of its fields."""
    by_name = {item.name: item for item in fields(kind)}
    found = []
    for place in places(kind):
        first, *inside = place.path
        group, value = first if inside else "", default_of(by_name[first])
        for name in inside:
            value = getattr(value, name)
        text = explained(place.owner).get(place.path[-1], "")
        positional = tyro.conf.Positional in place.notes
        found.append(Flag(place.flat_name.replace("_", "-"), group, place.hint, value, text, positional))
    return tuple(found)


@functools.cache
def explained(kind: type) -> Mapping[str, str]:
    """The explanations of a dataclass's fields, from the `Attributes` of its docstring and those it inherits from."""
    found = {}
    for base in reversed(kind.__mro__):
        section = (inspect.cleandoc(vars(base).get("__doc__") or "")).partition("\nAttributes:\n")[2]
        for entry in re.split(r"^  (?=\w+: )", section, flags=re.MULTILINE)[1:]:
            name, _, text = entry.partition(": ")
            found[name] = " ".join(text.split())
    return found


def summary_of(kind: type) -> tuple[str, str]:
    """The first paragraph of a docstring, and what follows it up to its `Attributes`."""
    text = (inspect.getdoc(kind) or "").partition("\nAttributes:\n")[0].strip()
    first, _, rest = text.partition("\n\n")
    return " ".join(first.split()), " ".join(rest.split())


def _placeholder(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return "|".join(map(str, get_args(kind)))
    if get_origin(kind) is dict:
        return "NAME X ..."
    if get_origin(kind) is tuple:
        one, *others = get_args(kind)
        return f"{_placeholder(one)} ..." if Ellipsis in others else " ".join(map(_placeholder, (one, *others)))
    return {int: "N", float: "X", Path: "PATH"}.get(kind, "NAME")
