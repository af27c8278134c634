"""The audit: every setting attacked, the same attacks without the update, and what is left of the difference."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxinvert import job
from jaxinvert.audit import controls
from jaxinvert.audit.evidence import Excess, Rate, excess, rate
from jaxinvert.audit.retrieval import chance_of_any
from jaxinvert.audit.running import Show, attack, found_in
from jaxinvert.audit.scoring import Ground, Scores, ground_truth, score
from jaxinvert.audit.utility import Utility, utility
from jaxinvert.audit.verdict import Verdict, judge
from jaxinvert.defenses.registry import NONE
from jaxinvert.job import JobConfig
from jaxinvert.job.automatic import AUTO, SEARCH
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
      summary: of the attack, as `job.measure` makes it.
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
    """

    name: str
    ground: Ground
    attackers: dict[str, Attacked]
    worst: str
    verdict: Verdict
    note: str = ""
    utility: Utility | None = None


def audit(
    settings: Sequence[Setting],
    *,
    num_candidates: int = 100,
    accuracy_rounds: int = 0,
    folder: Path | None = None,
    on_progress: Show = lambda what, progress: None,
) -> list[Audited]:
    """Attacks every setting by all its attackers, beside the null controls, and judges it by the worst.

    Args:
      settings: they share data, network and all else but defense and attack.
      num_candidates: private images and others from the same split, among which reconstructions have to pick.
      accuracy_rounds: of federated training under every defense, to set what it costs beside what it hides; 0 = none.
      folder: keeps what was reconstructed, so that the same audit goes on after an interrupt.
      on_progress: called now and then.

    Raises:
      ValueError: for settings that are not possible.
      KeyboardInterrupt: after the state of the attack in flight was kept.
    """
    on_progress("preparing", None)
    setup = job.set_up(next(iter(settings[0].attackers.values())))
    blind: dict[str, np.ndarray] = {}
    audited = [_audited(setting, setup, num_candidates, folder, on_progress, blind) for setting in settings]
    if accuracy_rounds:
        audited = [
            _with_utility(one, setting, setup, accuracy_rounds, on_progress)
            for one, setting in zip(audited, settings)
        ]
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
    num_private, num_candidates = ground.private.shape[1], len(ground.candidates.labels)
    attackers = {}
    for attacker, (config, summary, scores, of_controls) in found.items():
        strongest = max(of_controls, key=lambda control: of_controls[control].psnr_db.mean())
        null = of_controls[strongest]
        attackers[attacker] = Attacked(
            config,
            summary,
            scores,
            of_controls,
            rate(
                int(scores.identified.any(axis=1).sum()),
                len(scores.identified),
                chance=chance_of_any(num_private, num_candidates),
            ),
            strongest,
            excess(scores.psnr_db.mean(axis=1), null.psnr_db.mean(axis=1)),
            excess(scores.ssim.mean(axis=1), null.ssim.mean(axis=1)),
        )
    worst = max(attackers, key=lambda one: (attackers[one].identified.count, attackers[one].excess.mean))
    chosen = attackers[worst]
    verdict = judge(
        chosen.identified,
        chosen.excess,
        num_candidates=num_candidates,
        strongest=chosen.strongest,
        num_attackers=len(attackers),
    )
    return Audited(name, ground, attackers, worst, verdict)


def attack_and_score(
    config: JobConfig,
    task: job.Task,
    ground: Ground,
    *,
    blind: np.ndarray | None = None,
    folder: Path | None = None,
    on_progress: Show = lambda what, progress: None,
) -> tuple[JobConfig, dict[str, Any], Scores, dict[str, Scores]]:
    """Runs the attack of a job and its controls, and scores all.

    Args:
      config: the job.
      task: prepared for it.
      ground: truth and candidates.
      blind: `[T, B, H, W, C]` what the attack shows if blind to the update, if that makes sense.
      folder: keeps what was reconstructed.
      on_progress: called now and then.
    """
    key = jax.random.fold_in(jax.random.key(config.seed), 7)
    execution = attack("attack", config, task.program, task.observations, folder, on_progress)
    summary = job.measure(config, task, execution).summary
    found, used = found_in(execution)
    noise = controls.random_update(key, task.observations)
    on_noise, used_on_noise = found_in(attack("random update", config, task.program, noise, folder, on_progress))
    of_controls = {
        "mean image": score(controls.mean_image(ground), used, ground),
        "random update": score(on_noise, used_on_noise, ground),
    }
    if config.granted.labels:
        of_controls["class mean"] = score(controls.class_mean(ground), used, ground)
    if blind is not None:
        of_controls["prior only"] = score(blind, used, ground)
    if config.targets > 1:
        of_controls["other client"] = score(controls.other_client(found), used, ground)
    return config, summary, score(found, used, ground), of_controls


def _audited(
    setting: Setting,
    setup: job.Setup,
    num_candidates: int,
    folder: Path | None,
    on_progress: Show,
    blind: dict[str, np.ndarray],
) -> Audited:
    found, ground = {}, None
    for attacker, config in setting.attackers.items():
        on_progress(f"{setting.name}, {attacker}: preparing", None)
        setup = setup._replace(program=job.Program(config, setup.program.model))
        task = job.prepare(config, setup)
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
            folder=folder,
            on_progress=show,
        )
    assert ground is not None
    return judged(setting.name, ground, found)._replace(note=setting.note)


def _with_utility(one: Audited, setting: Setting, setup: job.Setup, num_rounds: int, on_progress: Show) -> Audited:
    """Adds the accuracy under the setting's defense, or why there is none."""
    on_progress(f"{one.name}: training for the accuracy", None)
    config = next(iter(setting.attackers.values()))
    try:
        return one._replace(utility=utility(config, setup, num_rounds=num_rounds))
    except ValueError as error:
        return one._replace(note="; ".join(filter(None, [one.note, str(error)])))


def blind_attack(
    config: JobConfig, task: job.Task, folder: Path | None, on_progress: Show, known: dict[str, np.ndarray]
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
    if not task.program.iterates or not config.recipe.simulates:
        return None
    if config.attack == AUTO:  # a closed form would read the update
        config = replace(config, attack=SEARCH)
    if config.granted.labels:
        config = replace(config, defense=NONE, defense_settings={}, adaptive=False)
    name = job.job_name(config)
    if name not in known:
        program = job.Program(config, task.model, attacker=controls.blind)
        known[name], _ = found_in(attack("prior only", config, program, task.observations, folder, on_progress))
    return known[name]
