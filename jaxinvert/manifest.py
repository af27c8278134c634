"""`capture.json`, the facts about one captured round of federated training: its schema, a safe reader and its checks.

A round is a folder that a server fills while it trains:

    round-0001/
      capture.json               this module
      params.safetensors         what the server sent, under the library's own names, in its own layouts
      client-ID.safetensors      what the client ID returned; one file per client, written as they arrive
      truth-ID.npz               optional: the client's `inputs [B, H, W, C]` in [0, 1] (or uint8) and `labels [B]`

Tensors may also be `.npz` or `.msgpack` (Flax) files. The facts:

    {"format": "jaxinvert-capture/1",
     "kind": "weights",                              what the client files hold: weights, delta or pseudo-gradient
     "round": 1, "framework": "flower 1.42",         for people
     "input_shape": [32, 32, 3], "num_classes": 10,  height, width, channels; number of label values
     "normalization": "none",                        or {"mean": [...], "std": [...]}: of pixels in [0, 1]; absent if
                                                     unknown
     "local": {"optimizer": "sgd",                   sgd or adam
               "learning_rate": 0.1, "momentum": 0.0, "weight_decay": 0.0, "epochs": 1, "batch_size": 32,
               "shuffled": true, "batch_norm": "eval"},
     "defense": "clip+gaussian:norm=1,scale=0.01",   as the command line spells it; absent for none
     "aggregate": 1,                                 clients whose mean update is all that the server sees
     "clients": {"ID": {"num_examples": 32}}}

Only `format`, `kind` and `clients` must be there. What is absent is unknown, not zero. A pseudo-gradient without
`local` is a gradient; a delta or weights without a learning rate has an unknown scale. The file is untrusted: its
size, its depth and all numbers in it are limited, unknown names and other types are refused, names of clients cannot
leave the folder, and nothing in it is imported or run.

This module needs neither JAX nor NumPy: federated servers write the file with it.
"""

import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from jaxinvert.readers.json_files import printable, read_json
from jaxinvert.readers.limits import MAX_CLASSES

FORMAT = "jaxinvert-capture/1"
FILE = "capture.json"
KINDS = ("pseudo-gradient", "delta", "weights")
_MAX_BYTES = 1 << 20
_MAX_DEPTH = 8
_MAX_CLIENTS = 10_000
_MAX_EXAMPLES = 1_000_000
_MAX_EPOCHS = 10_000
_MAX_SIDE, _MAX_VALUES = 16_384, 1 << 26
_MAX_NUMBER = 3.4e38  # of a float32
_ID = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}")


class Local(NamedTuple):
    """How each client trained; `None` where that is unknown. See the module's docstring."""

    optimizer: str | None = None
    learning_rate: float | None = None
    momentum: float | None = None
    weight_decay: float | None = None
    epochs: int | None = None
    batch_size: int | None = None
    shuffled: bool | None = None
    batch_norm: str | None = None


class Normalization(NamedTuple):
    """The constants by which the clients normalized pixels in [0, 1], one per channel; both `None` for none."""

    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None


class Manifest(NamedTuple):
    """The facts in a `capture.json`; `None` where they are unknown. See the module's docstring.

    Attributes:
      kind: what the client files hold.
      clients: number of examples by client, `None` where it is unknown.
      round: number of the round.
      framework: what wrote the capture, for people.
      input_shape: `(H, W, C)`.
      num_classes: number of label values.
      normalization: of the clients' inputs.
      local: how the clients trained.
      defense: as the command line spells it; "none" for none.
      aggregate: number of clients whose mean is one update.
    """

    kind: str
    clients: Mapping[str, int | None]
    round: int | None = None
    framework: str = ""
    input_shape: tuple[int, int, int] | None = None
    num_classes: int | None = None
    normalization: Normalization | None = None
    local: Local = Local()
    defense: str = "none"
    aggregate: int = 1


def check_client_id(client: str) -> str:
    """Returns the name of a client that can be a part of a file's name.

    Raises:
      ValueError: for any other name.
    """
    if not isinstance(client, str) or not _ID.fullmatch(client):
        raise ValueError(f"client {client!r} is no name of 1 to 128 letters, digits, '.', '_' and '-'")
    return client


