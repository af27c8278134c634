"""The command `jaxinvert list`: what can be named on the command line, all of a kind, or one in detail."""

import difflib
import inspect
import json
import re
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import tyro
from rich.table import Table
from rich.text import Text

from jaxinvert import data, inspection, labels, models
from jaxinvert.attacks import adaptive, objectives, registry
from jaxinvert.cli.console import BadInputError, Terminal
from jaxinvert.data.tabular import TABLES
from jaxinvert.defenses import registry as defenses
from jaxinvert.observation import threat_models
from jaxinvert.priors import regularizers


@dataclass(frozen=True)
class List:
    """Show attacks, defenses, threat models, label rules, models, data sets, checks and other things by name.

    Attributes:
      kind: one kind, such as "attacks" or "attack", with a line for each; by default the names of all.
      name: one thing of that kind, shown in detail: what it reads, its settings, and when it works and fails.
      json: print JSON for other programs.
    """

    kind: tyro.conf.Positional[str] = ""
    name: tyro.conf.Positional[str] = ""
    json: bool = False


class Listed(NamedTuple):
    """One thing that has a name.

    Attributes:
      summary: one line.
      settings: names and defaults.
      reads: what of an observation it reads, or is granted.
      documented: the object with the docstring, `None` if there is none.
      abilities: what an attack can do and needs beside that.
      works: when an attack works.
      fails: when it fails.
    """

    summary: str
    settings: Mapping[str, float] = {}
    reads: tuple[str, ...] = ()
    documented: Any = None
    abilities: tuple[str, ...] = ()
    works: str = ""
    fails: str = ""


def show_list(command: List, command_line: str) -> int:
    """Runs the command; unknown kinds and names are refused with the nearest known ones."""
    del command_line
    console, kinds = Terminal(), _all()
    if command.kind:
        singular = {kind.removesuffix("s"): kind for kind in kinds}
        if homes := [
            of for of, kind in singular.items() if command.kind in kinds[kind] and command.kind not in kinds
        ]:
            also = " or ".join(f"jaxinvert list {of.replace(' ', '-')} {command.kind}" for of in homes)
            raise BadInputError(f"{command.kind!r} is a name, and its kind comes first: {also}")
        kind = _known("kind", command.kind.replace("-", " "), {**{kind: kind for kind in kinds}, **singular})
        kinds = {kind: kinds[kind]}
        if command.name:
            found = _known(kind.removesuffix("s"), command.name, kinds[kind])
            if command.json:
                return _print_json({"name": command.name, **_plain(found)})
            return _show_one(console, command.name, found)
    if command.json:
        return _print_json({kind: {name: _plain(one) for name, one in of.items()} for kind, of in kinds.items()})
    if not command.kind:
        return _show_names(console, kinds)
    for kind, entries in kinds.items():
        table = Table(
            title=kind, title_justify="left", title_style="bold", show_header=False, box=None, padding=(0, 2)
        )
        for name, one in entries.items():
            table.add_row(name, Text(_in_a_line(one)))
        console.print(table)
    return 0


_MEANINGS = {
    "attacks": "what tries to reconstruct private data, `--attack`",
    "text attacks": "what tries to reconstruct private text, `tokens --attack`",
    "defenses": "what clients do to their updates, `--defense` or `--defenses`",
    "threat models": "what the attacker is granted, `--threat-model`",
    "label rules": "how labels are read off an update, `--label-rule`",
    "models": "the clients' networks, `--model`; numbers set sizes, as in mlp-1024",
    "data sets": "the clients' private images, `--data`",
    "checks": "what `jaxinvert inspect` measures",
    "tables": "the clients' private records, `--table`",
    "objectives": "what attacks minimize; of the Python package",
    "regularizers": "what attacks prefer in images; of the Python package",
}
"""What each kind is, and where its names are given."""


def _show_names(console: Terminal, kinds: Mapping[str, Mapping[str, Listed]]) -> int:
    """Prints the names of all kinds, and how to show more."""
    for kind, entries in kinds.items():
        console.print(Text.assemble((kind, "bold"), f": {_MEANINGS[kind]}"), soft_wrap=True)
        names = textwrap.fill("  ".join(entries), min(100, max(60, console.width)) - 2, break_on_hyphens=False)
        console.print(Text(textwrap.indent(names, "  ")), soft_wrap=True)
    console.print("\n`jaxinvert list KIND` says what each is, `jaxinvert list KIND NAME` explains one")
    return 0


def _known(what: str, given: str, known: Mapping[str, Any]) -> Any:
    if given in known:
        return known[given]
    close = difflib.get_close_matches(given, known, n=3) or sorted(known)
    raise BadInputError(f"unknown {what} {given!r}; did you mean {', '.join(close)}?")


