"""Configurations as fields with flat names: typing of values from YAML, and conversion to and from groups."""

import difflib
import functools
import reprlib
import types
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, fields, is_dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, TypeVar, get_args, get_origin, get_type_hints

Config = TypeVar("Config", bound=Any)
_MAX_INTEGER = 2**63
_MAX_NAME = 100


def flatten(config: Any, *, of: type | None = None) -> dict[str, Any]:
    """The fields of a configuration by flat names.

    A field that is a dataclass is replaced by its fields, in order. A field's flat name is its own name, or the name
    that `tyro.conf.arg(name=...)` gives it on the command line.

    Args:
      config: a dataclass, whose fields may be dataclasses.
      of: a base class of the configuration, to include only its fields; by default the configuration's class.
    """
    values = {}
    for place in places(of or type(config)):
        value = config
        for name in place.path:
            value = getattr(value, name)
        values[place.flat_name] = value
    return values


def build(config: type[Config], values: Mapping[str, Any], *, base: Config | None = None) -> Config:
    """Builds a configuration from fields by flat names.

    Args:
      config: a dataclass, whose fields may be dataclasses.
      values: the values, by flat name.
      base: a configuration that provides the other values; by default the defaults of the class.

    Raises:
      ValueError: for an unknown name, or from the class's own checks.
    """
    paths = {place.flat_name: place.path for place in places(config)}
    for name in values:
        if name not in paths:
            raise _unknown_field(name, paths)
    changes: dict[str, Any] = {}
    for name, value in values.items():
        *group, own = paths[name]
        if group:
            changes.setdefault(group[0], {})[own] = value
        else:
            changes[own] = value
    defaults = {item.name: default_of(item) for item in fields(config)} if base is None else vars(base)
    for name, change in changes.items():
        if is_dataclass(defaults[name]):
            changes[name] = replace(defaults[name], **change)
    known = {item.name: defaults[item.name] for item in fields(config)}
    return config(**{**known, **changes})


def typed(config: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """Converts values from YAML to the types of a dataclass's fields, since YAML reads `1e-3` and paths as text.

    Args:
      config: a dataclass, whose fields may be dataclasses.
      values: the values, by flat name.

    Raises:
      ValueError: for an unknown field, or a value of the wrong type.
    """
    hints = {place.flat_name: place.hint for place in places(config)}
    return {name: _typed(hints, name, value) for name, value in values.items()}


class Place(NamedTuple):
    """The field of a flat name.

    Attributes:
      flat_name: its name on the command line and in YAML files, with `_`.
      path: its path through nested dataclasses.
      hint: its type.
      notes: what its type is annotated with.
      owner: the dataclass of whose fields it is one.
    """

    flat_name: str
    path: tuple[str, ...]
    hint: Any
    notes: tuple[Any, ...]
    owner: type


@functools.cache
def places(config: type) -> tuple[Place, ...]:
    """The fields of a dataclass and of those in it, in order."""
    hints, found = get_type_hints(config, include_extras=True), []
    for item in fields(config):
        hint, flat_name, notes = hints[item.name], item.name, []
        if get_origin(hint) is Annotated:
            hint, *notes = get_args(hint)
            flat_name = next((note.name for note in notes if getattr(note, "name", None)), flat_name)
        if is_dataclass(hint):
            inner = places(hint)  # type: ignore[arg-type]
            found += [place._replace(path=(item.name, *place.path)) for place in inner]
        else:
            found.append(Place(flat_name.replace("-", "_"), (item.name,), hint, tuple(notes), config))
    return tuple(found)


def default_of(item: Any) -> Any:
    """The default of a dataclass's field."""
    return item.default if item.default_factory is MISSING else item.default_factory()


def nearest(given: object, known: Iterable[str]) -> str:
    """The question "; did you mean ...?", or nothing if no known name resembles the given one.

    >>> nearest("Spectrl", ["dlg", "spectral"])
    '; did you mean spectral?'
    """
    folded = {name.lower(): name for name in known}
    close = difflib.get_close_matches(str(given)[:_MAX_NAME].lower(), folded, n=1, cutoff=0.7)
    return f"; did you mean {folded[close[0]]}?" if close else ""


def _unknown_field(name: object, known: Iterable[str]) -> ValueError:
    known = list(known)
    return ValueError(f"there is no field {name!r}{nearest(name, known) or '; there are ' + ', '.join(known)}")


def in_words(wanted: Any) -> str:
    """A type as people who write YAML or a command line say it.

    >>> in_words(tuple[int, ...] | None)
    'a list of whole numbers'
    """
    if get_origin(wanted) is tuple:
        one = in_words(get_args(wanted)[0])
        return f"a list of {one.partition(' ')[2] + 's' if one.startswith('a ') else one}"
    if get_origin(wanted) is dict:
        return "names with numbers, such as {tv: 0.01}"
    if get_origin(wanted) is Literal:
        *others, last = map(str, get_args(wanted))
        return f"{', '.join(others)} or {last}" if others else last
    if isinstance(wanted, types.UnionType):
        return " or ".join(in_words(one) for one in get_args(wanted) if one is not type(None))
    return _WORDS.get(wanted, getattr(wanted, "__name__", str(wanted)))


_WORDS = {bool: "true or false", float: "a number", int: "a whole number", Path: "a path", str: "text"}


def _typed(hints: Mapping[str, Any], name: str, value: Any) -> Any:
    if name not in hints:
        raise _unknown_field(name, hints)
    wanted = hints[name]
    options = get_args(wanted) if isinstance(wanted, types.UnionType) else (wanted,)
    for option in options:
        try:
            return _as_type(option, value)
        except (TypeError, ValueError, OverflowError):
            continue
    raise ValueError(f"{name} is {reprlib.repr(value)}, expected {in_words(wanted)}")


def _as_type(wanted: Any, value: Any) -> Any:
    if get_origin(wanted) is Literal:
        if value in get_args(wanted):
            return value
    elif get_origin(wanted) is dict:
        if isinstance(value, dict) and all(isinstance(key, str) for key in value):
            return {key: _as_type(float, number) for key, number in value.items()}
    elif get_origin(wanted) is tuple:
        if isinstance(value, list):
            return tuple(_as_type(get_args(wanted)[0], item) for item in value)
    elif wanted is type(None):
        if value is None:
            return None
    elif wanted is float:
        if isinstance(value, int | float | str) and not isinstance(value, bool):
            return float(value)
    elif wanted is Path:
        if isinstance(value, str | Path):
            return Path(value)
    elif wanted is int:
        if isinstance(value, int) and not isinstance(value, bool) and abs(value) < _MAX_INTEGER:
            return value
    elif isinstance(value, wanted) and (wanted is bool or not isinstance(value, bool)):
        return value
    raise TypeError
