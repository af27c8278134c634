"""Every experiment runs in seconds with `--smoke`, from its own command line."""

import dataclasses
import importlib
import json
import pkgutil
from typing import NamedTuple

import numpy as np
import pytest

import experiments
from experiments import harness
from jaxinvert import jobs

PARTS = {
    "adversarial",
    "contenders",
    "crafting",
    "federated",
    "foreign",
    "forked_runs",
    "fuzz_entries",
    "fuzz_folders",
    "harness",
    "honest_networks",
    "mutations",
    "peers",
    "published",
    "simulated_audits",
    "tables",
    "trained_text",
}
"""Of experiments, or of several."""
NAMES = sorted({module.name for module in pkgutil.iter_modules(experiments.__path__)} - PARTS)


def test_an_interrupted_training_ends_with_the_same_parameters(tmp_path, monkeypatch):
    """Three epochs at once, and three of which the first attempt only sees two."""
    from experiments import train

    config = train.Config(model="mlp", epochs=3, keep=(0,), batch_size=64, out=tmp_path / "whole")
    whole = train.train(config)
    calls = []

    def interrupted(dataset, config, epoch):
        calls.append(epoch)
        if epoch == 3 and calls.count(3) == 1:
            raise KeyboardInterrupt
        return minibatches(dataset, config, epoch)

    minibatches = train.minibatches
    monkeypatch.setattr(train, "minibatches", interrupted)
    config = dataclasses.replace(config, out=tmp_path / "parts")
    with pytest.raises(KeyboardInterrupt):
        train.train(config)
    assert train.train(config) == whole
    assert calls == [1, 2, 3, 3]
    files = {path.name for path in config.out.iterdir()}
    assert files == {"epoch-0.safetensors", "epoch-3.safetensors", "state.safetensors"}
    assert (tmp_path / "whole" / "epoch-3.safetensors").read_bytes() == (
        config.out / "epoch-3.safetensors"
    ).read_bytes()
    assert whole[-1]["training_loss"] < whole[1]["training_loss"]
    with pytest.raises(SystemExit, match="another setting"):
        train.train(dataclasses.replace(config, batch_size=32))


def test_a_table_goes_on_where_it_stopped(tmp_path, monkeypatch, capsys):
    """Rows in the file are kept; only what is missing or set differently is run."""
    calls = []

    def measure_job(settings):
        calls.append((settings.model.name, settings.search.steps))
        return {"mean_psnr_db": 20.0}

    monkeypatch.setattr(harness, "measure_job", measure_job)
    rows = (
        harness.Row("first", {"model": "lenet", "steps": 9}, {"steps": 3}, 18.0),
        harness.Row("second", {"model": "mlp", "steps": 9}, {"steps": 3}),
        harness.Row("huge", {"model": "resnet50"}, None),
    )

    def run(*arguments):
        file = ("--json", str(tmp_path / "rows.json"))
        harness.run_table("A table", rows, description=None, arguments=(*file, *arguments))
        return json.loads((tmp_path / "rows.json").read_text())["rows"]

    (row,) = run("--rows", "first")
    assert (row["published_db"], row["gap_db"], row["setting"]) == (18.0, 2.0, "model=lenet steps=3")
    assert [row["row"] for row in run()] == ["first", "second"]
    assert calls == [("lenet", 3), ("mlp", 3)]
    assert len(run("--full", "--rows", "second")) == 3
    assert calls[-1] == ("mlp", 9)
    assert all(row["device"] and row["jax"] for row in run())
    with pytest.raises(SystemExit, match=r"no row is named like .*'huge'.*there are .*'first', 'second'"):
        run("--rows", "huge")


class Planned(NamedTuple):
    name: str
    rank: int = 0


