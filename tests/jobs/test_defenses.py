"""Jobs of defended clients: what reaches the server, who may adapt, and what is compiled once."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxinvert import cli, jobs, sweeps

SMALL = jobs.JobConfig.of(model="mlp", size=12, targets=2, restarts=1, steps=3)
TOP_K = SMALL.replace(defense="top-k", defense_settings={"keep": 0.1})


def share_sent(tree):
    """The share of non-zero entries."""
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]
    return sum(np.count_nonzero(leaf) for leaf in leaves) / sum(leaf.size for leaf in leaves)


def test_the_command_line_defends_and_adapts(tmp_path):
    flags = ["--model", "mlp", "--size", "12", "--targets", "2", "--restarts", "1", "--steps", "3"]
    defense = ["--defense", "top-k", "--defense-settings", "keep", "0.1", "--adaptive"]
    assert cli.main(["invert", *flags, *defense, "--out", str(tmp_path)]) == 0
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["config"]["defense_settings"] == {"top-k.keep": 0.1}
    assert "the parameters of the client's defense" in summary["assumptions"]["known"]
    client = "defense top-k (top-k.keep 0.1), to which the attacker adapts: matches the sent entries"
    assert client in summary["assumptions"]["client"]
    assert client in (tmp_path / "report.html").read_text()


def test_every_round_is_defended_with_its_own_draw():
    rounds = SMALL.replace(rounds=2, defense="top-k+gaussian", defense_settings={"keep": 0.1, "scale": 1e-2})
    seen = jobs.prepare(rounds).observations
    assert set(seen.defense) == {"top-k.keep", "gaussian.scale"}
    undefended = jobs.prepare(rounds.replace(defense="top-k", defense_settings={"keep": 0.1})).observations
    assert share_sent(undefended.update) == pytest.approx(0.1, abs=1e-3)
    assert share_sent(undefended.earlier_updates) == pytest.approx(0.1, abs=1e-3)
    kernel, sparse = (one.earlier_updates["params"]["dense_0"]["kernel"][:, 0] for one in (seen, undefended))
    noise = np.asarray(kernel - sparse).reshape(2, -1)
    assert np.std(noise) == pytest.approx(1e-2, rel=0.02)
    assert abs(np.corrcoef(noise)[0, 1]) < 0.05
    last = np.asarray(seen.update["params"]["dense_0"]["kernel"]).reshape(2, -1)
    dropped = np.asarray(undefended.update["params"]["dense_0"]["kernel"]).reshape(2, -1) == 0
    both = dropped[0] & (np.asarray(sparse[0]).ravel() == 0)
    assert abs(np.corrcoef(last[0][both], noise[0][both])[0, 1]) < 0.05


def test_under_secure_aggregation_every_client_defends_its_own_update():
    """Of three clients' noise and signs the server sees the mean: levels of thirds, noise smaller by sqrt 3."""
    aggregated = SMALL.replace(aggregate=3, defense="sign")
    sent = np.asarray(jax.tree.leaves(jobs.prepare(aggregated).observations.update)[0])
    np.testing.assert_allclose(3 * sent, np.round(3 * sent), atol=1e-5)
    noisy = jobs.prepare(aggregated.replace(defense="gaussian", defense_settings={"scale": 0.3})).observations
    plain = jobs.prepare(aggregated.replace(defense="none")).observations
    noise = noisy.update["params"]["dense_0"]["kernel"] - plain.update["params"]["dense_0"]["kernel"]
    rows = np.asarray(noise).reshape(2, -1)
    assert np.std(rows) == pytest.approx(0.3 / np.sqrt(3), rel=0.02)
    assert abs(np.corrcoef(rows)[0, 1]) < 0.02


def test_defenses_that_take_part_in_the_training_reach_local_steps():
    """OUTPOST that never gets rare zeroes 80 % of a tensor's entries in one step; fewer are zero in both of two."""
    sure = {"phi": 1e-6, "decay": 1e-9}
    shares = []
    for changes in ({}, {"client": "fedavg", "local_epochs": 2, "local_lr": 1.0}):
        config = SMALL.replace(model="mlp-32", defense="outpost", defense_settings=sure, **changes)
        kernel = np.asarray(jobs.prepare(config).observations.update["params"]["dense_0"]["kernel"])
        shares.append(np.mean(kernel == 0))
    assert shares[0] == pytest.approx(0.8, abs=0.01)
    assert 0.1 < shares[1] < 0.6


@pytest.mark.slow
def test_a_bottleneck_is_a_part_of_the_network_that_is_attacked():
    config = SMALL.replace(defense="precode", adaptive=True)
    task = jobs.prepare(config)
    layers, undefended = task.observations.params["params"], jobs.prepare(SMALL).observations.params["params"]
    assert set(layers) == {*undefended, "bottleneck"}
    assert jax.tree.all(jax.tree.map(np.array_equal, {name: layers[name] for name in undefended}, undefended))
    for adaptive in (False, True):
        asked = config.replace(adaptive=adaptive)
        execution = jobs.execute(asked, jobs.Program(asked, task.model), task.observations)
        assert np.all(np.isfinite(execution.reconstructions.attack_loss))


