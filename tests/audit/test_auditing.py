"""The audit as a whole: scores, controls, and a verdict that a random update does not move."""

import json
import shutil
import subprocess
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxinvert import audit, files, jobs, metrics
from jaxinvert.audit import attacking, controls, kept
from jaxinvert.audit.scoring import Images
from jaxinvert.cli import main
from jaxinvert.metrics import perceptual
from tests.report.test_report import Page

CONFIG = jobs.JobConfig.of(
    model="mlp-32", attack="inverting-gradients", split="train", targets=9, restarts=1, steps=30, tv=1e-3
)


@pytest.fixture(scope="module")
def prepared():
    setup = jobs.set_up(CONFIG)
    task = jobs.prepare(CONFIG, setup)
    ground = audit.ground_truth(task.truth, setup.dataset.images, setup.dataset.labels, num_candidates=100)
    return task, ground


@pytest.fixture(scope="module")
def audited(tmp_path_factory):
    folder, seen = tmp_path_factory.mktemp("audit"), []
    found = audit.audit(
        [audit.Scenario("no defense", {"naive": CONFIG})],
        folder=folder,
        on_progress=lambda what, _: seen.append(what),
    )
    return found, folder, seen


def a_ground(num_clients=4, size=2, total=12):
    generator = np.random.default_rng(0)
    images = generator.random((total, 12, 12, 3), np.float32)
    labels = np.arange(total) % 3
    count = num_clients * size
    truth = Images(images[:count].reshape(num_clients, size, 12, 12, 3), labels[:count].reshape(num_clients, size))
    return audit.ground_truth(truth, images, labels, num_candidates=total)


def test_candidates_begin_with_the_private_images():
    ground = a_ground()
    assert np.array_equal(ground.candidates.inputs[ground.private], ground.truth.inputs)
    with pytest.raises(ValueError, match="first 8 candidates must be the private images"):
        audit.ground_truth(ground.truth, ground.candidates.inputs[::-1], ground.candidates.labels, num_candidates=12)


def test_scores_do_not_depend_on_the_order_of_a_batch():
    ground = a_ground()
    noise = 0.05 * np.random.default_rng(1).normal(size=ground.truth.inputs.shape)
    found = ground.truth.inputs + noise
    there, back = (audit.score(each, ground.truth.labels, ground) for each in (found, found[:, ::-1]))
    assert np.array_equal(there.psnr_db, back.psnr_db)
    assert np.array_equal(there.matched, back.matched)
    assert there.identified.all()
    assert back.identified.all()


def test_a_duplicated_reconstruction_earns_nothing():
    ground = a_ground()
    found = np.repeat(ground.truth.inputs[:, :1], 2, axis=1)
    scores = audit.score(found, ground.truth.labels, ground)
    assert np.all(scores.psnr_db.max(axis=1) == 120)
    assert np.all(scores.psnr_db.min(axis=1) < 15)
    assert scores.identified.sum(axis=1).max() <= 2
    assert np.mean(scores.identified[:, 1]) < 1


def test_a_shift_in_brightness_costs_pixels_but_not_recognition():
    ground = a_ground()
    scores = audit.score(0.5 * ground.truth.inputs + 0.4, ground.truth.labels, ground)
    assert np.all(scores.psnr_db < 20)
    assert scores.identified.all()


def test_in_its_class_an_image_competes_with_that_class_alone():
    ground = a_ground(num_clients=2, size=1, total=12)
    scores = audit.score(ground.truth.inputs, ground.truth.labels, ground)
    assert np.all(scores.identified_in_class == 1)
    assert np.all(np.isnan(audit.score(ground.truth.inputs, None, ground).identified_in_class))
    alone = a_ground(num_clients=1, size=2, total=3)  # classes 0, 1, 2: nobody to be confused with
    assert np.all(np.isnan(audit.score(alone.truth.inputs, alone.truth.labels, alone).identified_in_class))


