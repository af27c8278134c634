"""Leakage along a training: the same attack with the parameters of a later round, once, and only where it can be."""

import contextlib
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxinvert import audit, files, jobs, models, report
from jaxinvert.audit import along_training, attacking, kept_training, retrieval
from jaxinvert.cli import main
from jaxinvert.federation import FederationState, Snapshot
from jaxinvert.report import audit_page
from tests.report.test_report import Page

CONFIG = jobs.JobConfig.of(
    model="mlp-32",
    split="train",
    targets=2,
    restarts=1,
    steps=12,
    tv=1e-3,
    defense="top-k",
    defense_settings={"keep": 0.3},
)
SETTINGS = [audit.Scenario("top-k", {"naive": CONFIG})]


@pytest.fixture(scope="module")
def snapshots():
    return [*audit.train_under(CONFIG, jobs.set_up(CONFIG), num_rounds=2)]


@pytest.fixture(scope="module")
def audited(tmp_path_factory):
    """Interrupted before the attack on the last round, and taken up again."""
    folder = tmp_path_factory.mktemp("audit")
    told, programs, original = [], [], attacking.attack

    def attack(what, config, program, *others):
        programs.append((what, program))
        return original(what, config, program, *others)

    def interrupted(what, _):
        told.append(what)
        if "after round 2" in what:
            raise KeyboardInterrupt

    options = {"accuracy_rounds": 2, "leakage_rounds": 2, "folder": folder}
    with pytest.MonkeyPatch.context() as patch:
        for module in (attacking, along_training):
            patch.setattr(module, "attack", attack)
        with pytest.raises(KeyboardInterrupt):
            audit.audit(SETTINGS, **options, on_progress=interrupted)
    again: list[str] = []
    (found,) = audit.audit(SETTINGS, **options, on_progress=lambda what, _: again.append(what))
    return found, folder, told, again, programs


@pytest.mark.slow
def test_an_interrupted_audit_repeats_no_attack(audited):
    _, _, told, again, _ = audited
    assert any("after round 1" in what for what in told)
    attacks = {what for what in again if "preparing" not in what and "training" not in what}
    assert attacks == {"top-k, naive: attack after round 2", "top-k, naive: random update after round 2"}


def test_later_rounds_are_attacked_by_the_program_of_the_first(audited):
    programs = dict(audited[-1])
    first = programs["attack"]
    assert programs["attack after round 1"] is first
    assert first.num_traces == 1


def test_figures_are_those_of_a_job_with_the_parameters_of_the_round(audited, snapshots, tmp_path):
    """The same clients as a job of its own, whose checkpoint holds what training has after two rounds."""
    found, *_ = audited
    assert [*found.leakage] == [0, 1, 2]
    assert found.leakage[0] is found.attackers["naive"]
    assert found.utility.rounds == [0, 1, 2]
    models.save_checkpoint(tmp_path / "trained.safetensors", snapshots[-1].state.params, {"model": CONFIG.model.name})
    alone = CONFIG.replace(checkpoint=tmp_path / "trained.safetensors")
    task = jobs.prepare(alone)
    execution = jobs.execute(alone, task.program, task.observations)
    differences = np.asarray(execution.reconstructions.inputs) - np.asarray(task.truth.inputs)
    psnr = -10 * np.log10(np.mean(differences**2, axis=(2, 3, 4)))
    np.testing.assert_allclose(found.leakage[2].scores.psnr_db, psnr, atol=0.01)
    assert np.abs(psnr - found.leakage[0].scores.psnr_db).min() > 0.1  # the parameters make a difference

    record = audit.record([found])
    files.save_json(tmp_path / "audit.json", record)
    (setting,) = json.loads((tmp_path / "audit.json").read_text())["settings"]
    before, _, last = setting["leakage"]
    assert (before["round"], last["round"]) == (0, 2)
    assert before["excess_psnr_db"] == setting["attackers"]["naive"]["excess_psnr_db"]
    assert last["psnr_db"]["mean"] == pytest.approx(psnr.mean(), abs=0.01)
    assert last["psnr_db"]["median"] == pytest.approx(np.median(psnr), abs=0.01)
    controls = found.leakage[2].controls
    null = max(scores.psnr_db.mean() for scores in controls.values())
    assert last["excess_psnr_db"]["mean"] == pytest.approx(psnr.mean() - null, abs=0.01)
    deals = retrieval.null(
        found.ground.private, found.ground.candidates.labels, found.ground.pool.same, in_class=True
    )
    identified = deals.hits(found.leakage[2].scores.picked_in_class).sum()
    assert last["identified"]["count"] == identified
    assert last["identified"]["total"] == 2
    assert np.array_equal(controls["other client"].matched[0], found.leakage[2].scores.matched[1])
    noise = [found.leakage[after].controls["random update"].psnr_db for after in (0, 1, 2)]
    assert not np.array_equal(noise[0], noise[1])  # what the attack makes of noise depends on the parameters
    assert not np.array_equal(noise[1], noise[2])
    assert np.array_equal(controls["mean image"].matched, found.leakage[0].controls["mean image"].matched)


