"""Saves and restores the state of a long search, so that the same job can resume after an interrupt or a crash."""

import shutil
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxinvert.search import Resumable


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


def keep(folder: Path, name: str, kept: Kept) -> None:
    """Atomically writes the state of job `name`, replacing an earlier one.

    Raises:
      OSError, ValueError: if it cannot be written.
    """
    import orbax.checkpoint  # slow to import, and most jobs do not need it

    leaves = [_as_data(leaf) for leaf in jax.tree.leaves(kept.resumable.lanes)]
    content = {
        "lanes": leaves,
        "seconds": np.asarray(kept.resumable.seconds),
        "steps": np.asarray(kept.steps),
        "best_loss": np.asarray(kept.best_loss),
    }
    with _manager((folder / name).absolute()) as manager:
        manager.save(kept.resumable.step, args=orbax.checkpoint.args.PyTreeSave(content))
        manager.wait_until_finished()


def find(folder: Path, name: str, form: Any) -> Kept | None:
    """Restores the state of job `name`; `None` if none was saved.

    Args:
      folder: the folder passed to `keep`.
      name: the job's name.
      form: shapes and dtypes of the lanes of the same search, see `Stepwise.form`.

    Raises:
      ValueError: if the state is damaged or belongs to another search.
    """
    where = (folder / name).absolute()
    if not where.is_dir():
        return None
    import orbax.checkpoint

    leaves, structure = jax.tree.flatten(form)
    wanted = [jax.eval_shape(jax.random.key_data, leaf) if _is_key(leaf) else leaf for leaf in leaves]
    try:
        with _manager(where) as manager:
            step = manager.latest_step()
            if step is None:
                return None
            content: Any = manager.restore(step, args=orbax.checkpoint.args.PyTreeRestore())
        found, steps, best_loss = content["lanes"], content["steps"], content["best_loss"]
        if [(leaf.shape, leaf.dtype) for leaf in found] != [(leaf.shape, leaf.dtype) for leaf in wanted]:
            raise ValueError("it belongs to another search")
        if steps[-1] != step or len(steps) != len(best_loss):
            raise ValueError("its history does not match its step")
        seconds = float(content["seconds"])
    except Exception as error:  # orbax may raise anything for a damaged file
        raise ValueError(f"the state saved in {where} cannot be read; delete it to start anew: {error}") from error
    lanes = [
        jax.random.wrap_key_data(jnp.asarray(data)) if _is_key(leaf) else jnp.asarray(data)
        for data, leaf in zip(found, leaves)
    ]
    return Kept(Resumable(step, seconds, structure.unflatten(lanes)), steps, best_loss)


def forget(folder: Path, name: str) -> None:
    """Deletes the state of job `name`, and the folder if it is then empty."""
    shutil.rmtree(folder / name, ignore_errors=True)
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


def _manager(where: Path) -> Any:
    import orbax.checkpoint

    options = orbax.checkpoint.CheckpointManagerOptions(
        max_to_keep=1, enable_async_checkpointing=False, cleanup_tmp_directories=True
    )
    return orbax.checkpoint.CheckpointManager(where, options=options)


def _is_key(leaf: Any) -> bool:
    return jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _as_data(leaf: Any) -> np.ndarray:
    return np.asarray(jax.random.key_data(leaf) if _is_key(leaf) else leaf)
