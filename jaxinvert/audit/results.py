"""What an audit takes and gives: scenarios, and the results of their attackers with the verdict."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from jaxinvert.audit.attack_free import AttackFree
from jaxinvert.audit.evidence import Evidence, Excess, Rate, Trials
from jaxinvert.audit.scoring import Ground, Scores
from jaxinvert.audit.utility import Utility
from jaxinvert.audit.verdict import Verdict
from jaxinvert.jobs import JobConfig


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
      attack_free: what the updates allow by their derivative, before any attack; if requested.
    """

    name: str
    ground: Ground
    attackers: dict[str, Attacked]
    worst: str
    verdict: Verdict
    note: str = ""
    utility: Utility | None = None
    leakage: dict[int, Attacked] | None = None
    attack_free: AttackFree | None = None