def _print_json(content: Any) -> int:
    print(json.dumps(content, indent=1))
    return 0


def _plain(one: Listed) -> dict[str, Any]:
    plain = {"summary": one.summary, "settings": dict(one.settings), "reads": list(one.reads)}
    of_attack = {"abilities": list(one.abilities), "works": one.works, "fails": one.fails}
    return plain | {name: value for name, value in of_attack.items() if value}


def _in_a_line(one: Listed) -> str:
    settings = ", ".join(f"{name} {value:g}" for name, value in one.settings.items())
    return f"{one.summary}; settings: {settings}" if settings else one.summary


def _show_one(console: Terminal, name: str, one: Listed) -> int:
    console.print(Text.assemble((name, "bold"), f": {one.summary}"))
    if one.reads:
        console.print(Text(f"reads {'; '.join((', '.join(one.reads), *one.abilities))}"))
    for name, condition in (("works", one.works), ("fails", one.fails)):
        if condition:
            console.print(Text.assemble((name, "bold"), f" {condition}"))
    for setting, value in one.settings.items():
        console.print(Text(f"  {setting} {value:g}"))
    if text := _explanation(one.documented):
        for paragraph in text.split("\n\n"):
            lines = paragraph.splitlines()
            laid_out = any(line.startswith((" ", "|", "-", "*")) for line in lines)  # a table, a list or an equation
            console.print(Text("\n" + ("\n" if laid_out else " ").join(lines)))
    return 0


def _explanation(documented: Any) -> str:
    """What a docstring says after its first sentence and before its arguments, else the docstring of the module.

    Without when an attack works and fails, which is shown anyway.
    """
    function = getattr(documented, "func", documented)
    if function is None:
        return ""
    body = (inspect.getdoc(function) or "").partition("\n\n")[2]
    own = re.split(r"^(?:Args|Returns|Raises|Attributes):$", body, maxsplit=1, flags=re.MULTILINE)[0]
    own = "\n\n".join(part for part in own.strip().split("\n\n") if not part.startswith(("Works:", "Fails:")))
    return own or (inspect.getdoc(inspect.getmodule(function)) or "").strip()


def kinds() -> list[str]:
    """The kinds of things that have names, as they are written on the command line."""
    return [kind.removesuffix("s").replace(" ", "-") for kind in _all()]


def _all() -> dict[str, dict[str, Listed]]:
    return {
        "attacks": {
            name: Listed(
                entry.summary,
                entry.hyperparameters,
                entry.needs,
                entry.attack,
                entry.abilities,
                entry.works,
                entry.fails,
            )
            for name, entry in sorted(registry.REGISTRY.items())
        },
        "text attacks": {
            name: Listed(entry.summary, entry.hyperparameters, entry.needs, entry.attack)
            for name, entry in sorted(registry.TEXT.items())
        },
        "defenses": {
            name: Listed(
                f"{recipe.summary}; adaptive attacker: "
                + (adaptive.COUNTERS[name].summary if name in adaptive.COUNTERS else "none known"),
                {own: parameter.default for own, parameter in recipe.parameters.items()},
            )
            for name, recipe in defenses.REGISTRY.items()
        },
        "threat models": {
            name: Listed("grants " + ", ".join(model.granted), reads=tuple(model.granted))
            for name, model in threat_models.LADDER.items()
        },
        "label rules": {
            name: Listed(
                rule.summary, reads=tuple(rule.needs), documented=getattr(labels, name.replace("-", "_"), None)
            )
            for name, rule in labels.REGISTRY.items()
        },
        "models": {
            **{name: _documented(factory) for name, factory in models.REGISTRY.items()},
            "MODULE:FUNCTION": Listed("your own function that returns a model; importing the module runs its code"),
        },
        "data sets": {
            **{name: Listed("") for name in data.names()},
            "FOLDER": Listed("any folder of images"),
            "FILE.npz": Listed("arrays"),
        },
        "checks": {name: Listed(check.measures) for name, check in inspection.CHECKS.items()},
        "tables": {name: Listed("classes: " + ", ".join(one.classes)) for name, one in TABLES.items()},
        "objectives": {name: _documented(one) for name, one in objectives.REGISTRY.items()},
        "regularizers": {name: _documented(one) for name, one in regularizers.REGISTRY.items()},
    }


def _documented(function: Any) -> Listed:
    """A function and the first sentence of its docstring; of a `functools.partial`, with what it sets."""
    fixed = ", ".join(f"{name} {value}" for name, value in getattr(function, "keywords", {}).items())
    sentence = registry.first_sentence(getattr(function, "func", function))
    return Listed(f"{sentence}; {fixed}" if fixed else sentence, documented=function)
