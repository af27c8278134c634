"""Opens a captured round: the folder that `integrations.capture.Writer` writes, see `jaxinvert.manifest`."""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from jaxinvert import manifest
from jaxinvert.manifest import Manifest

_SUFFIXES = (".safetensors", ".npz", ".msgpack")
_MAX_FILES = 30_000


class Round(NamedTuple):
    """The files of one captured round, matched by client.

    Attributes:
      folder: the round's folder.
      facts: its `capture.json`.
      params: file of the parameters that the server sent.
      updates: file by client, in the order of their names, numbers by value.
      truths: file of the true examples by client, for those that have one.
    """

    folder: Path
    facts: Manifest
    params: Path
    updates: Mapping[str, Path]
    truths: Mapping[str, Path]


def open_round(folder: Path) -> Round:
    """Lists the files of a captured round, without reading tensors.

    Args:
      folder: such as `captures/round-0001`.

    Raises:
      FileNotFoundError: if there is no such folder, no `capture.json`, no parameters or no client in it.
      ValueError: for a damaged `capture.json`, two files of one client, or a client's file with no legal name.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder of a captured round at {folder}")
    rounds = sorted(path.parent.name for path in folder.glob(f"*/{manifest.FILE}"))
    if rounds and not (folder / manifest.FILE).exists():
        raise ValueError(f"{folder} holds {len(rounds)} rounds: give one of them, such as {folder / rounds[0]}")
    facts = manifest.read_manifest(folder / manifest.FILE)
    found = _by_role(folder)
    if "params" not in found:
        raise FileNotFoundError(f"no parameters in {folder}: expected params.safetensors, .npz or .msgpack")
    updates = {name.removeprefix("client-"): path for name, path in found.items() if name.startswith("client-")}
    if not updates:
        raise FileNotFoundError(f"no client in {folder}: expected client-ID.safetensors, .npz or .msgpack")
    for client in updates:
        manifest.check_client_id(client)
    truths = {client: path for client in updates if (path := folder / f"truth-{client}.npz").is_file()}
    return Round(
        folder, facts, found["params"], dict(sorted(updates.items(), key=lambda item: _by_number(item[0]))), truths
    )


def without_update(captured: Round) -> list[str]:
    """The clients that `capture.json` names and whose file is missing, such as after a crash."""
    return sorted(captured.facts.clients.keys() - captured.updates.keys(), key=_by_number)


def _by_role(folder: Path) -> dict[str, Path]:
    """Tensor files by name without suffix."""
    found: dict[str, Path] = {}
    for number, path in enumerate(folder.iterdir()):
        if number >= _MAX_FILES:
            raise ValueError(f"{folder} holds more than {_MAX_FILES:,} files")
        role = path.name.removesuffix(path.suffix)
        if path.suffix not in _SUFFIXES or not path.is_file() or not (role == "params" or role.startswith("client-")):
            continue
        if (other := found.setdefault(role, path)) != path:
            raise ValueError(f"{folder} holds both {other.name} and {path.name}")
    return found


def _by_number(client: str) -> tuple[int, int, str]:
    return (0, int(client), client) if client.isdecimal() else (1, 0, client)
