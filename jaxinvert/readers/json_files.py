r"""Reads JSON from untrusted files: bounded size and depth, no repeated names, finite numbers, valid Unicode.

The standard parser accepts all of these, and each surprises later code: `NaN`, `1e999`, integers of any length, lone
surrogates ("\ud800"), which no terminal or file can encode, and a thousand nested lists.
"""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxinvert.escaping import visible

MAX_BYTES = 64 << 20
"""A longer file is rejected before it is parsed."""
MAX_DEPTH = 32
"""JSON nested deeper is rejected."""
_LARGEST_INTEGER = 2**64
_MAX_MESSAGE = 1500


def read_json(path: Path, *, max_bytes: int = MAX_BYTES, max_depth: int = MAX_DEPTH) -> Any:
    """Reads a JSON file.

    Args:
      path: the file.
      max_bytes: limit on its size.
      max_depth: limit on the objects and lists inside one another.

    Raises:
      FileNotFoundError: if there is no such file.
      ValueError: if it is no regular file, no JSON, or violates a limit; the message names it.
    """
    try:
        return parse_json(read_regular(path, max_bytes=max_bytes), max_depth=max_depth)
    except FileNotFoundError:
        raise
    except (ValueError, OSError) as error:
        raise ValueError(f"cannot read {path}: {printable(str(error))}") from error


def read_regular(path: Path, *, max_bytes: int) -> bytes:
    """The content of a regular file: reading a device may never end, and opening a pipe may never begin.

    Raises:
      FileNotFoundError: if there is no such file.
      ValueError: if it is no regular file, or longer than `max_bytes`.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"there is no file {path}")
    if not path.is_file():
        raise ValueError("it is not a regular file")
    with open(path, "rb") as file:
        content = file.read(max_bytes + 1)
    if len(content) > max_bytes:
        raise ValueError(f"it is larger than the limit of {max_bytes:,} bytes")
    return content


def parse_json(content: bytes | str, *, max_depth: int = MAX_DEPTH) -> Any:
    """Parses JSON.

    Raises:
      ValueError: if it is no JSON or violates a limit.
    """
    try:
        found = json.loads(
            content,
            object_pairs_hook=_without_repetition,
            parse_constant=_no_number,
            parse_float=_float,
            parse_int=_integer,
        )
    except RecursionError as error:
        raise ValueError(f"it is nested deeper than the limit of {max_depth}") from error
    depth, level = 0, [found]
    while level:
        for value in level:
            for text in (value, *value) if isinstance(value, dict) else (value,):
                if isinstance(text, str) and not is_unicode(text):
                    raise ValueError(f"the text {text[:80]!r} has a lone surrogate, which is no character")
        if depth == max_depth and any(isinstance(value, dict | list) for value in level):
            raise ValueError(f"it is nested deeper than the limit of {max_depth}")
        depth, level = depth + 1, [child for value in level for child in _children(value)]
    return found


def is_unicode(text: str) -> bool:
    """Whether a text can be encoded: one with a lone surrogate cannot be written or printed."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def printable(text: str, *, limit: int = _MAX_MESSAGE) -> str:
    """`escaping.visible` of a text of limited length, for messages."""
    return visible(text if len(text) <= limit else f"{text[:limit]}...")


def _children(value: Any) -> Sequence[Any]:
    return [*value.values()] if isinstance(value, dict) else value if isinstance(value, list) else ()


def _without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name is there twice in one object")
    return found


def _no_number(name: str) -> Any:
    raise ValueError(f"{name} is no number of JSON")


def _float(text: str) -> float:
    if not math.isfinite(value := float(text)):
        raise ValueError(f"{printable(text, limit=40)} is outside of the range of numbers")
    return value


def _integer(text: str) -> int:
    if len(text) > 21 or not -_LARGEST_INTEGER < (value := int(text)) < _LARGEST_INTEGER:
        raise ValueError(f"{printable(text, limit=40)} is outside of the range of integers")
    return value