def test_images_are_picked_by_a_perceptual_distance_too(monkeypatch):
    """With a distance that sees colors alone, pictures of other images with the private colors are recognized."""

    def of_colors(found, known):
        return np.sum((np.asarray(found).mean(axis=(1, 2)) - np.asarray(known).mean(axis=(1, 2))) ** 2, axis=-1)

    monkeypatch.setattr(perceptual, "lpips", of_colors)
    ground = a_ground(num_clients=2, size=2, total=12)
    others = ground.candidates.inputs[[4, 5, 6, 7]].reshape(ground.truth.inputs.shape)
    own, theirs = (one.mean(axis=(2, 3), keepdims=True) for one in (ground.truth.inputs, others))
    found = np.clip(0.5 * (others - theirs) + own, 0, 1)
    scores = audit.score(found, None, ground, with_lpips=True)
    assert scores.recognized.all()
    assert not scores.identified.any()
    assert audit.score(found, None, ground).recognized is None


@pytest.mark.slow
def test_a_generator_that_saw_the_victims_is_among_what_the_attacker_knows():
    by_default = jobs.JobConfig.of(attack="gias")
    assert jobs.prior_saw_victims(by_default)
    assert not jobs.prior_saw_victims(by_default.replace(data="cifar10"))
    assert not jobs.prior_saw_victims(by_default.replace(generator=Path("own.safetensors")))
    assert not jobs.prior_saw_victims(CONFIG)
    assert not jobs.prior_saw_victims(by_default.replace(split="private[:9]"))
    assert jobs.prior_saw_victims(by_default.replace(split="private+public"))
    config = by_default.replace(model="mlp-16", split="train", targets=2, restarts=1, steps=1)
    (found,) = audit.audit([audit.Scenario("no defense", {"naive": config})])
    assert any("victims' own scenes" in fact for fact in audit.record([found])["assumptions"]["known"])


def test_mean_pictures_leave_the_client_out():
    ground = a_ground(num_clients=2, size=1, total=4)
    expected = ground.candidates.inputs[1:].mean(axis=0)
    np.testing.assert_allclose(controls.mean_image(ground)[0, 0], expected, rtol=1e-6)
    same_class = ground.candidates.inputs[3]  # labels 0, 1, 2, 0
    np.testing.assert_allclose(controls.class_mean(ground)[0, 0], same_class, rtol=1e-6)
    assert controls.other_client(np.arange(3)).tolist() == [1, 2, 0]


def test_a_random_update_has_the_norms_and_nothing_else(prepared):
    task, _ = prepared
    noise = controls.random_update(jax.random.key(0), task.observations)
    for mine, theirs in zip(jax.tree.leaves(task.observations.update), jax.tree.leaves(noise.update)):
        rows, others = (np.asarray(leaf).reshape(len(leaf), -1) for leaf in (mine, theirs))
        np.testing.assert_allclose(np.linalg.norm(others, axis=1), np.linalg.norm(rows, axis=1), rtol=1e-4)
        cosine = np.sum(rows * others, axis=1) / np.maximum(np.sum(rows**2, axis=1), 1e-30)
        assert np.all(np.abs(cosine) < 6 / np.sqrt(rows.shape[1]))
    assert noise.labels is task.observations.labels


@pytest.mark.slow
@pytest.mark.parametrize("attack", ["inverting-gradients", "spectral", "auto"])
def test_a_blind_attacker_learns_nothing(prepared, attack):
    """What it shows is the same whatever the clients sent, and for spectral the prior's own picture: nearly gray."""
    task, _ = prepared
    config = CONFIG.replace(attack=attack, steps=30)
    other = task._replace(
        observations=task.observations._replace(update=jax.tree.map(jnp.negative, task.observations.update))
    )
    pictures = [attacking.blind_attack(config, seen, None, lambda *_: None, {}) for seen in (task, other)]
    assert np.array_equal(*pictures)
    if attack != "inverting-gradients":
        shown, gray = (
            np.mean([metrics.psnr(found, truth) for found, truth in zip(found_of, task.truth.inputs)])
            for found_of in (pictures[0], np.full_like(pictures[0], 0.5))
        )
        assert shown > gray - 0.5  # a descent that rounding alone drives ends 6 dB below


