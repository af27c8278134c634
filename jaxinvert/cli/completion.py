"""The command `jaxinvert completion`: prints a script with which a shell completes the command line.

The script holds all commands, options and names, so that it need not call this program, which takes seconds to start.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import tyro

from jaxinvert.cli.commands import COMMANDS
from jaxinvert.cli.flags import Flag, flags_of
from jaxinvert.cli.names import known_names

_PLAIN = re.compile(r"[A-Za-z0-9_.+-]+")
"""Words that no shell reads as anything else."""


@dataclass(frozen=True)
class Completion:
    """Print a script with which a shell completes commands, options and names of `jaxinvert`.

    Attributes:
      shell: bash, zsh or fish.
    """

    shell: tyro.conf.Positional[Literal["bash", "zsh", "fish"]]


class Words(NamedTuple):
    """What can stand on the command line of one command.

    Attributes:
      options: without dashes, with their explanations.
      values: the names that an option may be followed by; for an option with a value, empty if any may.
      several: options that may be followed by more than one value.
      own: words without an option's name.
    """

    options: dict[str, str]
    values: dict[str, tuple[str, ...]]
    several: tuple[str, ...]
    own: tuple[str, ...]


def show_completion(command: Completion, command_line: str) -> int:
    """Runs the command and returns its exit status."""
    del command_line
    lines = _fish() if command.shell == "fish" else _bash(for_zsh=command.shell == "zsh")
    print("\n".join([f"{'#compdef jaxinvert' if command.shell == 'zsh' else '#'} {_NOTE}", *lines]))
    return 0


_NOTE = "Made by `jaxinvert completion`; make it anew for another version."


def words_of(name: str) -> Words:
    """What can stand on the command line of this command."""
    flags = flags_of(COMMANDS[name].load()[0])
    options = [flag for flag in flags if not flag.positional]
    several = tuple(flag.name for flag in options if flag.least_and_most[1] is None)
    values = {flag.name: _values(flag) for flag in options if not flag.is_switch}
    own = [word for flag in flags if flag.positional for word in _values(flag)]
    second = [other.split()[1] for other in COMMANDS if other.startswith(f"{name} ")]
    explained = {flag.name: flag.text for flag in options}
    explained |= {f"no-{flag.name}": flag.text for flag in options if flag.is_switch and flag.default}
    helping = {"help": "show the usual options", "help-all": "show all options"}
    return Words({**explained, **helping}, values, several, (*own, *second))


def _values(flag: Flag) -> tuple[str, ...]:
    if flag.name == "kind":
        from jaxinvert.cli.listing import kinds

        return tuple(kinds())
    return tuple(word for word in flag.choices or known_names(flag.name) if _PLAIN.fullmatch(word))


_BASH = r"""_jaxinvert() {
  local cur="${COMP_WORDS[COMP_CWORD]}" command="${COMP_WORDS[1]}" known="" last="" i
  case "${COMP_WORDS[1]} ${COMP_WORDS[2]:-}" in
    TWO) command="${COMP_WORDS[1]} ${COMP_WORDS[2]}";;
  esac
  # The last option before the cursor, and how many words ago it was.
  for (( i = COMP_CWORD - 1; i > 1; i-- )); do
    case "${COMP_WORDS[i]}" in -*) last="${COMP_WORDS[i]}"; break;; esac
  done
  i=$(( COMP_CWORD - i ))
  if [ "${COMP_WORDS[COMP_CWORD-1]}" = "=" ]; then i=$(( i - 1 )); fi
  case "$cur" in =) cur="";; -*) last="";; esac
  if [ "$COMP_CWORD" -eq 1 ]; then known="FIRST"; fi
  case "$command $last" in
SEVERAL
  esac
  if [ -z "$known" ] && [ "$i" -eq 1 ]; then
    case "$command $last" in
SINGLE
    esac
  fi
  if [ -z "$known" ]; then
    case "$command" in
OPTIONS
    esac
  fi
  COMPREPLY=( $(compgen -W "$known" -- "$cur") )
}
complete -o default -F _jaxinvert jaxinvert"""


def _bash(*, for_zsh: bool) -> Iterator[str]:
    words = {name: words_of(name) for name in COMMANDS}
    first = dict.fromkeys(name.split()[0] for name in COMMANDS)
    of_command = {name: [*one.own, *(f"--{option}" for option in one.options)] for name, one in words.items()} | {
        "data": ["prepare"]
    }
    parts = {
        "TWO": "|".join(f'"{name}"' for name in COMMANDS if " " in name),
        "FIRST": " ".join([*first, "--help", "--version"]),
        "SEVERAL": _cases(_by_values(words, several=True)),
        "SINGLE": _cases(_by_values(words, several=False)),
        "OPTIONS": _cases({" ".join(known): f'"{name}"' for name, known in of_command.items()}),
    }
    if for_zsh:
        yield "autoload -U +X bashcompinit && bashcompinit"
    yield re.sub("|".join(parts), lambda found: parts[found[0]], _BASH)


def _cases(patterns: dict[str, str]) -> str:
    """Branches that set `known` to words, by the patterns of what they are for; " " is a value that nobody knows."""
    return "\n".join(f'      {pattern}) known="{known or " "}";;' for known, pattern in patterns.items())


def _by_values(words: dict[str, Words], *, several: bool) -> dict[str, str]:
    """Lists of names, each with the pattern of the commands and options that it is for."""
    found: dict[str, list[str]] = {}
    for name, one in words.items():
        for option, values in one.values.items():
            if (option in one.several) == several and (values or not several):
                found.setdefault(" ".join(values), []).append(f'"{name} --{option}"')
    return {values: "|".join(patterns) for values, patterns in found.items()}


def _fish() -> Iterator[str]:
    two = " ".join(f'"{name}"' for name in COMMANDS if " " in name)
    yield "function __jaxinvert_is"
    yield "    set -l words (commandline -opc)"
    yield '    set -l given "$words[2]"'
    yield f'    contains -- "$words[2] $words[3]" {two}; and set given "$words[2] $words[3]"'
    yield '    test "$given" = "$argv"'
    yield "end"
    begins = "complete -c jaxinvert -n 'test (count (commandline -opc)) -eq 1'"
    for name, command in COMMANDS.items():
        if " " not in name:
            yield f"{begins} -f -a {name} -d {_quoted(command.summary)}"
    yield f"{begins} -f -a data -d {_quoted('Store a data set.')}"
    yield "complete -c jaxinvert -n '__jaxinvert_is data' -f -a prepare"
    for name in COMMANDS:
        one = words_of(name)
        condition = f"complete -c jaxinvert -n '__jaxinvert_is {name}'"
        if one.own:
            no_files = "" if any(flag.kind is Path for flag in flags_of(COMMANDS[name].load()[0])) else " -f"
            yield f"{condition}{no_files} -a {_quoted(' '.join(one.own))}"
        for option, text in one.options.items():
            values = one.values.get(option)
            takes = "" if values is None else f" -x -a {_quoted(' '.join(values))}" if values else " -r"
            yield f"{condition} -l {option}{takes} -d {_quoted(_short(text))}"


def _short(text: str) -> str:
    """The beginning of an explanation."""
    return re.split(r"[;:.,](?: |$)", text, maxsplit=1)[0]


def _quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
