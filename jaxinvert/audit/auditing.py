"""The audit: every setting attacked, the same attacks without the update, and what is left of the difference."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxinvert import jobs
from jaxinvert.audit import controls
from jaxinvert.audit.evidence import (
    Evidence,
    Excess,
    Rate,
    Trials,
    excess,
    excess_over_all,
    identification,
    permutation_p_value,
)
from jaxinvert.audit.retrieval import NOBODY, Null, null, pool
from jaxinvert.audit.running import Show, attack, found_in
from jaxinvert.audit.scoring import Ground, Scores, ground_truth, score
from jaxinvert.audit.utility import Utility, rounds_to_attack, train_under, training_and_test
from jaxinvert.audit.verdict import Verdict, judge
from jaxinvert.defenses.registry import NONE
from jaxinvert.jobs import JobConfig
from jaxinvert.jobs.automatic import AUTO, SEARCH
from jaxinvert.priors import generators
from jaxinvert.search import Progress


class Scenario(NamedTuple):
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
      in_class: whether its images competed with candidates of their class alone, as the labels were granted.
      trials: the same of one image of each client.
      strongest: the control with the highest mean PSNR.
      closest: the control from which the attack can be told least by its PSNR.
      excess: of the PSNR over the strongest, in dB, over clients; its p is that over the closest.
      gained: of the SSIM over the strongest.
    """

    config: JobConfig
    summary: dict[str, Any]
    scores: Scores
    controls: dict[str, Scores]
    identified: Rate
    in_class: bool
    trials: Trials
    strongest: str
    closest: str
    excess: Excess
    gained: Excess

    @property
    def evidence(self) -> Evidence:
        """What the verdict rests on."""
        return Evidence(self.identified, self.in_class, self.excess, self.strongest, self.closest)


class Audited(NamedTuple):
    """A setting, judged.

    Attributes:
      name: of the setting.
      ground: truth and candidates.
      attackers: what each reached.
      worst: name of the attacker whose evidence the verdict rests on; without any, of who identified most.
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
    settings: Sequence[Scenario],
    *,
    num_candidates: int = 100,
    accuracy_rounds: int = 0,
    leakage_rounds: int = 0,
    with_lpips: bool = False,
    folder: Path | None = None,
    on_progress: Show = lambda what, progress: None,
) -> list[Audited]:
    """Attacks every setting by all its attackers, beside the null controls, and judges the evidence of them all.

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
    nulls: dict[bool, Null] = {}
    attackers = {attacker: _weighed(ground, *reached, nulls) for attacker, reached in found.items()}
    worst, verdict = judge(
        {name: attacked.evidence for name, attacked in attackers.items()},
        num_candidates=len(ground.candidates.labels),
    )
    return Audited(name, ground, attackers, worst, verdict)


def _weighed(
    ground: Ground,
    config: JobConfig,
    summary: dict[str, Any],
    scores: Scores,
    of_controls: dict[str, Scores],
    nulls: dict[bool, Null],
) -> Attacked:
    """Sets what one attacker reached against the controls; `nulls` holds the deals of this ground, by `in_class`."""
    over_strongest, strongest, closest = excess_over_all(
        scores.psnr_db.mean(axis=1), {name: one.psnr_db.mean(axis=1) for name, one in of_controls.items()}
    )
    in_class = config.granted.labels and scores.picked_in_class is not None
    if in_class not in nulls:
        same = (ground.pool or pool(ground.candidates.inputs)).same
        nulls[in_class] = null(ground.private, ground.candidates.labels, same, in_class=in_class)
    return Attacked(
        config,
        summary,
        scores,
        of_controls,
        _identification(scores, of_controls, nulls[in_class], in_class),
        in_class,
        _trials(_picks(scores, nulls[in_class], in_class), nulls[in_class]),
        strongest,
        closest,
        over_strongest,
        excess(scores.ssim.mean(axis=1), of_controls[strongest].ssim.mean(axis=1)),
    )