def read_manifest(path: Path) -> Manifest:
    """Reads and checks a `capture.json`.

    Args:
      path: the file.

    Raises:
      FileNotFoundError: if there is none.
      ValueError: if it is too large or too deep, no JSON, or does not follow the schema; the message names the field.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"no facts of a captured round at {path}")
    found = read_json(path, max_bytes=_MAX_BYTES, max_depth=_MAX_DEPTH)
    try:
        return checked(found)
    except ValueError as error:
        raise ValueError(f"cannot read {path}: {printable(str(error), limit=400)}") from error


def checked(facts: Any) -> Manifest:
    """The facts of a decoded `capture.json`, checked.

    Args:
      facts: the decoded file.

    Raises:
      ValueError: naming the field, its value, and what was expected.
    """
    fields = _object("the file", facts, _FIELDS)
    if fields.get("format") != FORMAT:
        raise ValueError(f"format is {fields.get('format')!r}, expected {FORMAT!r}")
    if missing := [name for name in ("kind", "clients") if name not in fields]:
        raise ValueError(f"it lacks {missing[0]!r}")
    del fields["format"]
    return Manifest(**fields)


def _clients(name: str, value: Any) -> dict[str, int | None]:
    if not isinstance(value, dict) or len(value) > _MAX_CLIENTS:
        raise ValueError(f"{name} is {_shown(value)}, expected an object of at most {_MAX_CLIENTS:,} clients")
    return {
        check_client_id(client): _object(f"clients[{client!r}]", one, {"num_examples": _examples}).get("num_examples")
        for client, one in value.items()
    }


def _normalization(name: str, value: Any) -> Normalization:
    if value == "none":
        return Normalization(None, None)
    found = _object(name, value, {"mean": _numbers, "std": _numbers})
    mean, std = found.get("mean"), found.get("std")
    if mean is None or std is None or len(mean) != len(std) or not all(each > 0 for each in std):
        raise ValueError(f"{name} is {_shown(value)}, expected 'none' or mean and positive std, one per channel")
    return Normalization(mean, std)


def _object(name: str, value: Any, fields: Mapping[str, Callable[[str, Any], Any]]) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{name} is {_shown(value)}, expected an object")
    if unknown := [key for key in value if key not in fields]:
        raise ValueError(f"{name} has the unknown field {_shown(unknown[0])}; known are {', '.join(fields)}")
    return {key: fields[key](key, item) for key, item in value.items() if item is not None}


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str) or len(value) > 200 or not value.isprintable():
        raise ValueError(f"{name} is {_shown(value)}, expected one line of at most 200 characters")
    return value


def _one_of(*known: str) -> Callable[[str, Any], str]:
    def check(name: str, value: Any) -> str:
        if value not in known:
            raise ValueError(f"{name} is {_shown(value)}, expected one of {', '.join(known)}")
        return value

    return check


def check_num_examples(value: Any) -> int:
    """Returns a client's number of examples.

    Raises:
      ValueError: if it is no whole number from 1 to one million.
    """
    return _examples("num_examples", value)


def _whole(limit: int, *, least: int = 1) -> Callable[[str, Any], int]:
    def check(name: str, value: Any) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= limit:
            raise ValueError(f"{name} is {_shown(value)}, expected a whole number from {least} to {limit:,}")
        return value

    return check


_examples = _whole(_MAX_EXAMPLES)


def _number(name: str, value: Any) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value <= _MAX_NUMBER:
        raise ValueError(f"{name} is {_shown(value)}, expected a number from 0 to {_MAX_NUMBER:g}")
    return float(value)


def _numbers(name: str, value: Any) -> tuple[float, ...]:
    if not isinstance(value, list) or not 1 <= len(value) <= 4096:
        raise ValueError(f"{name} is {_shown(value)}, expected a list of numbers, one per channel")
    return tuple(_number(name, each) for each in value)


def _shape(name: str, value: Any) -> tuple[int, ...]:
    if not isinstance(value, list) or len(value) != 3:
        raise ValueError(f"{name} is {_shown(value)}, expected [height, width, channels]")
    shape = tuple(_whole(_MAX_SIDE)(name, each) for each in value)
    if math.prod(shape) > _MAX_VALUES:
        raise ValueError(f"{name} is {_shown(value)}, expected at most {_MAX_VALUES:,} values in one example")
    return shape


def _truth(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"{name} is {_shown(value)}, expected true or false")
    return value


def _local(name: str, value: Any) -> Local:
    return Local(**_object(name, value, _LOCAL))


_LOCAL: Mapping[str, Callable[[str, Any], Any]] = {
    "optimizer": _one_of("sgd", "adam"),
    "learning_rate": _number,
    "momentum": _number,
    "weight_decay": _number,
    "epochs": _whole(_MAX_EPOCHS),
    "batch_size": _examples,
    "shuffled": _truth,
    "batch_norm": _one_of("eval", "train"),
}
_FIELDS: Mapping[str, Callable[[str, Any], Any]] = {
    "format": _text,
    "kind": _one_of(*KINDS),
    "clients": _clients,
    "round": _whole(2**31 - 1, least=0),
    "framework": _text,
    "input_shape": _shape,
    "num_classes": _whole(MAX_CLASSES),
    "normalization": _normalization,
    "local": _local,
    "defense": _text,
    "aggregate": _whole(_MAX_CLIENTS),
}


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}..."
