"""Checks the form of a sweep's files before they are summarized.

A folder may be somebody else's, and checksums are no proof of origin. Whoever reads a checked file may rely on the
types below; anything else in it is not used.

| file | field | form |
| --- | --- | --- |
| plan | `varied`, `jobs` | names; by job, a value of every name: number, text, boolean, null, or a list of these |
| record | `config` | an object |
| | `summary.targets` | a list of objects with the number `attack_loss` |
| | `summary.images` | a list of objects, see `_IMAGE`; `target` is a place in `targets` |
| | `summary.assumptions`, `versions`, `device` | text in objects and lists, as `jobs.assumptions` has it |
| failure | `config` | an object, `settings` in it, too |
"""

import re
import reprlib
from collections.abc import Callable, Mapping
from typing import Any

Check = Callable[[Any], bool]

_NAME = re.compile("[0-9a-f]{24}")
_MAX_FIELDS, _MAX_TEXT = 200, 10_000
_LARGEST, _SMALLEST = 1e39, 1e-46
"""Beyond the range of float32, in which jobs compute; charts need no more."""


def check_plan(content: Mapping[str, Any]) -> None:
    """Checks a plan.

    Raises:
      ValueError: naming the field, its value and what was expected.
    """
    varied, jobs = content["varied"], content["jobs"]
    _require("varied", varied, _list_of(_is_text), "a list of names")
    if len(set(varied)) < len(varied) or len(varied) > _MAX_FIELDS:
        raise ValueError(f"varied is {reprlib.repr(varied)}, expected at most {_MAX_FIELDS} different names")
    _require("jobs", jobs, lambda value: isinstance(value, dict), "an object")
    for name, values in jobs.items():
        if not _NAME.fullmatch(name):
            raise ValueError(f"a job is named {reprlib.repr(name)}, expected 24 hexadecimal digits")
        if not isinstance(values, dict) or values.keys() != set(varied):
            raise ValueError(f"job {name} has {reprlib.repr(values)}, expected values of {reprlib.repr(varied)}")
        for field, value in values.items():
            expected = "a number, text, a boolean, null, or a list of these"
            _require(f"{field} of job {name}", value, lambda v: _is_scalar(v) or _list_of(_is_scalar)(v), expected)
    _require("versions", content.get("versions", {}), _object_of(_is_text), "text by name")


def check_record(content: Mapping[str, Any]) -> None:
    """Checks a record.

    Raises:
      ValueError: naming the field, its value and what was expected.
    """
    summary = content["summary"]
    for name, (is_right, expected) in _SUMMARY.items():
        _require(name, summary.get(name), is_right, expected)
    names = [*summary["images"][0]] if summary["images"] else []
    for i, image in enumerate(summary["images"]):
        if [*image] != names or not names:
            raise ValueError(f"image {i} has the fields {reprlib.repr([*image])}, expected {reprlib.repr(names)}")
        for name, value in image.items():
            is_right, expected = _IMAGE.get(name, (None, ""))
            if is_right is None:
                raise ValueError(f"image {i} has the unknown field {reprlib.repr(name)}")
            _require(f"{name} of image {i}", value, is_right, expected)
        if not 0 <= image.get("target", -1) < len(summary["targets"]):
            raise ValueError(f"image {i} is of target {image.get('target')}, of {len(summary['targets'])}")


def check_failure(content: Mapping[str, Any]) -> None:
    """Checks the file of a failed job.

    Raises:
      ValueError: naming the field, its value and what was expected.
    """
    _require("name", content["name"], lambda name: bool(_NAME.fullmatch(name)), "24 hexadecimal digits")
    settings = content["config"].get("settings") or {}
    _require("settings", settings, lambda value: isinstance(value, dict), "an object")


def _require(name: str, value: Any, is_right: Check, expected: str) -> None:
    if not is_right(value):
        raise ValueError(f"{name} is {reprlib.repr(value)}, expected {expected}")


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= _MAX_TEXT


def _is_index(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**31


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and (value == 0 or _SMALLEST <= abs(value) <= _LARGEST)


def _is_result(value: Any) -> bool:
    return type(value) is float or (type(value) is int and abs(value) < 2**63)


def _is_scalar(value: Any) -> bool:
    return value is None or isinstance(value, bool) or _is_number(value) or _is_text(value)


def _optional(check: Check) -> Check:
    return lambda value: value is None or check(value)


def _list_of(check: Check) -> Check:
    return lambda value: isinstance(value, list) and all(map(check, value))


def _object_of(check: Check) -> Check:
    return lambda value: isinstance(value, dict) and all(map(check, value.values()))


def _object(fields: Mapping[str, Check]) -> Check:
    """An object whose known fields have these forms; others are ignored."""
    return lambda value: isinstance(value, dict) and all(check(value.get(name)) for name, check in fields.items())


_REALISM = _object(
    {
        "kind": _is_text,
        "facts": _list_of(_object({"name": _is_text, "value": _is_text, "favors": _is_text})),
    }
)
_ASSUMPTIONS = _object(
    {
        **dict.fromkeys(("known", "unknown"), _optional(_list_of(_is_text))),
        **dict.fromkeys(("client", "labels", "threat_model"), _optional(_is_text)),
        "realism": _optional(_REALISM),
    }
)
_SUMMARY: dict[str, tuple[Check, str]] = {
    "targets": (_list_of(_object({"attack_loss": _optional(_is_result)})), "objects with an attack_loss"),
    "images": (_list_of(lambda image: isinstance(image, dict)), "a list of objects"),
    "assumptions": (_optional(_ASSUMPTIONS), "the attacker's knowledge in words"),
    "versions": (_optional(_object_of(_is_text)), "text by name"),
    "device": (_optional(_is_text), "text"),
}
_IMAGE: dict[str, tuple[Check, str]] = {
    **dict.fromkeys(("target", "example"), (_is_index, "a whole number of at least 0")),
    "label": (_optional(lambda label: _is_result(label) or _list_of(_is_result)(label)), "a number or a list"),
    "class_name": (_optional(_is_text), "text"),
    **dict.fromkeys(("psnr_db", "ssim", "mse"), (_optional(_is_number), "a number or null")),
}
"""Field of an image -> its check, and what is expected."""