def _identification(scores: Scores, of_controls: Mapping[str, Scores], deals: Null, in_class: bool) -> Rate:
    """Clients identified, among candidates of their class or all, against what permuted clients and controls are."""
    able = deals.clients

    def hits_and_counts(one: Scores) -> tuple[np.ndarray, np.ndarray]:
        picks = _picks(one, deals, in_class)
        return deals.hits(picks)[able], deals.counts(picks)

    return identification(
        *hits_and_counts(scores),
        permutation_p_value(int(able.sum()), deals.counts(deals.private)),
        chance=deals.chance,
        controls=[hits_and_counts(one) for one in of_controls.values()],
    )


def _picks(scores: Scores, deals: Null, in_class: bool) -> np.ndarray:
    """`[T, P]`: what the reconstructions chose, among candidates of their class or all."""
    picks = scores.picked_in_class if in_class else scores.picked
    return np.full(deals.private.shape, NOBODY) if picks is None else picks


def _trials(picks: np.ndarray, deals: Null) -> Trials:
    hits, chances = deals.one_of_each(picks)
    return Trials(int(hits.sum()), len(hits), float(chances.mean()) if len(hits) else 1.0)


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
    setting: Scenario,
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
        if prior_saw_victims(config):
            found[attacker] = (config, _saying_so(found[attacker][1]), *found[attacker][2:])
    assert ground is not None
    one = judged(setting.name, ground, found)._replace(note=setting.note)
    return one, setups[one.worst]


def prior_saw_victims(config: JobConfig) -> bool:
    """Whether the attacker's generator was trained on parts of the very scenes that the simulated victims hold."""
    return config.attacker.generator_file == generators.DEFAULT and config.data.name == "photos"


def _saying_so(summary: dict[str, Any]) -> dict[str, Any]:
    """The summary of an attack whose prior saw the victims' scenes, which its assumptions then say."""
    assumptions = summary["assumptions"]
    known = [*assumptions["known"], "parts of the victims' own scenes: the generator was trained on them"]
    return {**summary, "assumptions": {**assumptions, "known": known}}


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
        num_test = len(training_and_test(worst.config, setup)[1].labels)
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
        utility=Utility([*accuracy], [*accuracy.values()], num_test),
        leakage=leakage if later_rounds else None,
        note=_joined(notes),
    )


def _attacked_after(
    num_rounds: int, before: Attacked, task: jobs.Task, ground: Ground, folder: Path | None, on_progress: Show
) -> Attacked:
    """Attacks the same clients with the parameters that training has after some rounds.

    What an attack shows without the client's update may depend on the parameters: its guess reads the network, and
    so does its descent. The controls that are attacks, on a random update and on another client's, are therefore
    renewed. Mean pictures do not depend on parameters, nor does the attack that is blind to client and network.

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
    noise = controls.random_update(jobs.stream(config.seed, jobs.Stream.NULL_UPDATES), task.observations)
    on_noise = attack(f"random update after round {num_rounds}", config, task.program, noise, folder, on_progress)
    of_controls = {**before.controls, "random update": score(*found_in(on_noise), ground)}
    if config.data.targets > 1:
        of_controls["other client"] = score(controls.other_client(found), used, ground)
    summary = jobs.measure(config, task, execution).summary
    return _weighed(ground, config, summary, score(found, used, ground), of_controls, {})


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
    if config.attacker.attack == SEARCH:
        # Its prior weighs as much as the update is missed. Without an update nothing moves it but rounding, which
        # Adam makes as large as any gradient: the picture of the prior is the start.
        config = config.replace(steps=0)
    if config.granted.labels:
        config = config.replace(defense=NONE, defense_settings={}, adaptive=False)
    name = jobs.job_name(config)
    if name not in known:
        program = jobs.Program(config, task.model, told=controls.blind)
        known[name], _ = found_in(attack("prior only", config, program, task.observations, folder, on_progress))
    return known[name]
