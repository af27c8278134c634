"""The audit: every setting attacked, the same attacks without the update, and what is left of the difference."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxinvert import jobs
from jaxinvert.audit import controls
from jaxinvert.audit.evidence import Excess, Rate, excess, rate
from jaxinvert.audit.retrieval import chance_of_any
from jaxinvert.audit.running import Show, attack, found_in
from jaxinvert.audit.scoring import Ground, Scores, ground_truth, score
from jaxinvert.audit.utility import Utility, rounds_to_attack, train_under
from jaxinvert.audit.verdict import Verdict, judge
from jaxinvert.defenses.registry import NONE
from jaxinvert.jobs import JobConfig
from jaxinvert.jobs.automatic import AUTO, SEARCH
from jaxinvert.search import Progress


class Setting(NamedTuple):
    """What is to be judged: one way to train and defend, and all who attack it.

    Attributes:
      name: for people.
      attackers: jobs by name, such as "naive" and "adaptive"; they differ in the attack alone.
      note: what a reader must know about the attackers, such as why none adapts.
    """

    name: str
    attackers: Mapping[str, JobConfig]
    note: str = ""


class Attacked(NamedTuple):
    """What one attacker reached.

    Attributes:
      config: the job.
      summary: of the attack, as `jobs.measure` makes it.
      scores: of its reconstructions.
      controls: scores by the name of the control.
      identified: clients with at least one image identified.
      strongest: the control with the highest mean PSNR.
      excess: of the PSNR over it, in dB, over clients.
      gained: of the SSIM over the same control.
    """

    config: JobConfig
    summary: dict[str, Any]
    scores: Scores
    controls: dict[str, Scores]
    identified: Rate
    strongest: str
    excess: Excess
    gained: Excess


class Audited(NamedTuple):
    """A setting, judged.

    Attributes:
      name: of the setting.
      ground: truth and candidates.
      attackers: what each reached.
      worst: name of the attacker who reached most; the verdict is on that one.
      verdict: in words.
      note: that of the setting.
      utility: accuracy of training under this defense, if it was asked for and can be measured.
      leakage: what the worst attacker reaches after so many rounds of that training, ascending from 0, which is the
        attack above; if it was asked for and can be measured.
    """

    name: str
    ground: Ground
    attackers: dict[str, Attacked]
    worst: str
    verdict: Verdict
    note: str = ""
    utility: Utility | None = None
    leakage: dict[int, Attacked] | None = None


def audit(
    settings: Sequence[Setting],
    *,
    num_candidates: int = 100,
    accuracy_rounds: int = 0,
    leakage_rounds: int = 0,
    with_lpips: bool = False,
    folder: Path | None = None,
    on_progress: Show = lambda what, progress: None,
) -> list[Audited]:
    """Attacks every setting by all its attackers, beside the null controls, and judges it by the worst.

    Args:
      settings: they share data, network and all else but defense and attack.
      num_candidates: private images and others from the same split, among which reconstructions have to pick.
      accuracy_rounds: of federated training under every defense, to set what it costs beside what it hides; 0 = none.
      leakage_rounds: after how many of these rounds the same clients are attacked again by the worst attacker, with
        the parameters that training has by then; see `rounds_to_attack`.
      with_lpips: whether to measure LPIPS, too.
      folder: keeps what was reconstructed, so that the same audit goes on after an interrupt.
      on_progress: called now and then.

    Raises:
      ValueError: for settings that are not possible.
      KeyboardInterrupt: after the state of the attack in flight was kept.
    """
    later_rounds = rounds_to_attack(accuracy_rounds, leakage_rounds)
    on_progress("preparing", None)
    setup = jobs.set_up(next(iter(settings[0].attackers.values())))
    blind: dict[str, np.ndarray] = {}
    audited = []
    for setting in settings:
        one, of_worst = _audited(setting, setup, num_candidates, with_lpips, folder, on_progress, blind)
        if accuracy_rounds:
            one = _along_training(one, of_worst, accuracy_rounds, later_rounds, folder, on_progress)
        audited.append(one)
    return audited


def judged(
    name: str, ground: Ground, found: Mapping[str, tuple[JobConfig, dict[str, Any], Scores, dict[str, Scores]]]
) -> Audited:
    """Weighs what the attackers of one setting reached.

    Args:
      name: of the setting.
      ground: truth and candidates.
      found: by attacker: the job, its summary, scores of the attack, and scores of its controls by name.
    """
    attackers = {attacker: _weighed(ground, *reached) for attacker, reached in found.items()}
    worst = max(attackers, key=lambda one: (attackers[one].identified.count, attackers[one].excess.mean))
    chosen = attackers[worst]
    verdict = judge(
        chosen.identified,
        chosen.excess,
        num_candidates=len(ground.candidates.labels),
        strongest=chosen.strongest,
        num_attackers=len(attackers),
    )
    return Audited(name, ground, attackers, worst, verdict)


def _weighed(
    ground: Ground, config: JobConfig, summary: dict[str, Any], scores: Scores, of_controls: dict[str, Scores]
) -> Attacked:
    """Sets what one attacker reached against chance and the strongest control."""
    strongest = max(of_controls, key=lambda control: of_controls[control].psnr_db.mean())
    null = of_controls[strongest]
    identified = rate(
        int(scores.identified.any(axis=1).sum()),
        len(scores.identified),
        chance=chance_of_any(ground.private.shape[1], len(ground.candidates.labels)),
    )
    return Attacked(
        config,
        summary,
        scores,
        of_controls,
        identified,
        strongest,
        excess(scores.psnr_db.mean(axis=1), null.psnr_db.mean(axis=1)),
        excess(scores.ssim.mean(axis=1), null.ssim.mean(axis=1)),
    )


def attack_and_score(
    config: JobConfig,
    task: jobs.Task,
    ground: Ground,
    *,
    blind: np.ndarray | None = None,
    with_lpips: bool = False,
    folder: Path | None = None,
    on_progress: Show = lambda what, progress: None,
) -> tuple[JobConfig, dict[str, Any], Scores, dict[str, Scores]]:
    """Runs the attack of a job and its controls, and scores all.

    Args:
      config: the job.
      task: prepared for it.
      ground: truth and candidates.
      blind: `[T, B, H, W, C]` what the attack shows if blind to the update, if that makes sense.
      with_lpips: whether to measure LPIPS, too.
      folder: keeps what was reconstructed.
      on_progress: called now and then.
    """
    scored = partial(score, ground=ground, with_lpips=with_lpips)
    key = jobs.stream(config.seed, jobs.Stream.NULL_UPDATES)
    execution = attack("attack", config, task.program, task.observations, folder, on_progress)
    summary = jobs.measure(config, task, execution).summary
    found, used = found_in(execution)
    noise = controls.random_update(key, task.observations)
    on_noise, used_on_noise = found_in(attack("random update", config, task.program, noise, folder, on_progress))
    of_controls = {
        "mean image": scored(controls.mean_image(ground), used),
        "random update": scored(on_noise, used_on_noise),
    }
    if config.granted.labels:
        of_controls["class mean"] = scored(controls.class_mean(ground), used)
    if blind is not None:
        of_controls["prior only"] = scored(blind, used)
    if config.data.targets > 1:
        of_controls["other client"] = scored(controls.other_client(found), used)
    return config, summary, scored(found, used), of_controls


def _audited(
    setting: Setting,
    setup: jobs.Setup,
    num_candidates: int,
    with_lpips: bool,
    folder: Path | None,
    on_progress: Show,
    blind: dict[str, np.ndarray],
) -> tuple[Audited, jobs.Setup]:
    """The setting, judged, and the setup of its worst attacker, with all that was compiled."""
    found, setups, ground = {}, {}, None
    for attacker, config in setting.attackers.items():
        on_progress(f"{setting.name}, {attacker}: preparing", None)
        setup = setups[attacker] = jobs.adjusted(setup, config)
        task = jobs.prepare(config, setup)
        ground = ground_truth(
            task.truth, setup.dataset.images, np.asarray(setup.dataset.labels), num_candidates=num_candidates
        )

        def show(what: str, progress: Progress | None) -> None:
            on_progress(f"{setting.name}, {attacker}: {what}", progress)  # noqa: B023  it is called within the loop

        found[attacker] = attack_and_score(
            config,
            task,
            ground,
            blind=blind_attack(config, task, folder, show, blind),
            with_lpips=with_lpips,
            folder=folder,
            on_progress=show,
        )
    assert ground is not None
    one = judged(setting.name, ground, found)._replace(note=setting.note)
    return one, setups[one.worst]


def _along_training(
    one: Audited,
    setup: jobs.Setup,
    num_rounds: int,
    later_rounds: Sequence[int],
    folder: Path | None,
    on_progress: Show,
) -> Audited:
    """Adds the accuracy of training under the setting's defense and what leaks on the way, or why there is none."""
    worst, notes, accuracy = one.attackers[one.worst], [one.note], {}
    leakage = {0: worst}

    def show(what: str, progress: Progress | None) -> None:
        on_progress(f"{one.name}, {one.worst}: {what}", progress)

    try:
        snapshots = train_under(worst.config, setup, num_rounds=num_rounds)
    except ValueError as error:
        return one._replace(note=_joined([one.note, str(error)]))
    on_progress(f"{one.name}: training for the accuracy", None)
    for snapshot in snapshots:
        accuracy[snapshot.round] = snapshot.accuracy
        if snapshot.round not in later_rounds:
            continue
        try:
            task = jobs.prepare(worst.config, setup._replace(trained=snapshot.state.params))
        except ValueError as error:  # such as an update without a finite number, of a training that went astray
            notes.append(f"what leaks after round {snapshot.round} of training is not known: {error}")
            continue
        leakage[snapshot.round] = _attacked_after(snapshot.round, worst, task, one.ground, folder, show)
        on_progress(f"{one.name}: training for the accuracy", None)
    return one._replace(
        utility=Utility([*accuracy], [*accuracy.values()], len(setup.dataset.labels)),
        leakage=leakage if later_rounds else None,
        note=_joined(notes),
    )


