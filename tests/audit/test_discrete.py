"""Records and text: exact fields, picks that ties do not decide, guesses, verdicts on planted leaks and on noise."""

import json

import numpy as np
import pytest

from experiments import audit_verdicts_discrete
from jaxinvert import audit, files, report
from jaxinvert.audit import discrete, measures, retrieval, tabular
from jaxinvert.cli import main
from jaxinvert.data.tabular import load_table
from jaxinvert.jobs import records
from jaxinvert.jobs.records import RecordsConfig
from jaxinvert.jobs.text import TextConfig
from tests.report.test_report import Page

FIELDS = [discrete.Field("kind", values=("a", "<b>")), discrete.Field("size", tolerance=0.5, scale=2.0)]


def a_ground(rows, shape, labels=None, seed=0, fields=FIELDS):
    labels = np.zeros(len(rows), int) if labels is None else labels
    rng = np.random.default_rng(seed)
    return discrete.discrete_ground(rows, labels, shape=shape, fields=fields, measure=measures.RECORDS, rng=rng)


def random_rows(count, seed=0):
    rng = np.random.default_rng(seed)
    return np.stack([rng.integers(0, 2, count), rng.normal(0, 2, count)], axis=1)


def test_a_field_is_right_within_its_tolerance():
    ground = a_ground(np.array([[0, 1.0], [1, 4.0], [1, 9.0], [0, 7.0]]), (2, 1))
    found = np.array([[[0, 1.4]], [[0, np.nan]]])
    scores = discrete.score_discrete(found, None, ground)
    np.testing.assert_array_equal(scores.correct, [[[True, True]], [[False, False]]])
    np.testing.assert_array_equal(scores.by_client, [100, 0])
    np.testing.assert_array_equal(scores.second_by_client, [100, 0])
    assert scores.identified[0, 0]


def test_similarity_counts_categories_and_decays_with_distance():
    found, candidates = np.array([[1, 3.0], [0, np.nan]]), np.array([[1, 3.0], [0, 5.0]])
    expected = [[1, np.exp(-1) / 2], [0, 0.5]]
    np.testing.assert_allclose(discrete.similarity(found, candidates, FIELDS), expected)


def test_the_private_rows_are_anywhere_among_the_candidates():
    rows = random_rows(50)
    ground = a_ground(rows, (5, 2))
    np.testing.assert_array_equal(ground.candidates[ground.private], rows[:10].reshape(5, 2, 2))
    assert sorted(ground.private.ravel()) != list(range(10))


def test_copies_count_as_the_row_itself_and_raise_the_chance_of_guessing():
    rows = np.array([[0.0, 1.0]] * 5 + [[1.0, 2.0]] * 5)
    ground = a_ground(rows, (2, 1))
    assert len(np.unique(ground.same)) == 2
    deals = retrieval.null(ground.private, ground.labels, ground.same, in_class=False)
    assert deals.chance == pytest.approx(0.5, abs=0.05)  # 5 of 10, where 1 of 10 would be claimed without copies


def test_ties_do_not_identify():
    """A row that is equally similar to all candidates picks one of them, which is private as often as by chance."""
    rows = np.stack([np.zeros(40), np.arange(40.0)], axis=1)
    hits = 0
    for seed in range(200):
        ground = a_ground(rows, (4, 1), seed=seed)
        found = np.broadcast_to([0, np.nan], (4, 1, 2))
        hits += discrete.score_discrete(found, None, ground).identified.sum()
    assert 0.01 < hits / 800 < 0.05  # 1 / 40, where the first candidates would give 1 / 4


def test_the_typical_guess_is_right_most_often():
    rows = np.array([[0, 1.0], [1, 1.8], [1, 1.9], [1, 9.0], [0, 20.0]])
    kind, size = discrete.typical(rows, FIELDS)
    assert kind == 1
    assert np.all(np.abs(size - [1.0, 1.8, 1.9]) <= 0.5)


def test_guesses_leave_the_client_out_and_know_the_class():
    rows = np.array([[0, 1.0], [1, 5.0], [1, 5.0], [0, 8.0]])
    labels = np.array([0, 1, 1, 0])
    ground = a_ground(rows, (1, 1), labels)
    guessed = discrete.guesses(ground, rows, np.array([[0]]), np.random.default_rng(0), row_labels=labels)
    np.testing.assert_array_equal(guessed["typical guess"][0, 0], [1, 5])
    np.testing.assert_array_equal(guessed["class guess"][0, 0], [0, 8])
    assert (rows[1:, 0] == guessed["drawn guess"][0, 0, 0]).any()


def judged(found, ground, granted=False):
    rng = np.random.default_rng(5)
    rows = ground.candidates
    shown = discrete.guesses(ground, rows, ground.private, rng) | {"other client": np.roll(found, -1, axis=0)}
    scores = {name: discrete.score_discrete(one, None, ground) for name, one in shown.items()}
    summary = {"config": {}, "choice": None, "attack_loss": np.zeros(len(found)), "seconds": 0.0}
    summary |= {"assumptions": {"known": ["<i>"]}, "versions": {}, "device": "cpu"}
    entry = (TextConfig(), summary, discrete.score_discrete(found, None, ground), scores)
    return audit.judged("no defense", ground, {"naive": entry})


