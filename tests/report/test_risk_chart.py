"""The chart of an audit's risk: its sentence suffices to decide, and its marks are where the record says."""

import re
from pathlib import Path

import pytest

from jaxinvert.audit import UNDEFENDED
from jaxinvert.jobs.realism import of_parameters, realism_of
from jaxinvert.report import risk_chart


def a_distribution(median):
    ends = {"min": median - 2.0, "q25": median - 1.0, "q75": median + 1.0, "max": median + 2.0}
    return {"median": median, "mean": median, "std": 1.0, **ends}


def an_attack_free_figure(median):
    figures = {"low_db": median - 5, "psnr_db": median, "high_db": median + 8}
    return {
        **{name: a_distribution(value) for name, value in figures.items()},
        "words": "assumed",
        "reason": "",
        "unbiased_db": None,
    }


def a_setting(name, level, *, reached=20.0, won=9, allowed=None, free=None, accuracy=None, figure="psnr_db"):
    attacker = {
        "game": {"count": won, "total": 9, "baseline": 0.1, "low": won / 9 - 0.1, "high": won / 9},
        "attack": {figure: a_distribution(reached)},
        "strongest": "mean image",
        "controls": {"mean image": {figure: a_distribution(10.0)}},
    }
    return {
        "name": name,
        "worst": "naive",
        "verdict": {"level": level, "clients_needed": 11},
        "privacy": None if allowed is None else {"allowed": {"release": allowed}},
        "utility": None if accuracy is None else {"accuracy": [0.1, accuracy]},
        "attack_free": None if free is None else an_attack_free_figure(free),
        "attackers": {"naive": attacker},
    }


def test_the_sentence_names_what_leaks_and_what_does_not_with_its_cost_and_its_limit():
    settings = [
        a_setting(UNDEFENDED, "leaks", accuracy=0.7),
        a_setting("sign", "leaks", accuracy=0.6),
        a_setting("dp", "none", won=1, reached=9.0, allowed=0.372, accuracy=0.5, free=10.0),
        a_setting("prune", "traces", accuracy=0.6),
        a_setting("few", "inconclusive"),
    ]
    assert risk_chart.decision(settings) == (
        f"Without a defense and under “sign”, updates leak: {risk_chart.ADVICE['leaks, as deployed']}. "
        f"Under “prune”, updates show traces of a leak: {risk_chart.ADVICE['traces']}. "
        "Undecided under “few”: audit at least 11 clients. "
        "No leak was found under “dp” (accuracy 50.0 %, best setting 70.0 %); "
        "differential privacy limits attacks with this knowledge to 37.2 % picked out. "
        "Keep the page with its assumptions; audit again when network, batch or defense change."
    )


def test_a_leak_at_a_diagnostic_upper_bound_asks_for_an_audit_of_the_deployed_case():
    leaking = [a_setting(UNDEFENDED, "leaks")]
    said = risk_chart.decision(leaking, kind=risk_chart.UPPER_BOUND)
    assert said.startswith("Without a defense, updates leak: audit the deployed case, ")
    assert said.endswith(f": {risk_chart.FLAGS}.")
    assert "--" not in risk_chart.decision(leaking, kind=risk_chart.UPPER_BOUND, item="record")
    assert "do not send" not in said
    assert "do not send" in risk_chart.decision(leaking)


def test_the_guide_advises_what_the_page_advises():
    guide = (Path(__file__).parents[2] / "docs" / "howto" / "reading-an-audit.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| ([a-z, ]+) \| (.*) \|$", guide.split("## What to decide")[1], flags=re.MULTILINE))
    assert rows[f"leaks, {risk_chart.UPPER_BOUND}"].replace("`", "").endswith(f": {risk_chart.FLAGS}")
    for case, advice in risk_chart.ADVICE.items():
        assert rows[case].startswith(advice.format(needed="as many clients as the page names (usually 9)"))
    assert realism_of(of_parameters()).kind == risk_chart.UPPER_BOUND


def test_without_a_guarantee_the_sentence_says_that_nothing_is_proved():
    assert "nothing proves" in risk_chart.decision([a_setting("noise", "none", reached=9.0)])


def test_an_attack_that_is_far_below_the_attack_free_figure_is_called_weak():
    weak, fair = (risk_chart.decision([a_setting("noise", "none", reached=9.0, free=free)]) for free in (39.0, 19.0))
    assert "the attack-free figure is 39.0 dB (34.0 to 47.0) and the attack reached 9.0 dB: it was weak" in weak
    assert "weak" not in fair


def test_the_worst_setting_comes_first():
    levels = ["none", "inconclusive", "leaks", "traces", "leaks"]
    assert risk_chart.worst_first([a_setting(str(i), level) for i, level in enumerate(levels)]) == 2
    assert risk_chart.worst_first([a_setting("a", "none"), a_setting("b", "none")]) == 0


def test_marks_are_where_the_record_says():
    (row,) = risk_chart.risk_chart([a_setting("dp", "none", won=3, allowed=0.4)])["rows"]
    paths = dict(row["share"]["paths"])
    assert paths["reached"].startswith("M33.33 ")
    assert paths["guess"].startswith("M10.00 ")
    assert paths["ruled-out"].startswith("M40.00 ")
    assert row["share"]["bound"] == "at most 40.0 % of any attack"
    assert row["share"]["words"] == "3 of 9 (23.3 % to 33.3 %), guessing 10.0 %"


def test_a_psnr_beyond_the_visible_is_drawn_at_the_edge_and_the_axis_says_so():
    chart = risk_chart.risk_chart([a_setting("a", "leaks", reached=118.0), a_setting("b", "none", free=30.0)])
    assert chart["score"] == "PSNR in dB, at most 60"
    at = {style: float(re.match(r"M([\d.]+)", path)[1]) for style, path in chart["rows"][0]["score"]["paths"]}
    assert at["reached"] <= 100
    assert chart["with_attack_free"]


@pytest.mark.parametrize(("item", "said"), [("record", "fields right in %"), ("sequence", "tokens right in %")])
def test_records_and_text_have_their_own_score(item, said):
    chart = risk_chart.risk_chart([a_setting("a", "leaks", reached=60.0, figure="right")], item=item)
    assert chart["score"] == said
    assert not chart["with_bound"]


def test_reasons_for_no_attack_free_figure_are_told_once_with_the_names_of_their_settings():
    missing = {"psnr_db": None, "unbiased_db": None, "words": "", "reason": "signs have no derivative"}
    settings = [{**a_setting(name, "none"), "attack_free": missing} for name in ("a", "b")]
    (said,) = risk_chart.attack_free_words(settings)
    assert said == "“a” and “b”: no attack-free figure: signs have no derivative."
