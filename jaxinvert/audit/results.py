"""What an audit takes and gives: scenarios, and the results of their attackers with the verdict."""

from collections.abc import Mapping
from typing import Any, Generic, NamedTuple, TypeVar

from jaxinvert.audit.attack_free import AttackFree
from jaxinvert.audit.evidence import Evidence, Excess, Rate, Trials
from jaxinvert.audit.utility import Utility
from jaxinvert.audit.verdict import Verdict

Job = TypeVar("Job")
Scores = TypeVar("Scores")
Ground = TypeVar("Ground")


class Scenario(NamedTuple, Generic[Job]):
    """One deployment, that is, training and defense, with its attackers.

    Attributes:
      name: shown to people.
      attackers: jobs by name of the attacker, such as "naive" and "adaptive"; they differ only in the attack.
      note: what a reader must know about the attackers, such as why there is no adaptive one.
    """

    name: str
    attackers: Mapping[str, Job]
    note: str = ""


class Attacked(NamedTuple, Generic[Job, Scores]):
    """The results of one attacker.

    Attributes:
      config: the job.
      summary: the summary of the attack, for images see `jobs.measure`.
      scores: scores of its reconstructions, see `measures.Scored`.
      controls: scores by name of the control.
      identified: clients with at least one image identified.
      in_class: whether candidates are limited to the class of the image, because the attacker was granted the labels.
      trials: identification of a single image per client.
      strongest: the control with the highest mean score, for images the PSNR.
      closest: the control that the score distinguishes least from the attack, that is, with the largest p-value.
      excess: score above `strongest`, over clients, in the unit of the measure; its p-value is that of `closest`.
      gained: second score above `strongest`, over clients, for images the SSIM.
    """

    config: Job
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


class Audited(NamedTuple, Generic[Job, Scores, Ground]):
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
    attackers: dict[str, Attacked[Job, Scores]]
    worst: str
    verdict: Verdict
    note: str = ""
    utility: Utility | None = None
    leakage: dict[int, Attacked[Job, Scores]] | None = None
    attack_free: AttackFree | None = None
