"""`Writer`: writes a captured round, which `jaxinvert audit --capture` reads. Needs NumPy and safetensors only.

    writer = Writer(folder, kind="weights", normalization=((0.5,) * 3, (0.5,) * 3))
    writer.params(model.state_dict())                     # what the server sends
    writer.client("17", reply, num_examples=32)           # what a client returns; any time, in any order
    writer.truth("17", images, labels)                    # only where the auditor may have it

Every call leaves a folder that can be read: files are whole or absent, and `capture.json` names who came.
"""

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save

from jaxinvert import manifest
from jaxinvert.files import save_arrays, write_atomically

Arrays = Mapping[str, Any] | Sequence[Any]
"""Tensors by name, nested or not, or a list in the order of the library; arrays of NumPy, JAX or PyTorch."""


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
        """Writes what the server sends to all clients."""
        self._tensors("params", arrays)
        self._write({})

    def client(self, client: str, arrays: Arrays, *, num_examples: int | None = None) -> None:
        """Writes what a client returned.

        Args:
          client: its name, of letters, digits, ".", "_" and "-".
          arrays: its tensors.
          num_examples: number of examples it trained on, if known.

        Raises:
          ValueError: for another name, or tensors of other than numbers.
        """
        self._tensors(f"client-{manifest.check_client_id(client)}", arrays)
        self._write({client: {} if num_examples is None else {"num_examples": int(num_examples)}})

    def truth(self, client: str, inputs: Any, labels: Any) -> None:
        """Writes a client's true examples, for the auditor; see `write_truth`."""
        write_truth(self.folder, client, inputs, labels)

    def _tensors(self, name: str, arrays: Arrays) -> None:
        named = arrays if isinstance(arrays, Mapping) else {f"arr_{i}": each for i, each in enumerate(arrays)}
        tensors = {key: as_numpy(value) for key, value in _flat(named).items()}
        if strange := [key for key, value in tensors.items() if value.dtype.kind not in "biufV"]:
            raise ValueError(f"{name}: {strange[0]} holds {tensors[strange[0]].dtype}, expected numbers")
        write_atomically(self.folder / f"{name}.safetensors", lambda file: file.write(save(tensors)))

    def _write(self, came: Mapping[str, Mapping[str, int]]) -> None:
        """Writes `capture.json` with the clients that came now or before, which another writer may have written."""
        file = self.folder / manifest.FILE
        with _only_writer(self.folder):
            before = manifest.read_manifest(file).clients if file.exists() else {}
            known = {name: {} if size is None else {"num_examples": size} for name, size in before.items()}
            facts = {**self._facts, "clients": {**known, **came}}
            manifest.checked(facts)
            text = json.dumps(facts, indent=1, allow_nan=False) + "\n"
            write_atomically(file, lambda opened: opened.write(text.encode()))


def _flat(named: Mapping[Any, Any], prefix: str = "") -> dict[str, Any]:
    """Tensors by path: nested mappings, such as Flax's, are joined by "/"."""
    found: dict[str, Any] = {}
    for key, value in named.items():
        found |= _flat(value, f"{prefix}{key}/") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return found


@contextlib.contextmanager
def _only_writer(folder: Path) -> Iterator[None]:
    """Waits for other threads and processes that write the facts of the same round."""
    lock = folder / ".lock"
    with open(lock, "w", encoding="utf-8") as opened:
        try:
            import fcntl

            fcntl.flock(opened, fcntl.LOCK_EX)  # released when the file is closed
        except ImportError:  # not on this platform: one writer at a time
            pass
        yield


def write_truth(
    folder: Path | str,
    client: str,
    inputs: Any,
    labels: Any,
    *,
    normalization: tuple[Sequence[float], Sequence[float]] | None = None,
) -> None:
    """Writes a client's true examples into a round's folder; only where the auditor may have them.

    Args:
      folder: the round's folder.
      client: its name in `Writer.client`.
      inputs: `[B, C, H, W]` or `[B, H, W, C]` with one or three channels; pixels in [0, 1] or uint8.
      labels: `[B]` classes, or `[B, K]` floats.
      normalization: `(mean, std)` per channel, undone first if inputs are normalized.

    Raises:
      ValueError: for inputs that are not pixels in [0, 1] after that.
    """
    pixels, labels = as_numpy(inputs), as_numpy(labels)
    if pixels.ndim != 4:
        raise ValueError(f"inputs have shape {pixels.shape}, expected [B, H, W, C] or [B, C, H, W]")
    if pixels.shape[-1] not in (1, 3) and pixels.shape[1] in (1, 3):
        pixels = pixels.transpose(0, 2, 3, 1)
    if normalization is not None:
        mean, std = (np.asarray(values, np.float32) for values in normalization)
        pixels = np.asarray(pixels, np.float32) * std + mean
    if pixels.dtype != np.uint8:
        low, high = float(np.min(pixels)), float(np.max(pixels))
        if not (low >= -1e-3 and high <= 1 + 1e-3):  # beyond rounding
            raise ValueError(f"inputs range over [{low:g}, {high:g}], expected [0, 1]: give their normalization")
        pixels = np.clip(pixels, 0, 1).astype(np.float32)
    name = f"truth-{manifest.check_client_id(client)}.npz"
    save_arrays(Path(folder) / name, {"inputs": pixels, "labels": labels})


def as_numpy(value: Any) -> np.ndarray:
    """An array of any library as a contiguous NumPy array; bfloat16 of PyTorch, which NumPy lacks, as float32."""
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        value = (value.float() if str(value.dtype) == "torch.bfloat16" else value).numpy()
    return np.array(value, order="C")
