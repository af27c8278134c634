"""Parses the words after a command; every word that it cannot take is one error, with the nearest remedy.

The words are checked here against the command's options, and converted by tyro, whose own messages are boxes.
"""

import contextlib
import difflib
import io
import reprlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, get_args, get_origin

import tyro

from jaxinvert.cli.commands import COMMANDS
from jaxinvert.cli.console import BadInputError
from jaxinvert.cli.flags import Flag, flags_of
from jaxinvert.cli.names import flags_that_take, known_names
from jaxinvert.jobs.yaml_fields import in_words, nearest

_RENAMED = {"law": "distribution"}
"""Old names of options and their new names."""

_SYNONYMS = {
    "batch": "num-examples",
    "batch-size": "num-examples",
    "batchsize": "num-examples",
    "clients": "targets",
    "dataset": "data",
    "defence": "defense",
    "epochs": "local-epochs",
    "examples": "num-examples",
    "folder": "out",
    "image-size": "size",
    "iterations": "steps",
    "iters": "steps",
    "learning-rate": "lr",
    "max-iterations": "steps",
    "method": "attack",
    "n": "num-examples",
    "net": "model",
    "network": "model",
    "num-clients": "targets",
    "num-images": "num-examples",
    "num-iterations": "steps",
    "num-restarts": "restarts",
    "num-steps": "steps",
    "num-targets": "targets",
    "o": "out",
    "optimizer": "local-optimizer",
    "output": "out",
    "output-dir": "out",
    "tasks": "targets",
    "trials": "restarts",
    "weights": "checkpoint",
}
"""What other tools call an option."""

_OF_DEVICES = "JAX uses the accelerator that it finds; JAX_PLATFORMS=cpu in the environment keeps to the CPU"
_ANSWERS = {
    **dict.fromkeys(("cpu", "cuda", "device", "gpu", "tpu"), _OF_DEVICES),
    **dict.fromkeys(("config", "config-file", "yaml"), "only audits and sweeps read a file, named without an option"),
    **dict.fromkeys(("log-level", "progress", "quiet", "verbose"), "progress is always shown, in lines where piped"),
}
"""Options of other tools for which there is none."""


def parse(name: str, words: Sequence[str]) -> Any:
    """The dataclass of a command, with the values that the words give its fields.

    Args:
      name: of the command.
      words: what follows it on the command line.

    Raises:
      BadInputError: for words that the command does not take.
    """
    kind, _ = COMMANDS[name].load()
    _check(name, flags_of(kind), words)
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            parsed = tyro.cli(kind, prog=f"jaxinvert {name}", args=list(words), config=(tyro.conf.OmitArgPrefixes,))
    except SystemExit as error:  # what the check let through
        raise BadInputError(_in_one_line(said.getvalue())) from error
    sys.stderr.write(said.getvalue())  # warnings
    return parsed


def _in_one_line(box: str) -> str:
    return " ".join("".join(" " if "\u2500" <= c <= "\u257f" else c for c in box).split())


def _check(name: str, flags: Sequence[Flag], words: Sequence[str]) -> None:
    """Raises BadInputError for the first word that is no option, and no value of one."""
    options = {flag.name: flag for flag in flags if not flag.positional}
    expected = iter([flag for flag in flags if flag.positional])
    for word, values in _grouped(words):
        if word is not None:
            flag, negated = _option(name, options, word)
            _, equals, value = word.partition("=")
            if flag.is_switch:
                if equals:
                    raise BadInputError(f"{word}: an option without a value: give --{flag.name} or --no-{flag.name}")
            elif negated:
                raise BadInputError(f"{word.partition('=')[0]}: only options without a value can be negated")
            else:
                values = _own(flag, ([value] if equals else []) + values, with_equals=bool(equals))
        for stray in values:
            if (place := next(expected, None)) is None:
                raise BadInputError(_about_stray(name, options, stray, after=word))
            _check_value(place, stray)
    for missing in expected:
        if missing.is_required:
            what = f"{missing.name.upper()}: {missing.text}"
            raise BadInputError(f"{name} needs {what} For example: {COMMANDS[name].example}")


def _grouped(words: Sequence[str]) -> Iterator[tuple[str | None, list[str]]]:
    """Every option with the words up to the next one; `None` for those before the first."""
    option, values = None, []
    for word in words:
        if word.startswith("-") and len(word) > 1 and not _is_number(word):
            yield option, values
            option, values = word, []
        else:
            values.append(word)
    yield option, values


def _option(name: str, options: Mapping[str, Flag], word: str) -> tuple[Flag, bool]:
    """The option of a word such as `--num_examples=2`, and whether the word negates it."""
    given = word.partition("=")[0]
    own = given.lstrip("-").replace("_", "-")
    if given.startswith("--"):
        if own in options:
            return options[own], False
        if own.startswith("no-") and own[3:] in options:
            return options[own[3:]], True
    raise BadInputError(_about_unknown(name, options, given, own))