def test_the_page_shows_leakage_by_round(audited, tmp_path):
    found, *_ = audited
    record = audit.record([found])
    report.save_audit_html(tmp_path / "x.html", audited=[found], record=record)
    page = Page((tmp_path / "x.html").read_text(encoding="utf-8"))
    assert "Leakage by round" in page.text
    for after in record["settings"][0]["leakage"]:
        assert f"{after['excess_psnr_db']['mean']:+.1f}" in page.text.split("Leakage by round")[1]
    (alt,) = (svg["aria-label"] for svg in page.all("svg") if "PSNR above" in svg.get("aria-label", ""))
    assert f"to {record['settings'][0]['leakage'][-1]['excess_psnr_db']['mean']:.1f}" in alt
    report.save_audit_html(tmp_path / "x.html", audited=[found], record=audit.record([found._replace(leakage=None)]))
    assert "Leakage by round" not in (tmp_path / "x.html").read_text(encoding="utf-8")


def test_what_auto_took_is_said_once_with_all_who_took_it():
    def of(*choices):
        leakage = [{"round": 10 * i, "choice": choice} for i, choice in enumerate(choices)]
        return {"name": "sign", "worst": "naive", "attackers": {"naive": {"choice": choices[0]}}, "leakage": leakage}

    assert audit_page.choices_of([of(None, None)]) == []
    assert audit_page.choices_of([of("a", "a"), of("a", "a")]) == [("every setting and attacker", "a")]
    assert audit_page.choices_of([of("a", "a", "b", "b", "a")]) == [
        ("sign, naive attacker; sign, after 10 rounds; sign, after 40 rounds", "a"),
        ("sign, after 20 rounds; sign, after 30 rounds", "b"),
    ]


def test_a_finished_training_is_not_repeated(audited, monkeypatch):
    """Nor is one whose last attacks were interrupted, above."""
    found, folder, *_ = audited
    assert not (*folder.glob("attacks/*-state.npz"),)
    monkeypatch.setattr(kept_training, "train_under", None)
    (repeated,) = audit.audit(SETTINGS, accuracy_rounds=2, leakage_rounds=2, folder=folder)
    assert repeated.utility == found.utility
    assert np.array_equal(repeated.leakage[2].scores.psnr_db, found.leakage[2].scores.psnr_db)


def counting(stop_after=None):
    """In place of a training, whose parameters count the rounds; stops between two reports, as an interrupt does."""
    begun = []

    def train_under(config, setup, *, num_rounds, resume, on_state):
        begun.append(resume(snapshot(0).state))
        return reports(0 if begun[-1] is None else int(begun[-1].round) + 1, num_rounds, on_state)

    def reports(first, num_rounds, on_state):
        for number in range(first, num_rounds + 1):
            if number % 4 == 0:
                yield snapshot(number)
                continue
            on_state(snapshot(number).state)
            if number == stop_after:
                raise KeyboardInterrupt

    def snapshot(number):
        params = {"w": jnp.full(3, number, jnp.bfloat16), "key": jax.random.key(number)}
        state = FederationState(jnp.array(number), params, optax.adam(0.1).init({"w": params["w"]}))
        return Snapshot(number, number / 20, 1.0, None, state)

    return train_under, begun, snapshot


@pytest.mark.parametrize("damaged", [False, True])
def test_an_interrupted_training_continues(damaged, tmp_path, monkeypatch):
    """From the state saved at the interrupt; a damaged one costs a new training only."""
    (interrupted, _, snapshot), (continued, begun, _) = counting(stop_after=6), counting()
    setup = jobs.set_up(CONFIG)._replace(trained=snapshot(0).state.params)
    options = {"num_rounds": 20, "attacked": [20], "store": audit.Store(tmp_path)}
    monkeypatch.setattr(kept_training, "train_under", interrupted)
    with pytest.raises(KeyboardInterrupt):
        [*kept_training.kept_training(CONFIG, setup, **options)]
    (state,) = tmp_path.glob("attacks/*-state.npz")
    if damaged:
        state.write_bytes(state.read_bytes()[:-40])
    monkeypatch.setattr(kept_training, "train_under", continued)
    said = pytest.warns(files.KeptFileWarning, match="computed again") if damaged else contextlib.nullcontext()
    with said:
        found = [*kept_training.kept_training(CONFIG, setup, **options)]
    assert [(one.round, one.accuracy) for one in found] == [(number, number / 20) for number in range(0, 21, 4)]
    assert [one.params is None for one in found] == [True] * 5 + [False]
    for mine, theirs in zip(jax.tree.leaves(found[-1].params), jax.tree.leaves(snapshot(20).state.params)):
        assert mine.dtype == theirs.dtype
        assert jnp.all(mine == theirs)
    assert (begun[0] is None) if damaged else (int(begun[0].round) == 6)
    again = [*kept_training.kept_training(CONFIG, setup, **options)]
    assert len(begun) == 1
    assert [one.accuracy for one in again] == [one.accuracy for one in found]


