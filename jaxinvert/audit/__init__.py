"""The audit: whether a deployment leaks, by how much beyond null controls, and with what statistical confidence.

`audit` runs every attacker of every scenario against simulated clients, next to null controls, which do not use the
update. `judge` turns the difference into a verdict in words. Only this package compares reconstructions with the
truth.
"""

from jaxinvert.audit.auditing import Attacked, Audited, Scenario, attack_and_score, audit, judged
from jaxinvert.audit.captured import Explained, audit_capture, explain_capture, job_of_capture
from jaxinvert.audit.evidence import Evidence, Excess, Rate, Trials, excess, excess_over_all, mean_interval, rate
from jaxinvert.audit.plan import parse_defense, settings_for
from jaxinvert.audit.privacy import Allowed, Privacy, Training, allowed, privacy
from jaxinvert.audit.reading import Capture, Seen, observe_capture, read_capture, true_batches
from jaxinvert.audit.record import record, record_of_capture
from jaxinvert.audit.retrieval import chance_of_any, identified, identified_of_all
from jaxinvert.audit.running import Show
from jaxinvert.audit.scoring import Ground, Scores, ground_truth, score
from jaxinvert.audit.utility import Utility, rounds_to_attack, train_under
from jaxinvert.audit.verdict import SIGNIFICANCE, Verdict, judge

__all__ = [
    "SIGNIFICANCE",
    "Allowed",
    "Attacked",
    "Audited",
    "Capture",
    "Evidence",
    "Excess",
    "Explained",
    "Ground",
    "Privacy",
    "Rate",
    "Scenario",
    "Scores",
    "Seen",
    "Show",
    "Training",
    "Trials",
    "Utility",
    "Verdict",
    "allowed",
    "attack_and_score",
    "audit",
    "audit_capture",
    "chance_of_any",
    "excess",
    "excess_over_all",
    "explain_capture",
    "ground_truth",
    "identified",
    "identified_of_all",
    "job_of_capture",
    "judge",
    "judged",
    "mean_interval",
    "observe_capture",
    "parse_defense",
    "privacy",
    "rate",
    "read_capture",
    "record",
    "record_of_capture",
    "rounds_to_attack",
    "score",
    "settings_for",
    "train_under",
    "true_batches",
]