def test_an_audit_finds_a_leak_and_says_what_it_rests_on(audited):
    (found,), _, _ = audited
    assert found.verdict.level == "leaks"
    attacked = found.attackers[found.worst]
    assert attacked.in_class
    assert attacked.identified.count >= 8
    assert attacked.identified.chance < 0.15  # of about ten tiles of each class among 100
    assert attacked.strongest in attacked.controls
    assert set(attacked.controls) == {"mean image", "random update", "class mean", "prior only", "other client"}
    strongest = max(scores.psnr_db.mean() for scores in attacked.controls.values())
    assert attacked.excess.mean == pytest.approx(attacked.scores.psnr_db.mean() - strongest)


@pytest.mark.slow
def test_an_audit_of_random_updates_finds_nothing(prepared):
    task, ground = prepared
    nothing = task._replace(observations=controls.random_update(jax.random.key(9), task.observations))
    found = audit.judged("random", ground, {"naive": audit.attack_and_score(CONFIG, nothing, ground)})
    assert found.verdict.level == "none"
    assert found.attackers["naive"].identified.count <= 4


def test_finished_attacks_are_not_repeated_and_damaged_files_are(audited, tmp_path):
    (found,), folder, seen = audited
    assert any("attack" in what for what in seen)
    kept = sorted((folder / "attacks").glob("*.npz"))
    assert len(kept) == 3
    kept[0].write_bytes(kept[0].read_bytes()[:-30])
    again: list[str] = []
    with pytest.warns(files.KeptFileWarning, match=f"is computed again: .*{kept[0].name}"):
        (repeated,) = audit.audit(
            [audit.Scenario("no defense", {"naive": CONFIG})],
            folder=folder,
            on_progress=lambda what, _: again.append(what),
        )
    assert sum("preparing" not in what for what in set(again)) == 1
    assert repeated.verdict == found.verdict
    for mine, theirs in zip(repeated.attackers["naive"].scores, found.attackers["naive"].scores):
        assert (mine is None and theirs is None) or np.array_equal(mine, theirs, equal_nan=True)


@pytest.mark.parametrize("forged", [{"inputs": np.array(["x"])}, {"num_steps": np.array([1, 2])}])
def test_a_kept_attack_of_another_form_is_repeated(forged, tmp_path):
    """Checksums are no proof of origin."""
    right = {"inputs": np.ones((1, 1, 2, 2, 3)), "attack_loss": np.ones(1), "num_steps": 3}
    right |= {"seconds_compile": 1.5, "seconds_run": 2.5}
    store = kept.Store(tmp_path)

    def found():
        return kept.kept_or_done(store, "job", "attack", lambda: "repeated")

    store.save("job", "attack", right)
    assert found().num_steps == 3
    store.save("job", "attack", right | forged)
    with pytest.warns(files.KeptFileWarning, match="computed again"), pytest.raises(AttributeError, match="str"):
        found()


@pytest.mark.slow
def test_swapped_attacks_are_repeated(audited):
    (found,), folder, _ = audited
    attack, noise = (next((folder / "attacks").glob(f"*-{what}.npz")) for what in ("attack", "random-update"))
    before = attack.read_bytes()
    attack.write_bytes(noise.read_bytes())
    noise.write_bytes(before)
    with pytest.warns(files.KeptFileWarning, match="checksum differs") as caught:
        (repeated,) = audit.audit([audit.Scenario("no defense", {"naive": CONFIG})], folder=folder)
    assert sum(issubclass(one.category, files.KeptFileWarning) for one in caught) == 2
    assert repeated.verdict == found.verdict
    (again,) = audit.audit([audit.Scenario("no defense", {"naive": CONFIG})], folder=folder)  # without a warning
    assert again.verdict == found.verdict


@pytest.mark.slow
def test_an_attack_that_cannot_be_kept_still_counts(audited, tmp_path, monkeypatch):
    def full(path, write):  # states, saved on slow machines only, are not the subject
        if path.parent.name == "attacks":
            raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(files, "write_atomically", full)
    with pytest.warns(files.KeptFileWarning, match="not kept: .*No space left"):
        (found,) = audit.audit([audit.Scenario("no defense", {"naive": CONFIG})], folder=tmp_path)
    assert found.verdict == audited[0][0].verdict


