"""The command line as a user calls it: files, figures, errors and interrupts."""

import json

import jax
import numpy as np
import pytest

import jaxinvert
from jaxinvert import cli, files, jobs, models

FAST = ["invert", "--model", "small-convnet", "--size", "16", "--targets", "2", "--restarts", "2"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """One run through the public interface."""
    folder = tmp_path_factory.mktemp("run")
    assert cli.main([*FAST, "--steps", "40", "--tv", "1e-4", "--out", str(folder)]) == 0
    return folder


@pytest.mark.slow
def test_writes_the_four_files(finished):
    assert {path.name for path in finished.iterdir()} == {
        "summary.json",
        "reconstructions.npz",
        "reconstructions.png",
        "report.html",
    }
    assert (finished / "report.html").read_text().startswith("<!doctype html>")


def test_summary_tells_all(finished):
    summary = json.loads((finished / "summary.json").read_text())
    assert summary["config"]["model"] == "small-convnet"
    assert summary["config"]["settings"] == {"tv": 1e-4, "learning_rate": 0.1}
    assert summary["num_steps"] == 40
    assert summary["selected_by"] == "attack_loss"
    assert summary["interrupted"] is False
    assert [image["class_name"] for image in summary["images"]] == ["astronaut", "cat"]
    assert summary["steps_per_second"] == pytest.approx(40 * 2 * 2 / summary["seconds_run"])
    for target in summary["targets"]:
        assert target["attack_loss"] == min(target["restart_losses"])
        assert target["restart_losses"][target["winner"]] == target["attack_loss"]
    assert set(summary["versions"]) >= {"jax", "jaxinvert", "python"}
    assert summary["device"]
    assert summary["command"].startswith("jaxinvert invert")


def test_the_figures_can_be_computed_again_from_the_arrays(finished):
    summary = json.loads((finished / "summary.json").read_text())
    arrays = files.load_arrays(finished / "reconstructions.npz")
    assert arrays["truth"].shape == arrays["reconstruction"].shape == (2, 16, 16, 3)
    for array in arrays.values():
        assert array.dtype == np.float32
        assert array.min() >= 0
        assert array.max() <= 1
    mse = np.mean((arrays["truth"] - arrays["reconstruction"]) ** 2, axis=(1, 2, 3))
    for image, expected in zip(summary["images"], mse):
        assert image["mse"] == pytest.approx(expected, rel=1e-4)
        assert image["psnr_db"] == pytest.approx(-10 * np.log10(expected), abs=1e-3)


@pytest.mark.slow
def test_same_seed_same_result(finished, tmp_path):
    cli.main([*FAST, "--steps", "40", "--tv", "1e-4", "--out", str(tmp_path)])
    first, again = (files.load_arrays(folder / "reconstructions.npz") for folder in (finished, tmp_path))
    np.testing.assert_array_equal(first["reconstruction"], again["reconstruction"])


def test_truth_does_not_enter_the_attack(finished):
    """`execute` is handed the observations alone, and returns what the whole job returned."""
    config = jobs.JobConfig.of(model="small-convnet", size=16, targets=2, restarts=2, steps=40, tv=1e-4)
    task = jobs.prepare(config)
    model, observations = task.program, task.observations
    del task
    found = jobs.execute(config, model, observations).reconstructions
    expected = files.load_arrays(finished / "reconstructions.npz")["reconstruction"]
    np.testing.assert_array_equal(np.asarray(found.inputs)[:, 0], expected)


def test_closed_form(tmp_path):
    arguments = ["invert", "--attack", "dense-layer", "--model", "mlp", "--size", "16", "--targets", "3"]
    assert cli.main([*arguments, "--out", str(tmp_path)]) == 0
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["quality"]["psnr_db"]["min"] > 80
    assert summary["selected_by"] == "closed form"
    assert {"the images", "the label of every example"} <= set(summary["assumptions"]["unknown"])


@pytest.mark.slow
def test_local_training(tmp_path):
    arguments = ["invert", "--model", "mlp", "--size", "12", "--targets", "1", "--restarts", "1", "--steps", "3"]
    local = ["--client", "fedavg", "--num-examples", "2", "--local-batch-size", "1", "--local-epochs", "2"]
    assert cli.main([*arguments, *local, "--out", str(tmp_path)]) == 0
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["assumptions"]["client"].startswith(
        "FedAvg: 4 local steps of 1 examples, sgd with rate 0.01, order known"
    )
    assert "the client's learning rate and number of local steps" in summary["assumptions"]["known"]


def run_mlp(folder, *flags, size="12", steps="3"):
    """A run of a second; its summary."""
    arguments = ["invert", "--model", "mlp", "--size", size, "--targets", "2", "--restarts", "1", "--steps", steps]
    assert cli.main([*arguments, *flags, "--out", str(folder)]) == 0
    return json.loads((folder / "summary.json").read_text())


@pytest.mark.slow
def test_restored_labels(tmp_path, capsys):
    """One example per client: every rule is exact, so the attack is that with known labels."""
    known = run_mlp(tmp_path / "known")
    restored = run_mlp(tmp_path / "restored", "--labels", "restored", "--label-rule", "bias-sign")
    assert known["labels"] is None
    assert restored["labels"]["exact"] == [True, True]
    assert restored["labels"]["recall"] == 1
    assert [image["label"] for image in restored["images"]] == [row[0] for row in restored["labels"]["found"]]
    for one, other in zip(known["targets"], restored["targets"]):
        assert one["attack_loss"] == pytest.approx(other["attack_loss"], rel=1e-5)
    assert "the label of every example" in restored["assumptions"]["unknown"]
    assert restored["assumptions"]["labels"] == "restored from the update by the rule bias-sign"
    assert "labels restored: exact for 2 of 2 targets, 100% of the examples" in capsys.readouterr().out
    assert (
        "restored from the update by the rule bias-sign: exact for 2 of"
        in (tmp_path / "restored" / "report.html").read_text()
    )


@pytest.mark.slow
def test_surrogate_images_restore_labels_under_threat_model_d(tmp_path):
    summary = run_mlp(tmp_path, "--labels", "restored", "--threat-model", "D", "--num-examples", "2", size="32")
    assert summary["assumptions"]["labels"].endswith("moments-surrogate")
    assert "public images of the same kind (tiles of the same scenes)" in summary["assumptions"]["known"]
    assert np.shape(summary["labels"]["found"]) == (2, 2)


def test_joint_labels(tmp_path):
    summary = run_mlp(tmp_path, "--labels", "joint", steps="30")
    assert summary["assumptions"]["labels"] == "optimized jointly with the images"
    assert np.shape(summary["labels"]["found"]) == (2, 1)


@pytest.mark.slow
def test_trained_parameters_bring_their_normalization(tmp_path):
    model = models.create("mlp", input_shape=(12, 12, 3), mean=(0.1,) * 3, std=(0.9,) * 3)
    file = tmp_path / "net.safetensors"
    params = model.init(jax.random.key(77))
    models.save_checkpoint(file, params, {"model": "mlp", "num_classes": 10, "mean": model.mean, "std": model.std})
    task = jobs.prepare(jobs.JobConfig.of(model="mlp", size=12, targets=1, checkpoint=file))
    assert task.model.mean == model.mean
    jax.tree.map(np.testing.assert_array_equal, task.observations.params, params)
    with pytest.raises(ValueError, match=r"normalized is False, but .* was trained on normalized images"):
        jobs.prepare(jobs.JobConfig.of(model="mlp", size=12, targets=1, checkpoint=file, normalized=False))
    fresh, trained = run_mlp(tmp_path / "fresh"), run_mlp(tmp_path / "trained", "--checkpoint", str(file))
    assert fresh["targets"] != trained["targets"]


@pytest.mark.slow
def test_secure_aggregation_attacks_all_examples_at_once(tmp_path):
    summary = run_mlp(tmp_path, "--aggregate", "2", "--num-examples", "2")
    assert len(summary["images"]) == 2 * 2 * 2
    assert "the server sees the mean of 2 clients' updates" in summary["assumptions"]["client"]


@pytest.mark.slow
def test_what_an_attack_found_beside_images_is_in_the_summary(tmp_path):
    summary = run_mlp(tmp_path, "--attack", "dlm-best-scale")
    assert all(target["scale"] > 0 for target in summary["targets"])
    assert summary["labels"]["exact"] == [True, True]


@pytest.mark.slow
def test_local_optimizer_and_secret_order_change_what_the_client_sends():
    def update(**settings):
        config = jobs.JobConfig.of(
            model="mlp", size=12, targets=1, num_examples=2, client="fedavg", local_batch_size=1, local_epochs=3,
            **settings,
        )  # fmt: skip
        return np.asarray(jobs.prepare(config).observations.update["params"]["head"]["bias"])

    plain = update()
    assert not np.allclose(plain, update(local_optimizer="momentum"))
    assert not np.allclose(plain, update(local_optimizer="adam"))
    assert not np.allclose(plain, update(local_weight_decay=0.5), atol=1e-9)
    orders = [update(local_order="unknown", seed=seed) for seed in range(3)]
    same_seeds = [update(seed=seed) for seed in range(3)]
    assert any(not np.array_equal(secret, known) for secret, known in zip(orders, same_seeds))


def test_an_attack_that_reads_what_is_withheld_is_refused(tmp_path, capsys):
    assert cli.main(["invert", "--threat-model", "A", "--out", str(tmp_path / "run")]) == 2
    message = " ".join(capsys.readouterr().err.split())
    assert "inverting-gradients needs what the threat model withholds: params (" in message
    assert "num_examples (" in message
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_interrupt_writes_the_best_so_far(tmp_path, monkeypatch):
    reports = []

    def interrupt_at_second(config, program, observations, *, on_progress, state_folder):
        def on_report(progress):
            on_progress(progress)
            reports.append(progress)
            if len(reports) == 2:
                raise KeyboardInterrupt

        return execute(config, program, observations, on_progress=on_report, state_folder=state_folder)

    execute = jobs.execute
    monkeypatch.setattr(jobs, "execute", interrupt_at_second)
    status = cli.main([*FAST, "--steps", "100000", "--out", str(tmp_path)])
    assert status == 130
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["interrupted"] is True
    assert summary["num_steps"] == reports[1].step < 100000
    assert summary["targets"][0]["attack_loss"] == pytest.approx(float(reports[1].best_loss[0].min()))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "lenett"], "unknown model 'lenett'.*did you mean 'lenet'"),
        (["--attack", "magic"], "unknown attack 'magic'.*inverting-gradients"),
        (["--data", "nowhere"], "no dataset 'nowhere'"),
        (["--split", "holdout"], "holdout"),
        (["--targets", "99"], "99 targets of 1 examples need 99 images.*has 10"),
        (["--steps", "-1"], "steps is -1, expected at least 0"),
        (["--restarts", "0"], "restarts is 0, expected at least 1"),
        (["--tv", "nan"], "tv is nan, expected a finite"),
        (["--lr", "1e39"], r"lr is 1e\+39, expected a finite float32"),
        (["--seed", "4294967296"], "seed is 4294967296, expected at most 4,294,967,295"),
        (["--attack", "dense-layer", "--tv", "1"], "'dense-layer' has no tv"),
        (["--attack", "dense-layer"], "one biased dense layer that reads images"),
        (["--size", "0"], "size is 0"),
        (["--attack", "dense-layer", "--labels", "restored"], "'dense-layer' reads no labels"),
        (["--label-rule", "llg"], "label_rule is 'llg', which only labels='restored' uses"),
        (["--labels", "restored", "--label-rule", "oracle"], "unknown label rule 'oracle'; known are idlg"),
        (["--labels", "restored", "--threat-model", "D", "--split", "train"], "may hold the surrogate images"),
        (
            ["--labels", "restored", "--label-rule", "zero-shot-surrogate"],
            "label rule zero-shot-surrogate .*surrogate",
        ),
        (
            ["--attack", "batch-norm-leakage", "--threat-model", "E"],
            "needs clients in train mode: batch_norm='train'",
        ),
        (["--attack", "idlg", "--num-examples", "2"], "idlg inverts updates of one example; .* 2 "),
        (["--local-epochs", "2"], "local_epochs is 2, which only client='fedavg' uses"),
        (["--tv", "1", "--settings", "tv", "2"], "tv is given twice, as 1.0 and as 2.0"),
        (
            ["--client", "fedavg", "--local-optimizer", "adam", "--labels", "restored"],
            "requires plain sgd; the sign rules",
        ),
        (
            ["--labels", "restored", "--threat-model", "D", "--size", "16"],
            "threat model D grants surrogate images: .* split 'train' at 32 px",
        ),
        (["--client", "fedavg", "--threat-model", "B"], "inverting-gradients needs .* withholds: .*local_training"),
        (
            ["--labels", "joint", "--attack", "dlg"],
            "'dlg' cannot optimize labels; batch-norm-leakage, .*, auto can",
        ),
        (["--settings", "sigma", "1"], "'inverting-gradients' has no sigma"),
        (["--checkpoint", "nowhere.safetensors"], "no checkpoint at nowhere.safetensors"),
        (["--batch-norm", "train"], "'lenet'.*batch_norm"),
        (["--aggregate", "0"], "aggregate is 0, expected at least 1"),
        (["--gradient-chunk", "0"], "gradient_chunk is 0, expected at least 1"),
        (["--gradient-chunk", "4", "--batch-norm", "train"], "gradient_chunk is 4, but batch_norm='train' couples"),
        (
            ["--attack", "batch-norm-leakage", "--batch-norm", "train", "--rounds", "2"],
            "rounds is 2, but attack 'batch-norm-leakage' uses one round only",
        ),
        (["--server-lr", "1"], "server_lr is 1.0, which only several rounds use"),
    ],
)
def test_bad_input_is_one_clear_error_and_writes_nothing(arguments, message, tmp_path, capsys):
    import re

    try:
        status = cli.main(["invert", *arguments, "--out", str(tmp_path / "out")])
    except SystemExit as stop:  # what the argument parser itself refuses
        status = stop.code
    captured = capsys.readouterr()
    text = re.sub(r"[\s│╭╰─╮╯]+", " ", captured.err + captured.out)
    assert status == 2
    assert re.search(message, text), text
    assert "Traceback" not in text
    assert not (tmp_path / "out").exists()