def test_an_interrupt_after_a_report_keeps_the_state_of_that_report(tmp_path, monkeypatch):
    """The state before the report, not saved yet, is older."""
    train_under, begun, snapshot = counting()
    setup = jobs.set_up(CONFIG)._replace(trained=snapshot(0).state.params)
    options = {"num_rounds": 20, "attacked": [], "store": audit.Store(tmp_path)}

    def interrupted(*arguments, **named):
        for reported in train_under(*arguments, **named):
            yield reported
            if reported.round == 8:
                raise KeyboardInterrupt

    monkeypatch.setattr(kept_training, "train_under", interrupted)
    with pytest.raises(KeyboardInterrupt):
        [*kept_training.kept_training(CONFIG, setup, **options)]
    monkeypatch.setattr(kept_training, "train_under", train_under)
    assert [one.round for one in kept_training.kept_training(CONFIG, setup, **options)] == [0, 4, 8, 12, 16, 20]
    assert int(begun[1].round) == 8


def test_swapped_rounds_of_a_training_are_computed_again(tmp_path, monkeypatch):
    continued, begun, snapshot = counting()
    setup = jobs.set_up(CONFIG)._replace(trained=snapshot(0).state.params)
    options = {"num_rounds": 20, "attacked": [20], "store": audit.Store(tmp_path)}
    monkeypatch.setattr(kept_training, "train_under", continued)
    found = [*kept_training.kept_training(CONFIG, setup, **options)]
    four, eight = (next(tmp_path.glob(f"attacks/*-round-{number}.npz")) for number in (4, 8))
    before = four.read_bytes()
    four.write_bytes(eight.read_bytes())
    eight.write_bytes(before)
    with pytest.warns(files.KeptFileWarning, match="round 4 is computed again: .*checksum differs"):
        again = [*kept_training.kept_training(CONFIG, setup, **options)]
    assert len(begun) == 2
    assert [one.accuracy for one in again] == [one.accuracy for one in found]


@pytest.mark.slow
def test_a_training_that_goes_astray_is_noted(snapshots, tmp_path, monkeypatch):
    """Everything that was attacked before it stays."""
    first, second, last = snapshots
    broken = jax.tree.map(lambda leaf: jnp.full_like(leaf, jnp.nan), second.state.params)
    second = second._replace(state=second.state._replace(params=broken))
    monkeypatch.setattr(kept_training, "train_under", lambda *_, **__: iter([first, second, last]))
    (found,) = audit.audit(SETTINGS, accuracy_rounds=2, leakage_rounds=2)
    assert [*found.leakage] == [0, 2]
    assert "leakage after round 1 of training is unknown" in found.note


@pytest.mark.slow
def test_a_training_that_fails_leaves_the_verdict_and_what_was_measured(snapshots, monkeypatch):
    def failing(*_, **__):
        yield snapshots[0]
        raise RuntimeError("out of memory")

    monkeypatch.setattr(kept_training, "train_under", failing)
    (found,) = audit.audit(SETTINGS, accuracy_rounds=2)
    assert found.utility.rounds == [0]
    assert "no accuracy during training after round 0: RuntimeError: out of memory" in found.note


def test_rounds_are_spread_and_end_with_the_last():
    assert audit.rounds_to_attack(0, 0) == []
    assert audit.rounds_to_attack(100, 0) == []
    assert audit.rounds_to_attack(100, 1) == [100]
    assert audit.rounds_to_attack(100, 5) == [20, 40, 60, 80, 100]
    for count in range(1, 6):
        rounds = audit.rounds_to_attack(50, count)
        assert len(set(rounds)) == count
        assert rounds == sorted(rounds)
        assert rounds[-1] == 50


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--leakage-rounds", "1"], "leakage_rounds is 1, but there is no training to attack"),
        (["--leakage-rounds", "3", "--accuracy-rounds", "2"], "leakage_rounds is 3, expected 0 ... 2"),
        (["--leakage-rounds", "-1", "--accuracy-rounds", "2"], "leakage_rounds is -1, expected 0 ... 2"),
        (["--accuracy-rounds", "-2"], "accuracy_rounds is -2, expected at least 0"),
        (["--update", "a.npz", "--params", "b.npz", "--accuracy-rounds", "2"], "accuracy_rounds is 2, but captured"),
    ],
)
def test_rounds_that_cannot_be_attacked_are_refused_before_anything_is(flags, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["audit", "--model", "mlp-32", "--out", "x", *flags]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "x").exists()
