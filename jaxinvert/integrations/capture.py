"""`Writer`: writes a captured round, which `jaxinvert audit --capture` reads. Needs NumPy and safetensors only.

    writer = Writer(folder, kind="weights", normalization=((0.5,) * 3, (0.5,) * 3))
    writer.params(model.state_dict())                     # what the server sends
    writer.client("17", reply, num_examples=32)           # what a client returns; any time, in any order
    writer.truth("17", images, labels)                    # only where the auditor may have it

Every call leaves a folder that can be read: files are whole or absent, and `capture.json` names who came. What is
there is never replaced by something else: a second run into the same folder is refused.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors.numpy import save

from jaxinvert import manifest
from jaxinvert.files import locked, write_atomically
from jaxinvert.integrations.tensors import Arrays, named
from jaxinvert.integrations.truth import another_run, write_truth

__all__ = ["Arrays", "Writer", "write_truth"]


class Writer:
    """Writes one round.

    Args:
      folder: the round's folder, such as `captures/round-0001`; made if need be.
      kind: what clients return: "weights" after training, "delta" (after minus before), or "pseudo-gradient" (before
        minus after, or a gradient).
      normalization: `(mean, std)` per channel by which clients normalize pixels in [0, 1], "none", or `None` if
        unknown.
      facts: other fields of `capture.json`, such as `local={"learning_rate": 0.1, "epochs": 1}`; see
        `jaxinvert.manifest`.

    Raises:
      ValueError: for facts that do not follow the schema.
    """

    def __init__(
        self,
        folder: Path | str,
        *,
        kind: str = "weights",
        normalization: tuple[Sequence[float], Sequence[float]] | str | None = None,
        facts: Mapping[str, Any] | None = None,
    ) -> None:
        self.folder = Path(folder)
        self._facts = {"format": manifest.FORMAT, "kind": kind, **json.loads(json.dumps(facts or {}))}
        if isinstance(normalization, str):
            self._facts["normalization"] = normalization
        elif normalization is not None:
            mean, std = ([float(value) for value in values] for values in normalization)
            self._facts["normalization"] = {"mean": mean, "std": std}
        manifest.checked({**self._facts, "clients": {}})

    def params(self, arrays: Arrays) -> None:
        """Writes what the server sends to all clients.

        Raises:
          FileExistsError: if other parameters are there, such as from another run.
          ValueError: for tensors of other than numbers.
        """
        self._add("params", arrays, {})

    def client(self, client: str, arrays: Arrays, *, num_examples: int | None = None) -> None:
        """Writes what a client returned.

        Args:
          client: its name, of letters, digits, ".", "_" and "-".
          arrays: its tensors.
          num_examples: number of examples it trained on, if known.

        Raises:
          FileExistsError: if another update of this client is there, or if clients came whose facts were others.
          ValueError: for another name or number of examples, or tensors of other than numbers.
        """
        came = {manifest.check_client_id(client): {} if num_examples is None else {"num_examples": int(num_examples)}}
        manifest.checked({**self._facts, "clients": came})
        self._add(f"client-{client}", arrays, came)

    def truth(self, client: str, inputs: Any, labels: Any) -> None:
        """Writes a client's true examples, for the auditor; see `write_truth`."""
        write_truth(self.folder, client, inputs, labels)

    def _add(self, name: str, arrays: Arrays, came: Mapping[str, Mapping[str, int]]) -> None:
        """Writes tensors, and `capture.json` with the clients that came now or before, maybe from another writer."""
        content = save(named(arrays, what=name))
        path, file = self.folder / f"{name}.safetensors", self.folder / manifest.FILE
        self.folder.mkdir(parents=True, exist_ok=True)
        with locked(self.folder, wait=True):  # against other threads and processes that write the facts of this round
            before = manifest.read_manifest(file).clients if file.exists() else {}
            is_there = path.exists()
            if is_there and not _holds(path, content):
                raise another_run(path)
            if is_there and file.exists() and came.keys() <= before.keys():
                return
            facts = self._with_clients(file, before, came)
            if not is_there:
                write_atomically(path, lambda opened: opened.write(content))
            text = json.dumps(facts, indent=1, allow_nan=False) + "\n"
            write_atomically(file, lambda opened: opened.write(text.encode()))

    def _with_clients(
        self, file: Path, before: Mapping[str, int | None], came: Mapping[str, Mapping[str, int]]
    ) -> dict[str, Any]:
        """The facts with all clients; facts of clients that came before must be the same."""
        known = {name: {} if size is None else {"num_examples": size} for name, size in before.items()}
        facts = {**self._facts, "clients": {**known, **came}}
        now = manifest.checked(facts)._replace(clients={})
        then = manifest.read_manifest(file)._replace(clients={}) if before else now
        if changed := [name for name in now._fields if getattr(now, name) != getattr(then, name)]:
            name = changed[0]
            raise FileExistsError(
                f"{file} says {name} {getattr(then, name)!r}, now it is {getattr(now, name)!r}, and one round must "
                f"not mix two runs: give this run a new folder, or delete {self.folder}"
            )
        return facts


def _holds(path: Path, content: bytes) -> bool:
    return path.stat().st_size == len(content) and path.read_bytes() == content
