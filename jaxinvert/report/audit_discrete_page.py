"""The report page of an audit of records or text: the page of `audit_page` with tables of values instead of pictures.

This module computes no results. Items are chosen by rule, not by eye. Strings are untrusted (names of columns and
categories), so everything that enters the page is escaped.
"""

from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

from jaxinvert.audit import SIGNIFICANCE, Audited, DiscreteGround, DiscreteScores
from jaxinvert.audit.record_discrete import in_words
from jaxinvert.files import save_bytes
from jaxinvert.metrics.records import TOLERANCE
from jaxinvert.report.about import about_items
from jaxinvert.report.audit_page import Pick, picks_by, reconstructed
from jaxinvert.report.charts import psnr_ranges
from jaxinvert.report.risk_chart import decision, risk_chart, worst_first
from jaxinvert.report.templates import render
from jaxinvert.report.wording import flattened

_MAX_COLUMNS = 12


class ItemTable(NamedTuple):
    """One private item with its reconstructions.

    Attributes:
      pick: the item.
      columns: names of the reconstructions.
      rows: for every field its name, its true value, and for every reconstruction the value and whether it is right.
    """

    pick: Pick
    columns: list[str]
    rows: list[tuple[str, str, list[tuple[str, bool]]]]


def save_discrete_audit_html(
    path: str | PathLike[str],
    *,
    audited: Sequence[Audited[Any, DiscreteScores, DiscreteGround]],
    record: Mapping[str, Any],
    title: str = "",
    command: str = "",
) -> None:
    """Writes one self-contained HTML page: no scripts, no requests.

    Args:
      path: the file to write.
      audited: the judged scenarios; the one with the worst verdict is in the headline.
      record: their record, see `jaxinvert.audit.record_discrete`.
      title: what was audited.
      command: the command that reproduces the audit.
    """
    place = worst_first(record["settings"])
    first, audited = record["settings"][place], [audited[place], *audited[:place], *audited[place + 1 :]]
    worst = first["attackers"][first["worst"]]
    rows = {"the attack": worst["attack"], **worst["controls"]}
    scale, ranges = psnr_ranges([row["right"] for row in rows.values()], unit="%")
    of_tokens = record["kind"] == "sequence"
    kind = record["assumptions"].get("realism", {}).get("kind", "as deployed")
    page = render(
        "audit_discrete.html.jinja",
        record=record, title=title, command=command, significance=SIGNIFICANCE,
        first=first, worst=worst, settings=record["settings"], cost_charts=[], round_charts=[], kinds=1, choices=[],
        decision=decision(record["settings"], kind=kind, item=record["kind"]),
        about=about_items(worst["config"], record),
        risk=risk_chart(record["settings"], item=record["kind"]),
        attack_free_words=[],
        evidence=list(zip(rows, rows.values(), ranges)), scale=scale, tables=item_tables(audited),
        field_name="position" if of_tokens else "field", fields_name="tokens" if of_tokens else "fields",
        tolerance=TOLERANCE, assumptions=record["assumptions"],
        config=flattened(worst["config"]), versions=flattened(record["versions"]),
    )  # fmt: skip
    save_bytes(Path(path), page)


def item_tables(audited: Sequence[Audited[Any, DiscreteScores, DiscreteGround]]) -> list[ItemTable]:
    """Items with the most and the median number of right fields and random ones, each with its reconstructions.

    The columns are the reconstructions by the worst attacker of every scenario, and the controls of the first.
    """
    ground, first = audited[0].ground, audited[0].attackers[audited[0].worst]
    sources = [(reconstructed(one.name), one.attackers[one.worst].scores) for one in audited]
    sources += [(f"control: {name}", scores) for name, scores in first.controls.items()]
    sources = sources[:_MAX_COLUMNS]
    tables = []
    for pick in picks_by(first.scores.correct.mean(axis=2)):
        at = (pick.client, pick.example)
        truth = in_words(ground.truth[at], ground.fields)
        shown = [(in_words(scores.matched[at], ground.fields), scores.correct[at]) for _, scores in sources]
        rows = [
            (field.name, _value(truth[f]), [(_value(values[f]), bool(correct[f])) for values, correct in shown])
            for f, field in enumerate(ground.fields)
        ]
        tables.append(ItemTable(pick, [name for name, _ in sources], rows))
    return tables


def _value(value: Any) -> str:
    if value is None:
        return "—"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
