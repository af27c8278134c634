"""The audit loop: runs the attackers of every scenario and the null controls, and judges the differences."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from jaxinvert import jobs
from jaxinvert.audit.along_training import along_training
from jaxinvert.audit.attack_free import (
    NUM_STEPS,
    RESIDUAL,
    AttackFree,
    Compiled,
    attack_free,
    without_figure,
)
from jaxinvert.audit.attacking import attack_and_score, blind_attack
from jaxinvert.audit.kept import Store, kept_or_computed
from jaxinvert.audit.results import Audited, Scenario
from jaxinvert.audit.retrieval import Null
from jaxinvert.audit.running import Show, reason
from jaxinvert.audit.scoring import Ground, Scores, ground_truth
from jaxinvert.audit.utility import rounds_to_attack
from jaxinvert.audit.weighing import judged
from jaxinvert.search import Progress

_MOST_EXAMPLES = 64


def audit(
    settings: Sequence[Scenario],
    *,
    num_candidates: int = 100,
    accuracy_rounds: int = 0,
    leakage_rounds: int = 0,
    with_lpips: bool = False,
    with_attack_free: bool = False,
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
      with_attack_free: whether to compute the attack-free figure of every scenario, of some 64 examples at most.
      folder: stores the reconstructions, so that the same audit resumes after an interrupt.
      on_progress: called repeatedly with the current step.

    Raises:
      ValueError: for an invalid scenario.
      KeyboardInterrupt: after the state of the running attack is saved.
    """
    later_rounds = rounds_to_attack(accuracy_rounds, leakage_rounds)
    on_progress("preparing", None)
    run = _Run(
        num_candidates, with_lpips, folder, on_progress, jobs.set_up(next(iter(settings[0].attackers.values())))
    )
    audited = []
    for setting in settings:
        one, of_worst, task = _audited(setting, run)
        if with_attack_free:
            on_progress(f"{setting.name}: attack-free figure", None)
            one = one._replace(attack_free=_attack_free(one.attackers[one.worst].config, task, run))
        if accuracy_rounds:
            one = along_training(one, of_worst, accuracy_rounds, later_rounds, run.store, on_progress, run.nulls)
        audited.append(one)
    return audited


class _Run:
    """What the scenarios of one audit share, each computed once: options, compiled functions, truth, and nulls."""

    def __init__(
        self, num_candidates: int, with_lpips: bool, folder: Path | None, on_progress: Show, setup: jobs.Setup
    ) -> None:
        self.num_candidates, self.with_lpips = num_candidates, with_lpips
        self.store, self.on_progress = folder and Store(folder), on_progress
        self.compiled: Compiled = {}
        self.blind: dict[str, np.ndarray] = {}
        self.nulls: dict[bool, Null] = {}
        self.scores: dict[tuple[str, bytes], Scores] = {}
        self._setup = setup
        self._setups: dict[str, jobs.Setup] = {}
        self._ground: Ground | None = None

    def setup(self, config: jobs.JobConfig) -> jobs.Setup:
        """The setup of a job, shared by jobs that differ only in numbers."""
        form = repr(jobs.compiled_form(config).flat)
        if form not in self._setups:
            self._setups[form] = jobs.adjusted(self._setup, config)
        return self._setups[form]

    def ground(self, task: jobs.Task) -> Ground:
        """Truth and candidates, the same for all scenarios."""
        if self._ground is None:
            images, labels = self._setup.dataset.images, np.asarray(self._setup.dataset.labels)
            self._ground = ground_truth(task.truth, images, labels, num_candidates=self.num_candidates)
        return self._ground


def _audited(setting: Scenario, run: _Run) -> tuple[Audited, jobs.Setup, jobs.Task]:
    """The judged scenario, the setup of its worst attacker, and the task of the last one, with the same clients."""
    found, task = {}, None
    for attacker, config in setting.attackers.items():

        def show(what: str, progress: Progress | None) -> None:
            run.on_progress(f"{setting.name}, {attacker}: {what}", progress)  # noqa: B023  only in this iteration

        show("preparing", None)
        task = jobs.prepare(config, run.setup(config))
        found[attacker] = attack_and_score(
            config,
            task,
            run.ground(task),
            blind=blind_attack(config, task, run.store, show, run.blind),
            with_lpips=run.with_lpips,
            known=run.scores,
            store=run.store,
            on_progress=show,
        )
    assert task is not None
    one = judged(setting.name, run.ground(task), found, run.nulls)._replace(note=setting.note)
    return one, run.setup(one.attackers[one.worst].config), task


def most_examples(config: jobs.JobConfig) -> int:
    """Examples of every client whose attack-free figure is computed, at most."""
    return max(1, _MOST_EXAMPLES // config.data.targets)


def name_of_figure(config: jobs.JobConfig) -> str:
    """The name by which an audit keeps the attack-free figure of a job, with what else determines it."""
    return f"attack-free figure {most_examples(config)} {NUM_STEPS} {RESIDUAL:g}"


def _attack_free(config: jobs.JobConfig, task: jobs.Task, run: _Run) -> AttackFree:
    """The attack-free figure, of as many examples of every client as `_MOST_EXAMPLES` allows, at least one.

    The attacks are finished: a figure that fails, of whatever kind the error, is missing with its reason.
    """

    def figure() -> AttackFree:
        return attack_free(config, task, most_examples=most_examples(config), compiled=run.compiled)

    try:
        return kept_or_computed(run.store, jobs.job_name(config), name_of_figure(config), figure)
    except Exception as error:
        return without_figure(reason(error))
