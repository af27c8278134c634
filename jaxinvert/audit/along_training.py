"""Accuracy and leakage during a federated training under a scenario's defense."""

from collections.abc import Sequence

from jaxinvert import jobs
from jaxinvert.audit import controls
from jaxinvert.audit.kept import Store
from jaxinvert.audit.kept_training import kept_training
from jaxinvert.audit.results import Attacked, Audited
from jaxinvert.audit.retrieval import Null
from jaxinvert.audit.running import Show, attack, found_in, reason
from jaxinvert.audit.scoring import Ground, score
from jaxinvert.audit.utility import Utility
from jaxinvert.audit.weighing import weighed
from jaxinvert.search import Progress


def along_training(
    one: Audited,
    setup: jobs.Setup,
    num_rounds: int,
    later_rounds: Sequence[int],
    store: Store | None,
    on_progress: Show,
    nulls: dict[bool, Null],
) -> Audited:
    """Adds accuracy and leakage during training under the scenario's defense, or a note why they are missing.

    Args:
      one: the judged scenario.
      setup: the setup of its worst attacker.
      num_rounds: rounds of training.
      later_rounds: reported rounds after which the worst attacker attacks again.
      store: keeps the training, and the reconstructions.
      on_progress: called repeatedly with the current step.
      nulls: cache of the null distributions of `one.ground`, see `weighed`.
    """
    worst, notes, accuracy, num_test = one.attackers[one.worst], [one.note], {}, 0
    leakage = {0: worst}

    def show(what: str, progress: Progress | None) -> None:
        on_progress(f"{one.name}, {one.worst}: {what}", progress)

    reports = kept_training(worst.config, setup, num_rounds=num_rounds, attacked=later_rounds, store=store)
    while True:
        on_progress(f"{one.name}: training for the accuracy", None)
        try:
            report = next(reports, None)
        except Exception as error:  # of whatever kind: the attacks are finished, and their verdict stands
            what = "no accuracy and no leakage" if later_rounds else "no accuracy"
            after = f" after round {max(accuracy)}" if accuracy else ""
            notes.append(f"{what} during training{after}: {reason(error)}")
            break
        if report is None:
            break
        accuracy[report.round], num_test = report.accuracy, report.num_test
        if report.round not in later_rounds:
            continue
        try:
            task = jobs.prepare(worst.config, setup._replace(trained=report.params))
            leakage[report.round] = _attacked_after(report.round, worst, task, one.ground, store, show, nulls)
        except Exception as error:  # for example non-finite updates after training diverged
            notes.append(f"leakage after round {report.round} of training is unknown: {reason(error)}")
    if not accuracy:
        return one._replace(note=_joined(notes))
    return one._replace(
        utility=Utility([*accuracy], [*accuracy.values()], num_test),
        leakage=leakage if later_rounds else None,
        note=_joined(notes),
    )


def _attacked_after(
    num_rounds: int,
    before: Attacked,
    task: jobs.Task,
    ground: Ground,
    store: Store | None,
    on_progress: Show,
    nulls: dict[bool, Null],
) -> Attacked:
    """Attacks the same clients with the parameters after some rounds of training.

    The result of an attack on a random update, or on another client's, may depend on the parameters: both its initial
    guess and its optimization use the network. These two controls are therefore repeated. Mean images do not depend
    on the parameters, nor does the prior-only attack, which sees neither client nor network.

    Args:
      num_rounds: rounds of training before the attack.
      before: results of the attack before training.
      task: the task prepared with the parameters of that round.
      ground: truth and candidates.
      store: keeps the reconstructions.
      on_progress: called repeatedly with the current step.
      nulls: see `along_training`.
    """
    config = before.config
    execution = attack(
        f"attack after round {num_rounds}", config, task.program, task.observations, store, on_progress
    )
    found, used = found_in(execution)
    noise = controls.random_update(jobs.stream(config.seed, jobs.Stream.NULL_UPDATES), task.observations)
    on_noise = attack(f"random update after round {num_rounds}", config, task.program, noise, store, on_progress)
    of_controls = {**before.controls, "random update": score(*found_in(on_noise), ground)}
    if config.data.targets > 1:
        of_controls["other client"] = score(controls.other_client(found), used, ground)
    summary = jobs.measure(config, task, execution).summary
    return weighed(ground, config, summary, score(found, used, ground), of_controls, nulls)


def _joined(notes: Sequence[str]) -> str:
    return "; ".join(filter(None, notes))
