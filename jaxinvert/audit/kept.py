"""Storage of what is finished in the audit's folder, so that an interrupted audit does not repeat it.

Attacks, attack-free figures and the rounds of a training are all kept by one `Store`.

Every file has a checksum over its content and over what it is: the job's name, the part of the audit and, for
captured updates, the capture. What a damaged file held, or one in another's place, is computed again, with a warning.
"""

import contextlib
import warnings
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import jax.numpy as jnp
import numpy as np

from jaxinvert import files
from jaxinvert.audit.attack_free import AttackFree
from jaxinvert.jobs import Execution
from jaxinvert.types import Reconstruction

Result = TypeVar("Result")

_SCALARS = ("num_steps", "seconds_compile", "seconds_run", "num_devices", "chunk_size", "choice")

INSIDE = ("attacks", "state", "state/*", "*/attacks", "*/state", "*/state/*")
"""Folders inside an audit's folder that hold files, see `files.alone_in`."""


class Store(NamedTuple):
    """Where the results of an audit are kept.

    Attributes:
      folder: the audit's folder.
      capture: digest of the captured updates, whose results are kept in a folder of their own; "" for simulated ones.
    """

    folder: Path
    capture: str = ""

    @property
    def states(self) -> Path:
        """Folder for the states of running attacks."""
        return self.folder / self.capture / "state"

    def role(self, what: str) -> str:
        """The part of the audit beside the job, for checksums."""
        return f"{what} {self.capture}".strip()

    def file(self, job: str, what: str) -> Path:
        """The file of a finished part, such as "random update", of a job."""
        return self.folder / self.capture / "attacks" / f"{job}-{what.replace(' ', '-')}.npz"

    def save(self, job: str, what: str, arrays: Mapping[str, Any]) -> None:
        """Keeps the results of a part; warns if they cannot be written."""
        try:
            files.save_checked(self.file(job, what), arrays, f"{job} {self.role(what)}")
        except OSError as error:
            _warn(f"the {what} is not kept: {error}")

    def load(self, job: str, what: str, *, needed: Collection[str]) -> dict[str, np.ndarray] | None:
        """The kept results of a part; `None` if there are none, or with a warning if they are damaged.

        Args:
          job: name of the job.
          what: the part.
          needed: names of arrays that results have.
        """
        file = self.file(job, what)
        try:
            found = files.load_checked(file, f"{job} {self.role(what)}")
            if missing := set(needed) - found.keys():
                raise ValueError(f"{file} lacks {', '.join(sorted(missing))}")
            return found
        except FileNotFoundError:
            return None
        except ValueError as error:
            _warn(f"the {what} is computed again: {error}")
            return None

    def has(self, job: str, what: str) -> bool:
        """Whether there is a file of a part, which may be damaged."""
        return self.file(job, what).is_file()

    def forget(self, job: str, what: str) -> None:
        """Deletes the file of a part, if there is one and it can be deleted."""
        with contextlib.suppress(OSError):
            self.file(job, what).unlink()


def kept_or_done(store: Store | None, job: str, what: str, do: Callable[[], Execution]) -> Execution:
    """Loads a finished attack, or else runs it and keeps it unless it was interrupted.

    Args:
      store: where it is kept; `None` keeps nothing.
      job: name of the job.
      what: the part of the audit.
      do: runs the attack.
    """
    needed = ("inputs", "attack_loss", "num_steps", "seconds_compile", "seconds_run")
    return _kept(store, job, what, do, needed, _arrays, _execution)


def kept_or_computed(store: Store | None, job: str, what: str, compute: Callable[[], AttackFree]) -> AttackFree:
    """Loads an attack-free figure, or else computes it and keeps it unless it was refused; see `kept_or_done`."""
    needed = set(AttackFree._fields) - {"unbiased_db"}
    return _kept(store, job, what, compute, needed, _arrays_of_figure, _figure)


def _kept(
    store: Store | None,
    job: str,
    what: str,
    compute: Callable[[], Result],
    needed: Collection[str],
    arrays_of: Callable[[Result], dict[str, Any] | None],
    result_of: Callable[[Mapping[str, np.ndarray]], Result],
) -> Result:
    """Loads a result, or else computes and keeps it; `arrays_of` returns `None` for one that is not to be kept."""
    if store is None:
        return compute()
    if (kept := store.load(job, what, needed=needed)) is not None:
        try:
            return result_of(kept)
        except (TypeError, ValueError) as error:
            _warn(f"the {what} is computed again: {store.file(job, what)} is damaged: {error}")
    found = compute()
    if (arrays := arrays_of(found)) is not None:
        store.save(job, what, arrays)
    return found


def _arrays(execution: Execution) -> dict[str, Any] | None:
    if execution.interrupted:
        return None
    found = execution.reconstructions
    arrays = {"inputs": found.inputs, "attack_loss": found.attack_loss}
    if found.labels is not None:
        arrays["labels"] = found.labels
    arrays |= {f"info/{name}": value for name, value in found.info.items()}
    arrays |= {f"history/{name}": value for name, value in execution.history.items()}
    arrays |= {name: value for name in _SCALARS if (value := getattr(execution, name)) is not None}
    return arrays


def _execution(arrays: Mapping[str, np.ndarray]) -> Execution:
    def group(prefix: str) -> dict[str, np.ndarray]:
        return {name.removeprefix(prefix): value for name, value in arrays.items() if name.startswith(prefix)}

    _refuse_text({name: array for name, array in arrays.items() if name != "choice"})
    found = Reconstruction(arrays["inputs"], arrays.get("labels"), arrays["attack_loss"], group("info/"))  # type: ignore[arg-type]
    scalars = {name: arrays[name].item() for name in _SCALARS if name in arrays}
    return Execution(found, interrupted=False, history=group("history/"), **scalars)


def _arrays_of_figure(figure: AttackFree) -> dict[str, Any] | None:
    if figure.psnr_db is None:
        return None
    return {name: value for name, value in figure._asdict().items() if value is not None}


def _figure(arrays: Mapping[str, np.ndarray]) -> AttackFree:
    values = {name: array if array.ndim else str(array) for name, array in arrays.items()}
    _refuse_text({name: array for name, array in arrays.items() if array.ndim})
    return AttackFree(**{"unbiased_db": None, **values})  # type: ignore[arg-type]


def _refuse_text(arrays: Mapping[str, np.ndarray]) -> None:
    """Raises ValueError unless all arrays are numbers or truth values."""
    for name, array in arrays.items():
        if not (jnp.issubdtype(array.dtype, jnp.number) or array.dtype == np.bool_):
            raise ValueError(f"{name} is {array.dtype}, expected numbers")


def _warn(message: str) -> None:
    warnings.warn(message, files.KeptFileWarning, stacklevel=3)
