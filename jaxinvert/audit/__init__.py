"""The audit: whether a deployment leaks, by how much beyond null controls, and with what statistical confidence.

`audit` runs every attacker of every scenario against simulated clients, next to null controls, which do not use the
update. `judge` turns the difference into a verdict in words. Only this package compares reconstructions with the
truth.
"""

from jaxinvert.audit.attack_free import NUM_STEPS, RESIDUAL, AttackFree, attack_free
from jaxinvert.audit.attacking import attack_and_score
from jaxinvert.audit.auditing import audit
from jaxinvert.audit.captured import Explained, audit_capture, explain_capture, job_of_capture
from jaxinvert.audit.discrete import DiscreteGround, DiscreteScores
from jaxinvert.audit.evidence import Evidence, Excess, Rate, Trials, excess, excess_over_all, mean_interval, rate
from jaxinvert.audit.forecast import Part, forecast
from jaxinvert.audit.forecast_discrete import forecast_table, forecast_text
from jaxinvert.audit.kept import INSIDE, Store
from jaxinvert.audit.measures import Measure
from jaxinvert.audit.plan import UNDEFENDED, parse_defense, settings_for
from jaxinvert.audit.privacy import Allowed, Privacy, Training, allowed, privacy
from jaxinvert.audit.reading import Capture, Seen, observe_capture, read_capture, true_batches
from jaxinvert.audit.record import record, record_of_capture
from jaxinvert.audit.record_discrete import record_discrete
from jaxinvert.audit.results import Attacked, Audited, Scenario
from jaxinvert.audit.retrieval import chance_of_any, identified, identified_of_all
from jaxinvert.audit.running import Show
from jaxinvert.audit.scoring import Ground, Scores, ground_truth, score
from jaxinvert.audit.tabular import audit_table, table_settings
from jaxinvert.audit.text import audit_text, text_settings
from jaxinvert.audit.utility import Utility, rounds_to_attack, train_under
from jaxinvert.audit.verdict import SIGNIFICANCE, Verdict, judge, percent
from jaxinvert.audit.weighing import judged

__all__ = [
    "INSIDE",
    "NUM_STEPS",
    "RESIDUAL",
    "SIGNIFICANCE",
    "UNDEFENDED",
    "Allowed",
    "AttackFree",
    "Attacked",
    "Audited",
    "Capture",
    "DiscreteGround",
    "DiscreteScores",
    "Evidence",
    "Excess",
    "Explained",
    "Ground",
    "Measure",
    "Part",
    "Privacy",
    "Rate",
    "Scenario",
    "Scores",
    "Seen",
    "Show",
    "Store",
    "Training",
    "Trials",
    "Utility",
    "Verdict",
    "allowed",
    "attack_and_score",
    "attack_free",
    "audit",
    "audit_capture",
    "audit_table",
    "audit_text",
    "chance_of_any",
    "excess",
    "excess_over_all",
    "explain_capture",
    "forecast",
    "forecast_table",
    "forecast_text",
    "ground_truth",
    "identified",
    "identified_of_all",
    "job_of_capture",
    "judge",
    "judged",
    "mean_interval",
    "observe_capture",
    "parse_defense",
    "percent",
    "privacy",
    "rate",
    "read_capture",
    "record",
    "record_discrete",
    "record_of_capture",
    "rounds_to_attack",
    "score",
    "settings_for",
    "table_settings",
    "text_settings",
    "train_under",
    "true_batches",
]