@pytest.mark.slow
def test_strengths_share_one_program_and_each_has_its_own_effect():
    configs = [TOP_K.replace(adaptive=True, defense_settings={"keep": keep}) for keep in (0.1, 0.3)]
    assert jobs.compiled_form(configs[0]) == jobs.compiled_form(configs[1])
    assert jobs.compiled_form(configs[0]) != jobs.compiled_form(TOP_K)
    setup = jobs.set_up(configs[0])
    tasks = [jobs.prepare(config, setup) for config in configs]
    for task, keep in zip(tasks, (0.1, 0.3)):
        assert share_sent(task.observations.update) == pytest.approx(keep, abs=1e-3)
    noisy = [c.replace(defense="gaussian", defense_settings={"scale": s}) for c, s in zip(configs, (1e-3, 1e-1))]
    setup = jobs.set_up(noisy[0])
    tasks = [jobs.prepare(config, setup) for config in noisy]
    seen = [task.observations for task in tasks]
    together = jobs.execute_jobs(noisy, setup.program, seen)
    alone = [jobs.execute(config, setup.program, one) for config, one in zip(noisy, seen)]
    for one, other in zip(together, alone):
        found, expected = one.reconstructions.attack_loss, other.reconstructions.attack_loss
        np.testing.assert_allclose(found, expected, rtol=1e-3)
    assert setup.program.num_traces == 2  # side by side, and alone


@pytest.mark.slow
def test_a_sweep_over_defenses_and_attackers(tmp_path):
    file = tmp_path / "sweep.yaml"
    file.write_text(
        "{model: mlp, size: 12, targets: 1, restarts: 1, steps: 2, list: ["
        "{defense: sign}, "
        "{defense: top-k, grid: {adaptive: [false, true], defense_settings: [{keep: 0.1}, {keep: 0.5}]}}]}"
    )
    plan = sweeps.read_plan(file)
    assert plan.varied == ("defense", "adaptive", "defense.top-k.keep")
    assert len(plan.jobs) == 5
    assert len(plan.batches_by_program) == 3
    *_, finished = sweeps.run(plan, tmp_path / "out", engine=sweeps.in_process(lambda batch, progress: None))
    assert (finished.done, finished.failed) == (5, 0)


def test_the_name_of_a_job_follows_its_defense():
    names = [
        jobs.job_name(config)
        for config in (
            SMALL,
            TOP_K,
            TOP_K.replace(adaptive=True),
            TOP_K.replace(defense_settings={"keep": 0.2}),
            TOP_K.replace(defense="top-k-per-tensor"),
        )
    ]
    assert len(set(names)) == 5
    assert jobs.job_name(TOP_K.replace(defense_settings={"top-k.keep": 0.1})) == names[1]
    assert jobs.job_name(TOP_K.replace(defense_settings={})) == names[1]  # its default


def test_an_attacker_who_does_not_know_the_defense_cannot_adapt():
    blind = TOP_K.replace(threat_model="B", attack="general-deep-leakage", adaptive=True)
    with pytest.raises(ValueError, match=r"withholds: .*defense \(the parameters of the client's defense\)"):
        jobs.prepare(blind)
    task = jobs.prepare(TOP_K.replace(threat_model="C", adaptive=True))
    withheld = task.observations._replace(defense=None)
    with pytest.raises(ValueError, match=r"adaptive inverting-gradients needs observation\.defense"):
        jobs.execute(TOP_K.replace(adaptive=True), task.program, withheld)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"adaptive": True}, "adaptive is True, but there is no defense to adapt to"),
        ({"defense": "topk"}, "unknown defense 'topk'; known are none, clip"),
        ({"defense_settings": {"keep": 0.5}}, "defense setting 'keep' of 'none' is unknown"),
        (
            {"defense": "mixup", "num_examples": 2, "adaptive": True},
            "no adaptive attacker is known for defense 'mixup'",
        ),
        ({"defense": "mixup"}, "'mixup' has no effect with num_examples 1, expected at least 2"),
        ({"defense": "precode", "checkpoint": Path("x")}, "'precode' adds layers for which x has no parameters"),
        (
            {"defense": "clip", "adaptive": True, "attack": "dlg"},
            "'dlg' does not adapt to defenses; fedleak, general-deep-leakage, gias, .*, auto do",
        ),
        ({"defense": "clip", "aggregate": 2, "adaptive": True}, "for the mean of 2 defended updates"),
        ({"defense": "dp-sgd", "client": "fedavg"}, "'dp-sgd' is defined for one gradient: it needs client='fedsgd'"),
        ({"defense": "soteria", "batch_norm": "train"}, "'soteria' processes single examples"),
    ],
)
def test_what_cannot_be_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        SMALL.replace(**changes)


def test_the_list_names_defenses_and_counters(capsys):
    assert cli.main(["list", "defenses"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "percentile-privacy" in text
    assert "adaptive attacker: matches only the sent entries" in text
