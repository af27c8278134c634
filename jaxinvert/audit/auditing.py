"""The audit loop: runs the attackers of every scenario and the null controls, and judges the differences."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from jaxinvert import jobs
from jaxinvert.audit.along_training import along_training
from jaxinvert.audit.attack_free import AttackFree, attack_free, without_figure
from jaxinvert.audit.attacking import attack_and_score, blind_attack
from jaxinvert.audit.results import Audited, Scenario
from jaxinvert.audit.running import Show, reason
from jaxinvert.audit.scoring import ground_truth
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
    setup = jobs.set_up(next(iter(settings[0].attackers.values())))
    blind: dict[str, np.ndarray] = {}
    audited = []
    for setting in settings:
        one, of_worst = _audited(setting, setup, num_candidates, with_lpips, folder, on_progress, blind)
        if with_attack_free:
            on_progress(f"{setting.name}: attack-free figure", None)
            one = one._replace(attack_free=_attack_free(one.attackers[one.worst].config, of_worst))
        if accuracy_rounds:
            one = along_training(one, of_worst, accuracy_rounds, later_rounds, folder, on_progress)
        audited.append(one)
    return audited


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


def _attack_free(config: jobs.JobConfig, setup: jobs.Setup) -> AttackFree:
    """The attack-free figure, of as many examples of every client as `_MOST_EXAMPLES` allows, at least one.

    The attacks are finished: a figure that fails, of whatever kind the error, is missing with its reason.
    """
    most = max(1, _MOST_EXAMPLES // config.data.targets)
    try:
        return attack_free(config, jobs.prepare(config, setup), most_examples=most)
    except Exception as error:
        return without_figure(reason(error))
