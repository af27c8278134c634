"""The pages of `--help`: of all commands, and of one; readable at 80 columns."""

import shutil
import textwrap
from collections.abc import Iterable
from dataclasses import MISSING

from rich.text import Text

from jaxinvert.cli.commands import COMMANDS, SECTIONS, Command
from jaxinvert.cli.console import Terminal

_INDENT = 24
"""Columns before the explanation of an option."""


def show_overview(console: Terminal) -> None:
    """Prints all commands, by what they are for."""
    _usage(console, "jaxinvert COMMAND ...")
    _paragraph(console, "Measure what a federated-learning update leaks about its training data.")
    for title, names in SECTIONS.items():
        _title(console, title)
        for name in names:
            _entry(console, name, COMMANDS[name].summary, indent=16)
    _title(console, "help")
    _entry(console, "jaxinvert COMMAND --help", "the usual options of a command, and an example", indent=_INDENT + 8)
    _entry(console, "jaxinvert COMMAND --help-all", "all its options", indent=_INDENT + 8)
    _entry(console, "jaxinvert --version", "the version", indent=_INDENT + 8)
    _example(console, COMMANDS["invert"].example)


def show_page(console: Terminal, name: str, command: Command, *, everything: bool) -> None:
    """Prints what a command does and its options, the usual ones first.

    Args:
      console: where to print.
      name: of the command.
      command: the command.
      everything: whether all options are explained, by groups, or the rarer ones only listed.
    """
    from jaxinvert.cli.flags import explained, flags_of, summary_of  # loads JAX, which the overview does not need

    kind, _ = command.load()
    flags = flags_of(kind)
    words = [flag for flag in flags if flag.positional]
    options = {flag.name: flag for flag in flags if not flag.positional}
    usual = [options[one] for one in command.usual or options]
    _usage(console, " ".join([f"jaxinvert {name}", *(word.spelling for word in words), "[OPTIONS]"]))
    first, rest = summary_of(kind)
    _paragraph(console, first)
    if rest:
        _paragraph(console, rest)
    _example(console, command.example)
    if words:
        _title(console, "words")
        _entries(console, words)
    if usual:
        _title(console, "usual options" if command.usual else "options")
        _entries(console, usual)
    rarer: dict[str, list] = {}
    for flag in options.values():
        if flag not in usual:
            rarer.setdefault(flag.group or "others", []).append(flag)
    if not rarer:
        return
    if everything:
        of_groups = explained(kind)
        for group, members in rarer.items():
            _title(console, f"{group} options" if group != "others" else "other options", of_groups.get(group, ""))
            _entries(console, members)
        return
    _title(console, "other options", f"explained by `jaxinvert {name} --help-all`")
    for group, members in rarer.items():
        _entry(console, group, "  ".join(f"--{flag.name}" for flag in members), indent=16)


def _entries(console: Terminal, flags: Iterable) -> None:
    for flag in flags:
        _entry(console, flag.spelling, flag.text + _default(flag.default), indent=_INDENT)


def _default(value: object) -> str:
    if value is None or value is MISSING or value is False or value in ((), {}, ""):
        return ""
    shown = "yes" if value is True else " ".join(map(str, value)) if isinstance(value, tuple) else str(value)
    return f" (default: {shown})"


def _usage(console: Terminal, text: str) -> None:
    console.print(Text.assemble(("usage: ", "bold"), text), soft_wrap=True)


def _example(console: Terminal, text: str) -> None:
    console.print(Text.assemble(("\nexample: ", "bold"), text), soft_wrap=True)


def _title(console: Terminal, text: str, explanation: str = "") -> None:
    title = f"{text}: " if explanation else text
    lines = textwrap.wrap(f"{title}{explanation}", _width())
    console.print(Text.assemble("\n", (lines[0][: len(title)], "bold"), lines[0][len(title) :]), soft_wrap=True)
    for line in lines[1:]:
        console.print(line, soft_wrap=True)


def _paragraph(console: Terminal, text: str) -> None:
    console.print("\n" + textwrap.fill(text, _width()), soft_wrap=True)


def _entry(console: Terminal, name: str, text: str, *, indent: int) -> None:
    """Prints a name and its explanation beside it, or below it if the name is too long."""
    lines = textwrap.wrap(text, _width() - indent, break_on_hyphens=False) or [""]
    head = f"  {name}".ljust(indent)
    if len(head) > indent or not head.endswith(" "):
        console.print(head.rstrip(), soft_wrap=True)
        head = " " * indent
    console.print("\n".join([head + lines[0], *(" " * indent + line for line in lines[1:])]), soft_wrap=True)


def _width() -> int:
    return min(100, max(60, shutil.get_terminal_size().columns))