def test_rows_are_measured_once_and_kept_in_the_order_of_the_plan(tmp_path):
    """Fields that an older file lacks have their defaults; rows of other settings stay, at the end."""
    file, calls = tmp_path / "rows.json", []

    def measure(row):
        calls.append(row)
        return {**row._asdict(), "found": len(calls)}

    def run(plan, setting="a"):
        harness.run_rows("A table", plan, measure, setting=setting, json_file=file)
        return [(row["name"], row["rank"], row["setting"]) for row in json.loads(file.read_text())["rows"]]

    harness.save(file, "A table", [{"name": "old", "found": 7, "setting": "a"}, {"name": "old", "found": 7}])
    plan = [Planned("new", 2), Planned("old")]
    assert run(plan)[:2] == [("new", 2, "a"), ("old", 0, "a")]
    assert calls == [Planned("new", 2)]
    assert run(plan, "b")[:2] == [("new", 2, "b"), ("old", 0, "b")]
    assert len(run([Planned("old", 1), *plan])) == 6
    assert len(calls) == 4


def test_an_interrupted_row_is_no_row(tmp_path, monkeypatch):
    """An interrupted attack returns the best so far, which must not stand for the whole."""
    execute = jobs.execute

    def interrupted(*arguments):
        return execute(*arguments)._replace(interrupted=True)

    monkeypatch.setattr(jobs, "execute", interrupted)
    file = tmp_path / "rows.json"
    rows = (harness.Row("first", {"attack": "dense-layer", "model": "mlp", "data": "photos", "targets": 1}, {}),)
    with pytest.raises(KeyboardInterrupt):
        harness.run_table("A table", rows, description=None, arguments=("--json", str(file)))
    assert not file.exists()


def test_a_comparison_goes_on_where_it_stopped(tmp_path, monkeypatch):
    """Attacks without searching: the row that is missing is run in the time of the first, and its gain known."""
    from experiments import gias

    runs, found = [], iter([0.0, 0.0, 0.25, 0.25, 0.5, 0.5])

    def search_all(search, key, observations, *, num_steps):
        runs.append(num_steps)
        return np.full((2, 1, 16, 16, 3), next(found)), 1.0

    monkeypatch.setattr(gias, "search_all", search_all)
    monkeypatch.setattr(gias, "seconds_per_step", lambda searches, *_, **__: dict.fromkeys(searches, 3.0))
    file = tmp_path / "rows.json"

    def rows():
        gias.main(["--smoke", "--json", str(file), "--figure", str(tmp_path / "figure.png")])
        return json.loads(file.read_text())["rows"]

    whole = rows()
    assert [row["attack"] for row in whole] == ["GI-z", "pixels, published"]
    assert rows() == whole
    assert len(runs) == 4
    file.write_text(json.dumps({"rows": whole[:1]}))
    first, again = rows()
    assert len(runs) == 6
    gap = np.mean(np.array(first["psnr_db"]) - np.array(again["psnr_db"]))
    assert first["gain_db"] == pytest.approx(gap)
    assert first["gain_db"] != pytest.approx(whole[0]["gain_db"])
    assert (again["seconds_fastest"], again["gain_db"]) == (first["seconds_fastest"], 0.0)
    assert (tmp_path / "figure.png").stat().st_size > 5_000


def test_the_gallery_keeps_its_jobs_and_draws_them(tmp_path, monkeypatch):
    from experiments import gallery

    arguments = ["--attacks", "dense-layer", "--out", str(tmp_path / "jobs"), "--pictures", str(tmp_path)]
    gallery.main(arguments)
    picture = (tmp_path / "dense-layer.png").read_bytes()
    (tmp_path / "dense-layer.png").unlink()
    monkeypatch.setattr(gallery.sweeps, "run", lambda plan, folder: iter(()))
    gallery.main(arguments)
    assert (tmp_path / "dense-layer.png").read_bytes() == picture
    with pytest.raises(SystemExit, match=r"attacks has \['dense'\]; there are \['spectral', "):
        gallery.main(["--attacks", "dense"])


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_smoke(name, tmp_path):
    main = importlib.import_module(f"experiments.{name}").main
    if name == "demo":
        main(["--smoke", "--out", str(tmp_path)])
        assert (tmp_path / "overview.png").stat().st_size > 10_000
        return
    main(["--smoke", "--json", str(tmp_path / "rows.json")])
    content = json.loads((tmp_path / "rows.json").read_text())
    assert content["rows"]
    assert content["device"]