def _attacked_after(
    num_rounds: int, before: Attacked, task: jobs.Task, ground: Ground, folder: Path | None, on_progress: Show
) -> Attacked:
    """Attacks the same clients with the parameters that training has after some rounds.

    The controls are those of the attack before training, none of which has seen these clients' updates; that of
    another client is renewed, which costs nothing, for networks that make other pictures once they are trained.

    Args:
      num_rounds: after which it is.
      before: the attack before training.
      task: prepared with the parameters of that round.
      ground: truth and candidates.
      folder: keeps what was reconstructed.
      on_progress: called now and then.
    """
    config = before.config
    execution = attack(
        f"attack after round {num_rounds}", config, task.program, task.observations, folder, on_progress
    )
    found, used = found_in(execution)
    of_controls = before.controls
    if config.data.targets > 1:
        of_controls = {**of_controls, "other client": score(controls.other_client(found), used, ground)}
    return _weighed(
        ground, config, jobs.measure(config, task, execution).summary, score(found, used, ground), of_controls
    )


def _joined(notes: Sequence[str]) -> str:
    return "; ".join(filter(None, notes))


def blind_attack(
    config: JobConfig, task: jobs.Task, folder: Path | None, on_progress: Show, known: dict[str, np.ndarray]
) -> np.ndarray | None:
    """What an attack shows that cannot see the update: the same for all defenses, unless it restores labels first.

    Args:
      config: the job.
      task: prepared for it.
      folder: keeps the result.
      on_progress: called now and then.
      known: results by the name of the job, to which this one is added.

    Returns:
      `[T, B, H, W, C]`, or `None` for attacks that do not simulate clients step by step.
    """
    if not task.program.iterates or not config.attacker.entry.traits.simulates:
        return None
    if config.attacker.attack == AUTO:  # a closed form would read the update
        config = config.replace(attack=SEARCH)
    if config.granted.labels:
        config = config.replace(defense=NONE, defense_settings={}, adaptive=False)
    name = jobs.job_name(config)
    if name not in known:
        program = jobs.Program(config, task.model, told=controls.blind)
        known[name], _ = found_in(attack("prior only", config, program, task.observations, folder, on_progress))
    return known[name]
