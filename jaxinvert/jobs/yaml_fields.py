"""Fields of configurations that people write as YAML: read without trust, and given the types they should have."""

import reprlib
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import yaml

_MAX_FILE_BYTES = 2**20


def read_yaml(file: Path | str) -> dict[str, Any]:
    """Reads a YAML file of named fields: at most a megabyte, no tags that make objects, no aliases.

    Raises:
      ValueError: if it is no such file.
    """
    file = Path(file)
    if not file.is_file():
        raise ValueError(f"{file} is not a file")
    with open(file, "rb") as opened:
        text = opened.read(_MAX_FILE_BYTES + 1)
    if len(text) > _MAX_FILE_BYTES:
        raise ValueError(f"{file} is larger than the {_MAX_FILE_BYTES} bytes that a file of fields may have")
    try:
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, Loader=yaml.SafeLoader)):
            raise ValueError("it repeats a part by an alias (*name), which could stand for any amount")
        content = yaml.safe_load(text)
    except Exception as error:  # whatever a constructor raises for a value that its tag does not fit
        raise ValueError(f"{file} is not readable YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{file} holds {type(content).__name__}, expected fields such as 'attack: dlg'")
    return content


def typed(config: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """The values as the fields of a dataclass want them; YAML reads `1e-3` as text and knows no paths.

    Raises:
      ValueError: if there is no such field, or it wants something else.
    """
    hints = get_type_hints(config)
    return {name: _typed(hints, name, value) for name, value in values.items()}


def _typed(hints: Mapping[str, Any], name: str, value: Any) -> Any:
    if name not in hints:
        raise ValueError(f"there is no field {name!r}; there are {', '.join(hints)}")
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
    elif isinstance(value, wanted) and (wanted is bool or not isinstance(value, bool)):
        return value
    raise TypeError
