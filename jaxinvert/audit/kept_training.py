"""Federated training that is kept in the audit's folder, so that an interrupt repeats a minute of it at most.

Every reported round is kept: its accuracy and, if it is attacked, its parameters. So is the state of the server after
the last round done, replaced every minute, at every report and at an interrupt; a finished training needs none. A
training is identified by its job and its number of rounds.
"""

import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax

from jaxinvert import jobs
from jaxinvert.audit.kept import Store
from jaxinvert.audit.utility import reported_rounds, train_under, training_and_test
from jaxinvert.federation import FederationState, Snapshot
from jaxinvert.jobs import JobConfig
from jaxinvert.jobs.state import named, restored
from jaxinvert.types import Params

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


class _Place(NamedTuple):
    """Where a training is kept."""

    store: Store
    job: str
    num_rounds: int

    @property
    def state(self) -> str:
        """Name of the server's state."""
        return f"training {self.num_rounds} state"

    def report(self, number: int) -> str:
        """Name of the report after this many rounds."""
        return name_of_report(self.num_rounds, number)


def kept_training(
    config: JobConfig, setup: jobs.Setup, *, num_rounds: int, attacked: Sequence[int], store: Store | None
) -> Iterator[Reported]:
    """Trains as `train_under` does, but what is kept is not repeated, to the same result.

    Args:
      config: the job.
      setup: the setup of this job.
      num_rounds: rounds of training.
      attacked: reported rounds whose parameters are wanted.
      store: keeps the training; `None` keeps nothing.

    Raises:
      ValueError: see `train_under`.
    """
    place = None if store is None else _Place(store, jobs.job_name(config), num_rounds)
    kept = [] if place is None else _kept_reports(place, reported_rounds(num_rounds), attacked, setup)
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
            unsaved.clear()  # it is older than what was saved just now
            saved = time.monotonic()
        yield report


def name_of_report(num_rounds: int, number: int) -> str:
    """The name by which an audit keeps the report after round `number` of a training of `num_rounds`."""
    return f"training {num_rounds} round {number}"


def _save_report(place: _Place, report: Reported, snapshot: Snapshot, *, last: bool) -> None:
    """Keeps a report and, before the last one, the state to continue from."""
    params = {} if report.params is None else named(report.params)
    arrays = {"accuracy": report.accuracy, "num_test": report.num_test, **params}
    place.store.save(place.job, place.report(report.round), arrays)
    if last:
        place.store.forget(place.job, place.state)
    else:
        _save_state(place, snapshot.state)


def _kept_reports(place: _Place, rounds: Sequence[int], attacked: Sequence[int], setup: jobs.Setup) -> list[Reported]:
    """The first reports of a training that are kept, without a gap."""
    form = jax.eval_shape(lambda: setup.trained or setup.clients.init(jobs.stream(0, jobs.Stream.PARAMETERS)))
    kept = []
    for number in rounds:
        arrays = place.store.load(place.job, place.report(number), needed=("accuracy", "num_test"))
        if arrays is None:
            break
        try:
            params = restored(arrays, form) if number in attacked else None
        except ValueError:  # kept when this round was not attacked
            break
        kept.append(Reported(number, float(arrays["accuracy"]), int(arrays["num_test"]), params))
    return kept


def _save_state(place: _Place, state: FederationState) -> None:
    place.store.save(place.job, place.state, named(state))


def _load_state(place: _Place, like: FederationState) -> FederationState | None:
    """The kept state; `None` if there is none, or it is damaged or of another training."""
    arrays = place.store.load(place.job, place.state, needed=())
    try:
        return None if arrays is None else restored(arrays, like)
    except ValueError:
        return None
