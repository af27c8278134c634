"""Configurations as fields with flat names: typing of values from YAML, and conversion to and from groups."""

import functools
import reprlib
import types
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, fields, is_dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, TypeVar, get_args, get_origin, get_type_hints

Config = TypeVar("Config", bound=Any)
_MAX_INTEGER = 2**63


def flatten(config: Any, *, of: type | None = None) -> dict[str, Any]:
    """The fields of a configuration by flat names.

    A field that is a dataclass is replaced by its fields, in order. A field's flat name is its own name, or the name
    that `tyro.conf.arg(name=...)` gives it on the command line.

    Args:
      config: a dataclass, whose fields may be dataclasses.
      of: a base class of the configuration, to include only its fields; by default the configuration's class.
    """
    values = {}
    for place in _places(of or type(config)):
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
    places = {place.flat_name: place.path for place in _places(config)}
    for name in values:
        if name not in places:
            raise _unknown_field(name, places)
    changes: dict[str, Any] = {}
    for name, value in values.items():
        *group, own = places[name]
        if group:
            changes.setdefault(group[0], {})[own] = value
        else:
            changes[own] = value
    defaults = {item.name: _default_of(item) for item in fields(config)} if base is None else vars(base)
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
    hints = {place.flat_name: place.hint for place in _places(config)}
    return {name: _typed(hints, name, value) for name, value in values.items()}


class _Place(NamedTuple):
    """The field of a flat name: its path through nested dataclasses, and its type."""

    flat_name: str
    path: tuple[str, ...]
    hint: Any


@functools.cache
def _places(config: type) -> tuple[_Place, ...]:
    hints, places = get_type_hints(config, include_extras=True), []
    for item in fields(config):
        hint, flat_name = hints[item.name], item.name
        if get_origin(hint) is Annotated:
            hint, *notes = get_args(hint)
            flat_name = next((note.name for note in notes if getattr(note, "name", None)), flat_name)
        if is_dataclass(hint):
            inner = _places(hint)  # type: ignore[arg-type]
            places += [_Place(place.flat_name, (item.name, *place.path), place.hint) for place in inner]
        else:
            places.append(_Place(flat_name.replace("-", "_"), (item.name,), hint))
    return tuple(places)


def _default_of(item: Any) -> Any:
    return item.default if item.default_factory is MISSING else item.default_factory()


def _unknown_field(name: object, known: Iterable[str]) -> ValueError:
    return ValueError(f"there is no field {name!r}; there are {', '.join(known)}")


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
    raise ValueError(f"{name} is {reprlib.repr(value)}, expected {getattr(wanted, '__name__', str(wanted))}")


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
