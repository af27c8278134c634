"""Saves and restores the state of a long search, so that the same job can resume after an interrupt or a crash.

The state of a job is one file, FOLDER/NAME.npz, with a checksum over its content and over what it is: the job's name
and its role. A damaged file, or another job's, is never resumed from.
"""

import contextlib
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxinvert import files
from jaxinvert.search import Resumable
from jaxinvert.types import ArrayTree


class Place(NamedTuple):
    """Where the state of a search is saved.

    Attributes:
      folder: the folder of all states.
      name: the job's name.
      role: which of several searches of the same job it is, such as "random update"; part of the checksum.
    """

    folder: Path
    name: str
    role: str = ""

    @property
    def file(self) -> Path:
        """The file of the state."""
        return self.folder / f"{self.name}.npz"

    @property
    def identity(self) -> str:
        """What the state is of."""
        return f"state of {self.name} {self.role}"


class Kept(NamedTuple):
    """The saved state of an unfinished search.

    Attributes:
      resumable: the state of all lanes.
      steps: `[P]`, the steps of the reports so far.
      best_loss: `[P, T, R]`, the best losses at these reports.
    """

    resumable: Resumable
    steps: np.ndarray
    best_loss: np.ndarray


def keep(place: Place, kept: Kept) -> None:
    """Atomically writes the state, replacing an earlier one; warns if it cannot be written."""
    content = {
        **named(kept.resumable.lanes),
        "step": kept.resumable.step,
        "seconds": kept.resumable.seconds,
        "steps": kept.steps,
        "best_loss": kept.best_loss,
    }
    try:
        files.save_checked(place.file, content, place.identity)
    except OSError as error:
        warnings.warn(f"the search goes on, but its state is not saved: {error}", files.KeptFileWarning, stacklevel=2)


def find(place: Place, form: Any) -> Kept | None:
    """Restores the state; `None` if none was saved, or with a warning if the file is damaged or another search's.

    Args:
      place: passed to `keep`.
      form: shapes and dtypes of the lanes of the same search, see `Stepwise.form`.
    """
    try:
        content = files.load_checked(place.file, place.identity)
        lanes = restored(content, form)
        steps, best_loss, step = content["steps"], content["best_loss"], int(content["step"])
        if (steps.ndim, steps.dtype.kind, best_loss.ndim, best_loss.dtype.kind) != (1, "i", 3, "f"):
            raise ValueError(f"{place.file} has a history of another form")
        if steps[-1] != step or len(steps) != len(best_loss):
            raise ValueError(f"{place.file} has a history of other steps than its own")
        seconds = float(content["seconds"])
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, IndexError, TypeError) as error:
        warnings.warn(f"the search starts anew: {error}", files.KeptFileWarning, stacklevel=2)
        return None
    return Kept(Resumable(step, seconds, lanes), steps, best_loss)


def forget(place: Place) -> None:
    """Deletes the state, and the folder if it is then empty, where that is possible."""
    with contextlib.suppress(OSError):  # also if the folder is not empty
        place.file.unlink(missing_ok=True)
        place.folder.rmdir()


def _is_key(leaf: Any) -> bool:
    return jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def named(tree: ArrayTree) -> dict[str, np.ndarray]:
    """The leaves of a tree by the names under which they are kept."""
    return {f"leaf/{number}": _as_data(leaf) for number, leaf in enumerate(jax.tree.leaves(tree))}


def restored(arrays: Mapping[str, np.ndarray], form: Any) -> Any:
    """The tree whose leaves are `named` in `arrays`.

    Args:
      arrays: may have other entries.
      form: shapes and dtypes of the tree.

    Raises:
      ValueError: if it has another form.
    """
    leaves, structure = jax.tree.flatten(form)
    return structure.unflatten([_as_leaf(arrays.get(f"leaf/{number}"), leaf) for number, leaf in enumerate(leaves)])


def _as_data(leaf: Any) -> np.ndarray:
    """The leaf as NumPy can write it: keys as their data, types that NumPy lacks, such as bfloat16, as their bits."""
    data = np.asarray(jax.random.key_data(leaf) if _is_key(leaf) else leaf)
    return data.view(f"u{data.itemsize}") if data.dtype.kind == "V" else data


def _as_leaf(data: np.ndarray | None, form: Any) -> Any:
    """The leaf of this form that `_as_data` wrote; raises ValueError if it has another form."""
    wanted = jax.eval_shape(jax.random.key_data, form) if _is_key(form) else form
    if data is not None and np.dtype(wanted.dtype).kind == "V":
        data = data.view(wanted.dtype)
    if data is None or (data.shape, data.dtype) != (wanted.shape, wanted.dtype):
        raise ValueError("it belongs to another search")
    return jax.random.wrap_key_data(jnp.asarray(data)) if _is_key(form) else jnp.asarray(data)
