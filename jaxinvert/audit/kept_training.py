"""Federated training that is kept in the audit's folder, so that an interrupt repeats a minute of it at most.

Every reported round is a file: its accuracy and, if it is attacked, its parameters. The state of the server after the
last round done is another one, replaced every minute, at every report and at an interrupt; a finished training needs
none. A training is identified by its job and its number of rounds.
"""

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxinvert import files, jobs
from jaxinvert.audit.utility import reported_rounds, train_under, training_and_test
from jaxinvert.federation import FederationState, Snapshot
from jaxinvert.jobs import JobConfig
from jaxinvert.types import ArrayTree, Params

_SECONDS_BETWEEN_STATES = 60.0


class Reported(NamedTuple):
    """What is known after some rounds of training.

    Attributes:
      round: rounds done.
      accuracy: share of test images classified correctly, 0 ... 1.
      num_test: number of test images.
      params: the parameters of that round; `None` unless they are attacked.
    """

    round: int
    accuracy: float
    num_test: int
    params: Params | None


def kept_training(
    config: JobConfig, setup: jobs.Setup, *, num_rounds: int, attacked: Sequence[int], folder: Path | None
) -> Iterator[Reported]:
    """Trains as `train_under` does, but what is in the folder is not repeated, to the same result.

    Args:
      config: the job.
      setup: the setup of this job.
      num_rounds: rounds of training.
      attacked: reported rounds whose parameters are wanted.
      folder: keeps the training; `None` keeps nothing.

    Raises:
      ValueError: see `train_under`.
    """
    form = jax.eval_shape(lambda: setup.trained or setup.clients.init(jobs.stream(0, jobs.Stream.PARAMETERS)))
    place = None if folder is None else _place(folder, config, num_rounds)
    kept = [] if place is None else _kept_reports(place, reported_rounds(num_rounds), attacked, form)
    if kept and kept[-1].round == num_rounds:
        yield from kept
        return
    resumed: list[int] = []

    def resume(start: FederationState) -> FederationState | None:
        state = None if place is None else _load_state(place, start)
        if state is None or not kept or not kept[-1].round <= int(state.round):
            return None
        resumed.append(int(state.round))
        return state

    unsaved: list[FederationState] = []
    saved = time.monotonic()

    def on_state(state: FederationState) -> None:
        nonlocal saved
        unsaved[:] = [state]
        if place is not None and time.monotonic() - saved > _SECONDS_BETWEEN_STATES:
            _save_state(place, state)
            saved = time.monotonic()

    snapshots = train_under(config, setup, num_rounds=num_rounds, resume=resume, on_state=on_state)
    num_test = len(training_and_test(config, setup)[1].labels)
    if resumed:
        yield from kept
    while True:
        try:
            snapshot = next(snapshots, None)
        except KeyboardInterrupt:
            if place is not None and unsaved:
                with jobs.uninterruptible():
                    _save_state(place, unsaved[0])
            raise
        if snapshot is None:
            return
        params = snapshot.state.params if snapshot.round in attacked else None
        report = Reported(snapshot.round, snapshot.accuracy, num_test, params)
        if place is not None:
            with jobs.uninterruptible():
                _save_report(place, report, snapshot, last=snapshot.round == num_rounds)
        yield report


def is_kept(config: JobConfig, num_rounds: int, folder: Path | None) -> bool:
    """Whether the folder keeps the last report of a training."""
    return folder is not None and _file(_place(folder, config, num_rounds), num_rounds).is_file()


def _place(folder: Path, config: JobConfig, num_rounds: int) -> Path:
    return folder / "training" / f"{jobs.job_name(config)}-{num_rounds}"


def _save_report(place: Path, report: Reported, snapshot: Snapshot, *, last: bool) -> None:
    """Writes a report and, before the last one, the state to continue from."""
    params = {} if report.params is None else _named(report.params)
    files.save_arrays(
        _file(place, report.round), {"accuracy": report.accuracy, "num_test": report.num_test, **params}
    )
    if last:
        (place / "state.npz").unlink(missing_ok=True)
    else:
        _save_state(place, snapshot.state)


def _kept_reports(place: Path, rounds: Sequence[int], attacked: Sequence[int], form: Params) -> list[Reported]:
    """The first reports of a training that can be read, without a gap."""
    kept = []
    for number in rounds:
        try:
            arrays = files.load_arrays(_file(place, number))
            params = _restored(arrays, form) if number in attacked else None
            kept.append(Reported(number, float(arrays["accuracy"]), int(arrays["num_test"]), params))
        except (FileNotFoundError, ValueError, KeyError):
            break
    return kept


def _save_state(place: Path, state: FederationState) -> None:
    files.save_arrays(place / "state.npz", _named(state))


def _load_state(place: Path, like: FederationState) -> FederationState | None:
    """The state in the folder; `None` if there is none, or it is damaged or of another training."""
    try:
        return _restored(files.load_arrays(place / "state.npz"), like)
    except (FileNotFoundError, ValueError, KeyError):
        return None


def _file(place: Path, number: int) -> Path:
    return place / f"round-{number}.npz"


def _named(tree: ArrayTree) -> dict[str, np.ndarray]:
    leaves = (jax.random.key_data(leaf) if _is_key(leaf) else leaf for leaf in jax.tree.leaves(tree))
    return {f"leaf/{number}": np.asarray(leaf) for number, leaf in enumerate(leaves)}


def _restored(arrays: dict[str, np.ndarray], like: Any) -> Any:
    """The tree that `_named` wrote.

    Raises:
      KeyError, ValueError: if it is not of the form of `like`.
    """

    def leaf_of(array: np.ndarray, form: Any) -> jax.Array:
        if _is_key(form):
            return jax.random.wrap_key_data(jnp.asarray(array))
        if array.dtype.kind == "V":  # npz forgets the names of dtypes such as bfloat16
            array = array.view(form.dtype)
        if (array.shape, array.dtype) != (form.shape, form.dtype):
            raise ValueError(f"a tensor is {array.dtype} {array.shape}, expected {form.dtype} {form.shape}")
        return jnp.asarray(array)

    leaves, structure = jax.tree.flatten(like)
    return structure.unflatten([leaf_of(arrays[f"leaf/{number}"], form) for number, form in enumerate(leaves)])


def _is_key(leaf: Any) -> bool:
    return jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