def test_exact_copies_leak_and_the_page_says_so_in_its_unit_and_escapes_names(tmp_path):
    ground = a_ground(random_rows(60), (9, 1))
    one = judged(ground.truth, ground)
    assert one.verdict.level == "leaks"
    assert "9 of 9 clients had a record picked out among 60 candidates" in one.verdict.headline
    assert "share of fields right is" in one.verdict.certainty
    assert "points above" in one.verdict.certainty
    assert "PSNR" not in one.verdict.certainty
    record = audit.record_discrete([one])
    files.save_json(tmp_path / "audit.json", record)
    report.save_discrete_audit_html(tmp_path / "x.html", audited=[one], record=record, command="<&>")
    text = (tmp_path / "x.html").read_text(encoding="utf-8")
    assert "<b>" not in text.replace("<b>9 of 9</b>", "").split("What the attack reconstructs")[1].split("<h2")[0]
    assert "&lt;b&gt;" in text
    assert "&lt;i&gt;" in text
    assert "&lt;&amp;&gt;" in text
    page = Page(text).text
    assert "9 of 9" in page
    assert "PSNR" not in page
    assert "image" not in page
    assert "percentage points" in page
    few = {"level": "inconclusive", "headline": "Too few.", "certainty": "", "clients_needed": 18}
    (setting,) = record["settings"]
    record["settings"] = [setting, setting | {"name": "noise", "verdict": few}]
    report.save_discrete_audit_html(tmp_path / "x.html", audited=[one, one], record=record)
    page = Page((tmp_path / "x.html").read_text(encoding="utf-8")).text
    assert "1 of 2; too few clients for a verdict on noise." in page  # which is not "no evidence of a leak"
    assert "no evidence of a leak for" not in page


def test_rows_that_are_right_in_more_fields_than_any_guess_but_pick_nobody_are_traces():
    """Every field but the one that tells candidates apart."""
    fields = [discrete.Field(f"f{number}") for number in range(4)]
    rng = np.random.default_rng(0)
    rows = rng.integers(0, 50, (60, 4)).astype(float)
    ground = a_ground(rows, (16, 1), fields=fields)
    found = np.where(np.arange(4) < 2, ground.truth, -1)
    picked = np.full((16, 1), retrieval.NOBODY)
    one = judged(found, ground)
    blind = one.attackers["naive"].scores._replace(picked=picked)
    attacked = one.attackers["naive"]
    entry = (TextConfig(), attacked.summary, blind, attacked.controls)
    again = audit.judged("no defense", ground, {"naive": entry})
    assert again.verdict.level == "traces"
    assert "closer to the private records than every control" in again.verdict.headline


def test_a_few_clients_are_too_few():
    ground = a_ground(random_rows(60), (3, 1))
    found = np.random.default_rng(1).permutation(ground.candidates)[:3, None]
    assert judged(found, ground).verdict.level == "inconclusive"


@pytest.mark.parametrize("kind", audit_verdicts_discrete.KINDS)
@pytest.mark.parametrize("truth", audit_verdicts_discrete.NULLS)
def test_simulated_nulls_do_not_leak(truth, kind):
    generator = np.random.default_rng(0)
    simulate = audit_verdicts_discrete.simulated_audit
    levels = [simulate(generator, truth, kind, (9, 1), 2) for _ in range(2)]
    assert set(levels) == {"none"}


def test_each_defense_has_a_naive_and_an_adaptive_attacker_and_dp_sgd_an_epsilon():
    config = RecordsConfig(num_examples=2)
    plain, private = audit.table_settings(config, ["none", "dp-sgd:norm=1,multiplier=1"])
    assert [*plain.attackers] == ["naive"]
    assert [*private.attackers] == ["naive", "adaptive"]
    promised = audit.privacy(private.attackers["naive"], audit.Training(0.1, 10, 1e-5))
    assert promised is not None
    assert promised.epsilon is not None
    assert promised.epsilon > 0
    assert audit.privacy(plain.attackers["naive"], None) is None


def test_no_two_clients_share_a_record():
    config = RecordsConfig(targets=20, num_examples=5)
    table = load_table("wine")
    order = tabular.rows_of_clients(config, table)
    assert len(np.unique(order)) == len(order) == 178
    with pytest.raises(ValueError, match="need 180 different records"):
        tabular.rows_of_clients(RecordsConfig(targets=36, num_examples=5), table)


@pytest.fixture(scope="module")
def of_table(tmp_path_factory):
    out = tmp_path_factory.mktemp("table")
    file = out / "audit.yaml"
    file.write_text("{table: wine, widths: [6], num_examples: 1, members: 2, steps: 900, targets: 3, candidates: 30}")
    assert main(["audit", "table", str(file), "--steps", "2", "--out", str(out)]) == 0
    return out


