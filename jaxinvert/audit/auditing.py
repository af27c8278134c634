"""The audit loop: runs the attackers of every scenario and the null controls, and judges the differences."""

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
from jaxinvert.search import Progress


class Scenario(NamedTuple):
    """One deployment, that is, training and defense, with its attackers.

    Attributes:
      name: shown to people.
      attackers: jobs by name of the attacker, such as "naive" and "adaptive"; they differ only in the attack.
      note: what a reader must know about the attackers, such as why there is no adaptive one.
    """

    name: str
    attackers: Mapping[str, JobConfig]
    note: str = ""


class Attacked(NamedTuple):
    """The results of one attacker.

    Attributes:
      config: the job.
      summary: the summary of the attack, see `jobs.measure`.
      scores: scores of its reconstructions.
      controls: scores by name of the control.
      identified: clients with at least one image identified.
      in_class: whether candidates are limited to the class of the image, because the attacker was granted the labels.
      trials: identification of a single image per client.
      strongest: the control with the highest mean PSNR.
      closest: the control that the PSNR distinguishes least from the attack, that is, with the largest p-value.
      excess: PSNR in dB above `strongest`, over clients; its p-value is that of `closest`.
      gained: SSIM above `strongest`, over clients.
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
        """The figures that the verdict rests on."""
        return Evidence(self.identified, self.in_class, self.excess, self.strongest, self.closest)


class Audited(NamedTuple):
    """The results and the verdict of one scenario.

    Attributes:
      name: name of the scenario.
      ground: truth and candidates.
      attackers: results by name of the attacker.
      worst: the attacker whose evidence the verdict rests on; without evidence, the one that identified most clients.
      verdict: the verdict in words.
      note: note of the scenario, followed by problems of its training.
      utility: accuracy of training under this defense, if requested and measurable.
      leakage: results of the worst attacker after each number of training rounds, ascending from 0, the attack above;
        if requested and measurable.
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
    """Runs all attackers and null controls of every scenario, and judges the evidence.

    Args:
      settings: the scenarios; they share everything, such as data and network, except defense and attack.
      num_candidates: number of images, private ones and others from the split, to match reconstructions with.
      accuracy_rounds: rounds of federated training under every defense, to measure its cost in accuracy; 0 = none.
      leakage_rounds: number of points during this training at which the worst attacker attacks the same clients
        again, with the parameters of that round; see `rounds_to_attack`.
      with_lpips: whether to measure LPIPS, too.
      folder: stores the reconstructions, so that the same audit resumes after an interrupt.
      on_progress: called repeatedly with the current step.

    Raises:
      ValueError: for an invalid scenario.
      KeyboardInterrupt: after the state of the running attack is saved.
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
    """Judges the scores of all attackers of one scenario.

    Args:
      name: name of the scenario.
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
    """Compares one attacker with its controls; `nulls` caches the null distribution of `ground` by `in_class`."""
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
    """Rate of clients identified, tested against permuted private images and against the controls."""
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
    """`[T, P]`: candidates that the reconstructions pick, among those of their class or among all."""
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
    """Runs the attack of a job and its controls, and returns an entry of `found` in `judged`.

    Args:
      config: the job.
      task: the task prepared for this job.
      ground: truth and candidates.
      blind: `[T, B, H, W, C]` reconstructions of the attack without access to the update, see `blind_attack`.
      with_lpips: whether to measure LPIPS, too.
      folder: stores the reconstructions.
      on_progress: called repeatedly with the current step.
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
    """The judged scenario, and the setup of its worst attacker, which holds the compiled functions."""
    found, setups, ground = {}, {}, None
    for attacker, config in setting.attackers.items():
        on_progress(f"{setting.name}, {attacker}: preparing", None)
        setup = setups[attacker] = jobs.adjusted(setup, config)
        task = jobs.prepare(config, setup)
        ground = ground_truth(
            task.truth, setup.dataset.images, np.asarray(setup.dataset.labels), num_candidates=num_candidates
        )

        def show(what: str, progress: Progress | None) -> None:
            on_progress(f"{setting.name}, {attacker}: {what}", progress)  # noqa: B023  only called in this iteration

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
    """Adds accuracy and leakage during training under the scenario's defense, or a note why they are missing."""
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
        except ValueError as error:  # for example non-finite updates after training diverged
            notes.append(f"leakage after round {snapshot.round} of training is unknown: {error}")
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
    """Attacks the same clients with the parameters after some rounds of training.

    The result of an attack on a random update, or on another client's, may depend on the parameters: both its initial
    guess and its optimization use the network. These two controls are therefore repeated. Mean images do not depend
    on the parameters, nor does the prior-only attack, which sees neither client nor network.

    Args:
      num_rounds: rounds of training before the attack.
      before: results of the attack before training.
      task: the task prepared with the parameters of that round.
      ground: truth and candidates.
      folder: stores the reconstructions.
      on_progress: called repeatedly with the current step.
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
    """Reconstructions of the attack without access to the update, that is, from its start and image prior alone.

    They are the same for all defenses, unless the attack restores labels first.

    Args:
      config: the job.
      task: the task prepared for this job.
      folder: stores the result.
      on_progress: called repeatedly with the current step.
      known: cache of results by job name; this result is added.

    Returns:
      `[T, B, H, W, C]`, or `None` for attacks that are not iterative or do not simulate clients.
    """
    if not task.program.iterates or not config.attacker.entry.traits.simulates:
        return None
    if config.attacker.attack == AUTO:  # a closed form would read the update
        config = config.replace(attack=SEARCH)
    if config.attacker.attack == SEARCH:
        # The weight of its prior is proportional to the mismatch with the update. Without an update only rounding
        # errors move the search, and Adam scales them up like any gradient: use the start as the prior's image.
        config = config.replace(steps=0)
    if config.granted.labels:
        config = config.replace(defense=NONE, defense_settings={}, adaptive=False)
    name = jobs.job_name(config)
    if name not in known:
        program = jobs.Program(config, task.model, told=controls.blind)
        known[name], _ = found_in(attack("prior only", config, program, task.observations, folder, on_progress))
    return known[name]