def _about_unknown(name: str, options: Mapping[str, Flag], given: str, own: str) -> str:
    shown = _shown(given)
    if own in _RENAMED:
        return f"{given} is now --{_RENAMED[own]}"
    if own in options:
        return f"unknown option {shown}: an option of more than one letter has two dashes: --{own}"
    lower = own.lower()
    likely = _SYNONYMS.get(lower)
    if likely is None and lower not in _ANSWERS:
        likely = next(iter(difflib.get_close_matches(lower, options, n=1, cutoff=0.7)), None)
    if likely is not None and likely in options:
        return f"unknown option {shown}; did you mean --{likely} ({_in_short(options[likely])})?"
    if lower in _ANSWERS:
        return f"unknown option {shown}: {_ANSWERS[lower]}"
    for flag, of in (("settings", "attack"), ("defense-settings", "defense")):
        owners = known_names(of) if flag in options else {}
        if having := [one for one, settings in owners.items() if lower.replace("-", "_") in settings]:
            return (
                f"unknown option {shown}; it is a setting of the {of} {having[0]}: "
                f"--{of} {having[0]} --{flag} {lower.replace('-', '_')} X"
            )
    if name == "sweep" and lower in {flag.name for flag in flags_of(COMMANDS["invert"].load()[0])}:
        return f"unknown option {shown}; it is a field of the sweep's file: {lower.replace('-', '_')}: VALUE"
    elsewhere = [
        other for other in COMMANDS if any(lower == flag.name for flag in flags_of(COMMANDS[other].load()[0]))
    ]
    if elsewhere:
        return f"unknown option {shown}; {name} has none, but {', '.join(elsewhere[:4])} {_has(elsewhere)}"
    close = [one for one in options if lower in one.split("-")] or difflib.get_close_matches(lower, options, n=2)
    also = f"did you mean {' or '.join(f'--{one}' for one in close[:3])}? " if close else ""
    return f"unknown option {shown}; {also}`jaxinvert {name} --help-all` explains all options"


def _in_short(flag: Flag) -> str:
    return flag.text.partition(";")[0].rstrip(".")


def _has(names: Sequence[str]) -> str:
    return "has" if len(names) == 1 else "have"


def _own(flag: Flag, values: list[str], *, with_equals: bool) -> list[str]:
    """Checks the values that belong to an option, and returns the others, which may be words without a name."""
    least, most = flag.least_and_most
    if len(values) < least:
        what = f"is followed by {len(values)} values" if values else "has no value"
        raise BadInputError(f"--{flag.name} {what}, expected {flag.spelling} ({_in_short(flag)})")
    most = 1 if with_equals else len(values) if most is None else most
    own = values[:most]
    if get_origin(flag.kind) is dict:
        if len(own) % 2:
            raise BadInputError(
                f"--{flag.name} is {_shown(' '.join(own))}, expected pairs of a name and a number, such as tv 0.01"
            )
        for number in own[1::2]:
            _check_type(_name_of(flag), float, number)
    else:
        types = get_args(flag.kind) if get_origin(flag.kind) is tuple else (flag.kind,)
        for number, value in enumerate(own):
            one = types[0] if Ellipsis in types else types[number]
            _check_value(flag._replace(hint=one | None if type(None) in get_args(flag.hint) else one), value)
    return values[most:]


def _check_value(flag: Flag, value: str) -> None:
    if value == "None" and type(None) in get_args(flag.hint):
        return
    if flag.choices and value not in flag.choices:
        also = nearest(value, flag.choices)
        raise BadInputError(f"{_name_of(flag)} is {_shown(value)}, expected {in_words(flag.kind)}{also}")
    _check_type(_name_of(flag), flag.kind, value)


def _name_of(flag: Flag) -> str:
    return flag.name if flag.positional else f"--{flag.name}"


def _check_type(name: str, kind: Any, value: str) -> None:
    if kind not in (int, float):
        return
    try:
        kind(value)
    except ValueError:
        raise BadInputError(f"{name} is {_shown(value)}, expected {in_words(kind)}") from None


def _about_stray(name: str, options: Mapping[str, Flag], word: str, *, after: str | None) -> str:
    """What to do about a word that belongs to nothing."""
    sets = [flag for flag in flags_that_take(word) if flag in options]
    if sets:
        return f"{name} takes no word {_shown(word)} by itself; did you mean --{sets[0]} {word}?"
    if after is not None:
        own = after.partition("=")[0].lstrip("-")
        takes = "no value" if own in options and options[own].is_switch else "one value"
        return f"{_shown(word)} after {after} belongs to no option: {after.partition('=')[0]} takes {takes}"
    return f"{name} takes no word {_shown(word)} without an option's name; for example: {COMMANDS[name].example}"


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def _shown(word: str) -> str:
    return reprlib.repr(word)