def test_the_record_is_json_and_the_page_shows_it(audited, tmp_path):
    from jaxinvert import report

    found, _, _ = audited
    record = audit.record(found)
    files.save_json(tmp_path / "audit.json", record)
    report.save_audit_html(tmp_path / "x.html", audited=found, record=record, command="jaxinvert audit <&>")
    text = (tmp_path / "x.html").read_text(encoding="utf-8")
    page = Page(text)
    assert found[0].verdict.headline in " ".join(page.text.split())
    assert "jaxinvert audit &lt;&amp;&gt;" in text
    assert len(page.all("img")) == len(report.audit_page.picks_of(found[0])) * (
        2 + len(found[0].attackers["naive"].controls)
    )
    assert "http" not in text.replace("http-equiv", "")
    open_parts, folded = text.split("<details>", 1)  # verdict, one chart and pictures, then the rest
    assert [one for one in ("risk", "pictures") if f'<h2 id="{one}">' in open_parts] == ["risk", "pictures"]
    assert all(f'<h2 id="{one}">' in folded for one in ("evidence", "assumptions", "clients", "again", "machine"))
    assert "Images recognizable" in open_parts
    assert "Audited: 9 simulated clients with 1 image each of the data set photos (tiles of photographs" in open_parts
    case = report.risk_chart.ADVICE[f"leaks, {record['assumptions']['realism']['kind']}"]
    assert f"Without a defense, updates leak: {case}" in open_parts
    assert "reconstruction without a defense" in open_parts
    assert open_parts.count("SSIM ") >= len(page.all("img")) - len(report.audit_page.picks_of(found[0]))


@pytest.mark.slow
def test_the_command_audits_what_a_file_says_and_flags_overrule(tmp_path, capsys):
    file = tmp_path / "audit.yaml"
    file.write_text(
        "{model: mlp-16, attack: inverting-gradients, restarts: 1, steps: 900, targets: 4, num_examples: 2, "
        "defenses: [none, mixup, precode], accuracy_rounds: 2}"
    )
    out = tmp_path / "out"
    assert main(["audit", str(file), "--steps", "8", "--out", str(out)]) == 0
    record = json.loads((out / "audit.json").read_text())
    assert [setting["name"] for setting in record["settings"]] == [
        "no defense",
        "mixup",
        "precode",
    ]
    assert record["settings"][0]["attackers"]["naive"]["config"]["steps"] == 8
    assert record["num_clients"] == 4
    assert record["settings"][0]["attackers"]["naive"]["config"]["split"] == "private"  # see the command's help
    page = Page((out / "report.html").read_text(encoding="utf-8"))
    assert "Every setting and attacker" in page.text
    assert "no adaptive attacker is known" in page.text
    assert "What protection costs" in page.text
    assert page.text.count("3 precode") == 1
    assert [len(setting["utility"]["accuracy"]) for setting in record["settings"]] == [3, 3, 3]
    printed = capsys.readouterr().out
    assert record["settings"][0]["verdict"]["headline"].split(":")[0] in printed
    file.write_text("modle: mlp\n")
    assert main(["audit", str(file), "--out", str(out)]) == 2
    assert "there is no field 'modle'" in capsys.readouterr().err


@pytest.mark.skipif(shutil.which("chromium") is None, reason="no headless browser here")
def test_the_page_opens_in_a_browser_without_a_complaint(audited, tmp_path):
    from jaxinvert import report

    found, _, _ = audited
    report.save_audit_html(tmp_path / "x.html", audited=found, record=audit.record(found))
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--dump-dom"]
    result = subprocess.run(
        [*command, f"--user-data-dir={tmp_path / 'profile'}", (tmp_path / "x.html").as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert found[0].verdict.headline in result.stdout
    assert "CONSOLE" not in result.stderr  # such as a picture that the page's own policy forbids