def test_a_closed_form_without_labels_is_not_handed_any():
    task = jobs.prepare(jobs.JobConfig.of(attack="dense-layer", model="mlp", size=16, targets=2))
    assert task.observations.labels is None


def test_an_output_folder_that_cannot_be_is_refused_before_the_attack(tmp_path, capsys):
    occupied = tmp_path / "file"
    occupied.write_text("mine")
    assert cli.main([*FAST, "--steps", "5", "--out", str(occupied / "deeper")]) == 2
    captured = capsys.readouterr()
    assert "is not a folder" in captured.err
    assert "compiling" not in captured.out
    assert occupied.read_text() == "mine"


@pytest.mark.slow
def test_diverged_restarts_are_said_to_have_failed(tmp_path, capsys):
    status = cli.main([*FAST, "--steps", "3", "--tv", "3e38", "--out", str(tmp_path)])
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert status == 0
    assert all(target["failed"] == (target["attack_loss"] is None) for target in summary["targets"])
    if any(target["failed"] for target in summary["targets"]):
        assert "no restart had a finite attack loss" in capsys.readouterr().out


def test_list_shows_one_kind_or_one_thing_or_json(capsys):
    assert cli.main(["list", "label-rules"]) == 0
    assert "llg-star" in (text := capsys.readouterr().out)
    assert "lenet" not in text
    assert cli.main(["list", "attack", "dense-layer"]) == 0
    text = capsys.readouterr().out
    assert "reads" in text
    assert "update" in text
    assert "works where the network begins with a dense layer with bias" in " ".join(text.split())
    assert "fails on batches" in text
    assert "Works:" not in text  # said once
    assert cli.main(["list", "attack", "gias", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert "labels" in told["reads"]
    assert "needs an image generator" in told["abilities"]
    assert told["works"]
    assert told["fails"]
    assert cli.main(["list", "defense", "dp-sgd", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["settings"]["norm"] == 1.0
    assert cli.main(["list", "--json"]) == 0
    kinds = json.loads(capsys.readouterr().out)
    assert {"attacks", "defenses", "models"} <= kinds.keys()
    summaries = [one["summary"] for one in kinds["models"].values()]
    assert len(set(summaries)) == len(summaries)
    assert cli.main(["list", "attack", "spectrl"]) == 2
    assert "unknown attack 'spectrl'; did you mean spectral" in capsys.readouterr().err
    assert cli.main(["list", "weapons"]) == 2
    assert "unknown kind 'weapons'; did you mean" in capsys.readouterr().err
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"jaxinvert {jaxinvert.__version__}\n"


def test_list_names_everything(capsys):
    assert cli.main(["list"]) == 0
    text = capsys.readouterr().out
    assert text.count("\n") < 60
    assert max(map(len, text.splitlines())) < 100
    for name in (
        "inverting-gradients",
        "dense-layer",
        "lenet",
        "resnet20-4",
        "photos",
        "cifar10",
        "cosine",
        "total-variation",
    ):
        assert name in text


def test_unprepared_data_names_the_command_that_prepares_it(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    assert cli.main(["invert", "--data", "mnist", "--out", str(tmp_path / "out")]) == 2
    assert "jaxinvert data prepare mnist" in capsys.readouterr().err


def test_data_prepare_without_the_files_says_what_is_missing(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    assert cli.main(["data", "prepare", "mnist", "--from", str(tmp_path)]) == 2
    assert "train-images-idx3-ubyte.gz" in capsys.readouterr().err
