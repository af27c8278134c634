"""Storage of finished attacks and figures in the audit's folder: an interrupted audit does not repeat them."""

import contextlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

from jaxinvert import files
from jaxinvert.audit.attack_free import AttackFree
from jaxinvert.jobs import Execution
from jaxinvert.types import Reconstruction

_SCALARS = ("num_steps", "seconds_compile", "seconds_run", "num_devices", "chunk_size", "choice")


def kept_or_done(file: Path, do: Callable[[], Execution]) -> Execution:
    """Loads a finished attack from `file`, or else runs it and saves it there unless it was interrupted."""
    try:
        return _load(file)
    except (FileNotFoundError, ValueError):  # a damaged file counts as missing
        execution = do()
    if not execution.interrupted:
        _save(file, execution)
    return execution


def kept_or_computed(file: Path, compute: Callable[[], AttackFree]) -> AttackFree:
    """Loads an attack-free figure from `file`, or else computes it and saves it there; refusals are not saved."""
    with contextlib.suppress(FileNotFoundError, ValueError):  # a damaged file counts as missing
        arrays = files.load_arrays(file)
        if set(AttackFree._fields) - {"unbiased_db"} <= arrays.keys():
            values = {name: array if array.ndim else str(array) for name, array in arrays.items()}
            return AttackFree(**{"unbiased_db": None, **values})
    found = compute()
    if found.psnr_db is not None:
        files.save_arrays(file, {name: value for name, value in found._asdict().items() if value is not None})
    return found


def _save(file: Path, execution: Execution) -> None:
    found = execution.reconstructions
    arrays = {"inputs": found.inputs, "attack_loss": found.attack_loss}
    if found.labels is not None:
        arrays["labels"] = found.labels
    arrays |= {f"info/{name}": value for name, value in found.info.items()}
    arrays |= {f"history/{name}": value for name, value in execution.history.items()}
    arrays |= {name: value for name in _SCALARS if (value := getattr(execution, name)) is not None}
    files.save_arrays(file, arrays)


def _load(file: Path) -> Execution:
    """Reads what `_save` wrote.

    Raises:
      FileNotFoundError: if there is no file.
      ValueError: if the file is damaged.
    """
    arrays = files.load_arrays(file)

    def group(prefix: str) -> dict[str, np.ndarray]:
        return {name.removeprefix(prefix): value for name, value in arrays.items() if name.startswith(prefix)}

    try:
        found = Reconstruction(arrays["inputs"], arrays.get("labels"), arrays["attack_loss"], group("info/"))  # type: ignore[arg-type]
        scalars = {name: arrays[name].item() for name in _SCALARS if name in arrays}
    except (KeyError, ValueError) as error:
        raise ValueError(f"{file} does not hold a finished attack of an audit: {error}") from error
    return Execution(found, interrupted=False, history=group("history/"), **scalars)
