"""The audit: does a deployment leak, how much above what anyone could show without the update, and how sure is that?

`audit` attacks simulated clients under every setting, by every attacker, beside null controls, and `judge` says in
words what the difference is worth. Truth and reconstruction meet here, and nowhere below.
"""

from jaxinvert.audit.auditing import Attacked, Audited, Scenario, attack_and_score, audit, judged
from jaxinvert.audit.captured import Capture, Explained, audit_capture, explain_capture, job_of_capture
from jaxinvert.audit.evidence import Evidence, Excess, Rate, Trials, excess, excess_over_all, mean_interval, rate
from jaxinvert.audit.plan import parse_defense, settings_for
from jaxinvert.audit.privacy import Allowed, Privacy, Training, allowed, privacy
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
    "parse_defense",
    "privacy",
    "rate",
    "record",
    "record_of_capture",
    "rounds_to_attack",
    "score",
    "settings_for",
    "train_under",
]