def test_the_command_audits_a_table(of_table):
    record = json.loads((of_table / "audit.json").read_text())
    assert record["kind"] == "record"
    assert record["measure"]["unit"] == "points"
    assert record["num_candidates"] == 30
    assert [setting["verdict"]["level"] for setting in record["settings"]] == ["inconclusive"]
    naive = record["settings"][0]["attackers"]["naive"]
    assert naive["config"]["steps"] == 2
    assert naive["in_class"]
    controls = {"typical guess", "drawn guess", "class guess", "prior only", "random update", "other client"}
    assert set(naive["controls"]) == controls
    assert len(naive["items"]) == 3
    assert naive["items"][0]["truth"][0] in ("below 12", "12 to 13", "13 to 14", "from 14")
    page = Page((of_table / "report.html").read_text(encoding="utf-8")).text
    assert "Too few clients for a verdict" in page
    assert "alcohol" in page


def test_finished_clients_are_kept_and_damaged_files_are_not(of_table):
    for file in of_table.glob("attacks/*-attack-1.npz"):
        file.write_bytes(b"PK damaged")
    told = []
    config = RecordsConfig(widths=(6,), num_examples=1, members=2, steps=2, targets=3)
    settings = audit.table_settings(config, ["none"])
    with pytest.warns(files.KeptFileWarning, match="is computed again: .*-attack-1"):
        audit.audit_table(settings, num_candidates=30, folder=of_table, on_progress=lambda what, _: told.append(what))
    assert [what for what in told if "client" in what] == ["no defense, naive: attack, client 2 of 3"]


@pytest.mark.slow
def test_the_prior_alone_is_attacked_once_and_the_table_loaded_once(monkeypatch):
    """Neither depends on the defense or on the attacker; the same numbers as for each alone."""
    config = RecordsConfig(widths=(6,), num_examples=1, members=2, steps=1, targets=2)
    loaded, told = [], []
    for module in (tabular, records):
        monkeypatch.setattr(module, "load_table", lambda name: loaded.append(name) or load_table(name))
    several = audit.audit_table(
        audit.table_settings(config, ["none", "top-k:keep=0.5"]),
        num_candidates=10,
        on_progress=lambda what, _: told.append(what),
    )
    assert loaded == ["wine"]
    assert sum("prior only" in what for what in told) == config.targets
    settings = audit.table_settings(config, ["top-k:keep=0.5"])
    (alone,) = audit.audit_table(settings, num_candidates=10)
    for attacker in ("naive", "adaptive"):
        mine, theirs = (one.attackers[attacker] for one in (several[1], alone))
        assert np.array_equal(mine.controls["prior only"].matched, theirs.controls["prior only"].matched)
        assert np.array_equal(mine.scores.matched, theirs.scores.matched)


@pytest.mark.slow
def test_the_command_audits_text(tmp_path):
    sizes = ["--num-sequences", "1", "--length", "3", "--vocabulary", "30", "--width", "16", "--depth", "1"]
    out = tmp_path / "text"
    assert main(["audit", "text", *sizes, "--targets", "2", "--candidates", "20", "--out", str(out)]) == 0
    record = json.loads((out / "audit.json").read_text())
    assert record["kind"] == "sequence"
    naive = record["settings"][0]["attackers"]["naive"]
    assert naive["attack"]["exact"] == 2
    assert not naive["in_class"]
    assert set(naive["controls"]) == {"typical guess", "drawn guess", "random update", "other client"}
    page = Page((out / "report.html").read_text(encoding="utf-8")).text
    assert "Exact sequences" in page


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["table", "--defenses", "none", "none"], "each only once"),
        (["table", "--defense", "top-k"], "takes its defenses from the list"),
        (["table", "--defenses", "no-such"], "no-such"),
        (["table", "--table", "adults"], "no table 'adults'"),
        (["table", "--targets", "200"], "need 800 different records"),
        (["table", "--candidates", "0"], "candidates is 0"),
        (["table", "--sampling-rate", "0.1"], "both sampling_rate and training_steps"),
        (["text", "--defenses", "soteria"], "defense 'soteria' is not implemented for text"),
        (["text", "--attack", "no-such"], "unknown attack on text 'no-such'; known are dager, "),
        (["text", "--length", "0"], "length"),
    ],
)
def test_what_is_not_possible_is_one_clear_error(arguments, message, tmp_path, capsys):
    assert main(["audit", *arguments, "--out", str(tmp_path / "out")]) == 2
    error = " ".join(capsys.readouterr().err.split())
    assert message in error
    assert not (tmp_path / "out" / "audit.json").exists()


def test_flags_of_another_kind_are_refused(capsys):
    assert main(["audit", "table", "--model", "lenet"]) == 2
    assert "--model" in capsys.readouterr().err
