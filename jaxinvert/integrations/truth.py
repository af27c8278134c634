"""Writes the true examples of a client into a captured round, for the auditor. Needs NumPy only."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxinvert import manifest
from jaxinvert.files import load_arrays, save_arrays
from jaxinvert.integrations.tensors import as_numpy


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
      FileExistsError: if other examples of this client are there, such as from another run.
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
    path = Path(folder) / f"truth-{manifest.check_client_id(client)}.npz"
    if not path.exists():
        save_arrays(path, {"inputs": pixels, "labels": labels})
    elif not _holds(path, {"inputs": pixels, "labels": labels}):
        raise another_run(path)


def another_run(path: Path) -> FileExistsError:
    """The error for a file of a round whose content differs from what this run would write."""
    return FileExistsError(
        f"{path} holds something else, such as from another run, and one round must not mix two: give this run a new "
        f"folder, or delete {path.parent}"
    )


def _holds(path: Path, arrays: Mapping[str, np.ndarray]) -> bool:
    try:
        found = load_arrays(path)
    except ValueError:  # damaged: kept as it is, and refused by the audit
        return False
    return found.keys() == arrays.keys() and all(np.array_equal(found[name], arrays[name]) for name in arrays)
