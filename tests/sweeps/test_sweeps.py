"""Sweeps: what a file means, what is recorded, and what survives."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest

from jaxinvert import cli, files, jobs, sweeps
from jaxinvert.sweeps import engines, plan, records

FILE = """
model: mlp
size: 12
targets: 1
restarts: 1
steps: 3
batch: 4
grid:
  tv: [1e-3, 1e-2]
  lr: [0.03, 0.1]
  seed: [0, 1]
"""


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("sweep") / "sweep.yaml"
    path.write_text(FILE)
    return path


@pytest.fixture(scope="module")
def whole(file, tmp_path_factory):
    """An uninterrupted run."""
    folder = tmp_path_factory.mktemp("whole")
    return folder, list(sweeps.run(sweeps.read_plan(file), folder))


def recorded(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (folder / "records").iterdir()}


def test_a_file_is_a_grid_of_lists_of_grids():
    block = {
        "steps": 3,
        "grid": {"seed": [0, 1]},
        "list": [{"attack": "dlg"}, {"attack": "idlg", "grid": {"targets": [1, 2]}}],
    }
    jobs = list(plan.expand(block))
    assert len(jobs) == 2 * (1 + 2)
    assert jobs[0] == {"steps": 3, "seed": 0, "attack": "dlg"}
    assert jobs[-1] == {"steps": 3, "seed": 1, "attack": "idlg", "targets": 2}


@pytest.mark.parametrize(("seeds", "refused"), [([0, 1, 2], False), ([1, 2], True), ([5], True)])
def test_a_sweep_may_grow_but_not_leave_records_behind(seeds, refused, tmp_path, monkeypatch):
    def planned(seeds):
        return sweeps.make_plan([{"model": "mlp", "seed": seed} for seed in seeds])

    records.write_plan_file(tmp_path, planned([0, 1]))
    monkeypatch.setattr(records, "recorded", lambda folder, names: records.Recorded({*names}, {}))
    if not refused:
        return records.refuse_another_sweep(tmp_path, planned(seeds))
    with pytest.raises(
        ValueError, match=r"holds \d records of a sweep of jobs that are not in this .* another folder"
    ):
        records.refuse_another_sweep(tmp_path, planned(seeds))


def test_the_example_is_a_sweep():
    planned = sweeps.read_plan(Path(__file__).parents[2] / "docs" / "sweep.yaml")
    assert (len(planned.jobs), len(planned.batches_by_program)) == (21, 2)


def test_jobs_that_differ_in_numbers_share_a_program():
    jobs = [{"model": m, "tv": tv, "steps": steps} for m in ("mlp", "lenet") for tv in (0, 1e-3) for steps in (3, 4)]
    planned = sweeps.make_plan([*jobs, jobs[0]])
    assert len(planned.jobs) == 8
    assert len(planned.batches_by_program) == 2
    assert planned.varied == ("model", "steps", "settings.tv")
    assert sorted(job.name for batch in planned.batches for job in batch.jobs) == sorted(
        job.name for job in planned.jobs
    )
    assert all(len({job.config.search.steps for job in batch.jobs}) == 1 for batch in planned.batches)


def test_a_job_is_named_by_all_that_determines_it(tmp_path):
    config = jobs.JobConfig()
    same = config.replace(tv=config.attacker.hyperparameters["tv"])
    assert jobs.job_name(config) == jobs.job_name(same)
    others = [config.replace(seed=1), config.replace(tv=0.5)]
    data = tmp_path / "data.npz"
    for content in (b"one", b"two"):
        data.write_bytes(content)
        others.append(config.replace(data=str(data)))
        others.append(jobs.job_name(others.pop()))
    names = [item if isinstance(item, str) else jobs.job_name(item) for item in [config, *others]]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- 1", "expected fields"),
        ("model: [", "not readable YAML"),
        ("!!python/object/apply:os.system ['true']", "not readable YAML"),
        ("modell: lenet", "no field 'modell'"),
        ("steps: many", "steps is 'many', expected a whole number"),
        ("steps: true", "steps is True"),
        ("attack: [dlg]", r"attack is \['dlg'\]"),
        ("grid: {tv: 1}", "expected lists of values"),
        ("tv: 1\ngrid: {tv: [1]}", "given twice"),
        ("grid: {steps: [3, -1]}", "job 1 .*steps is -1"),
        ("batch: 0", "batch is 0"),
        ("list: []", "list is"),
        ("checkpoint: nowhere.safetensors", "cannot read nowhere.safetensors"),
        ("grid: {seed: &many [1, 2], steps: *many}", "an alias"),
        (f"grid: {{seed: {[*range(40)]}, targets: {[*range(1, 40)]}}}", "it has 1,560 jobs, more than 1,000"),
        ('steps: !!int ""', "not readable YAML"),
        ("tv: 1" + 400 * "0", "tv is 1000"),
        ("seed: 1" + 400 * "0", "seed is 1000"),
        ("data: /dev/zero", "/dev/zero is neither a file nor a folder"),
        ("date: 2026-13-45", "not readable YAML"),
        (60 * "{list: [" + 60 * "]}", "nested deeper"),
        (14 * "{list: [" + 14 * "]}", "list is"),
    ],
)
def test_a_file_that_cannot_be_is_refused(tmp_path, monkeypatch, text, message):
    monkeypatch.setattr(plan, "MAX_JOBS", 1000)
    file = tmp_path / "sweep.yaml"
    file.write_text(text)
    with pytest.raises(ValueError, match=message):
        sweeps.read_plan(file)


def test_records_hold_what_a_single_job_finds(file, whole):
    """Side by side in one program or alone: the same starts, the same first losses, the same private images."""
    folder, reports = whole
    assert [report.done for report in reports] == [0, 4, 8]
    planned = sweeps.read_plan(file)
    for one in (planned.jobs[0], planned.jobs[-1]):
        record = sweeps.read_record(folder, one.name)
        task = jobs.prepare(one.config)
        alone = jobs.execute(one.config, task.program, task.observations)
        outcome = jobs.measure(one.config, task, alone)
        np.testing.assert_array_equal(record.arrays["truth"], outcome.truth)
        np.testing.assert_allclose(record.arrays["history_best_loss"][-1], alone.history["best_loss"][-1], rtol=1e-3)
        assert record.config["seed"] == one.config.seed
        assert record.summary["jobs_in_program"] == 4
        assert (record.summary["num_devices"], record.summary["chunk_size"]) == (1, 4)
    losses = [sweeps.read_record(folder, one.name).summary["targets"][0]["attack_loss"] for one in planned.jobs]
    assert len(set(losses)) == len(losses)


def test_one_program_is_traced_for_all(whole):
    folder, _ = whole
    log = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert [entry["programs_traced"] for entry in log] == [1, 1]


def test_the_summary_is_what_the_records_say(whole):
    folder, _ = whole
    rows = sweeps.summarize(folder)
    table = pyarrow.parquet.read_table(folder / "summary.parquet").to_pylist()
    assert table == rows
    assert {row["settings.tv"] for row in rows} == {1e-3, 1e-2}
    by_job = {row["job"]: row["psnr_db"] for row in rows}
    for record in sweeps.records_of(folder):
        mse = np.mean((record.arrays["truth"] - record.arrays["reconstruction"]) ** 2)
        assert by_job[record.name] == pytest.approx(-10 * np.log10(mse), abs=1e-3)


def test_damage_is_found_and_repaired_bit_for_bit(file, whole, tmp_path):
    _, folder = whole[0], tmp_path
    planned = sweeps.read_plan(file)
    expected = recorded(whole[0])
    (folder / "records").mkdir()
    names = [one.name for one in planned.jobs]
    for name, content in expected.items():
        (folder / "records" / name).write_bytes(content)
    (folder / "records" / f"{names[0]}.npz").write_bytes(expected[f"{names[0]}.npz"][:-9])  # cut short
    (folder / "records" / f"{names[1]}.json").unlink()
    damaged = expected[f"{names[4]}.json"].replace(b'"ssim": 0', b'"ssim": 1', 1)
    assert damaged != expected[f"{names[4]}.json"]
    (folder / "records" / f"{names[4]}.json").write_bytes(damaged)
    (folder / "records" / ".jaxinvert-0123456789abcdef.partial").write_text("a write that was cut short")
    (folder / "plan.json").write_text("{")
    for name in (names[0], names[4]):
        with pytest.raises(ValueError, match=name):
            sweeps.read_record(folder, name)
    with pytest.warns(files.KeptFileWarning) as caught:
        reports = list(sweeps.run(planned, folder))
    said = [str(one.message) for one in caught if issubclass(one.category, files.KeptFileWarning)]
    assert len(said) == 2
    assert "plan.json is damaged" in said[0]
    assert any(name in said[1] for name in (names[0], names[4]))
    assert said[1].endswith("(and 1 more): computed again")
    assert not list(folder.glob("records/.*"))
    assert reports[0].done == 5
    assert reports[-1].done == 8
    assert recorded(folder) == expected


def test_two_records_that_were_swapped_are_computed_again(file, whole, tmp_path):
    planned, expected = sweeps.read_plan(file), recorded(whole[0])
    (tmp_path / "records").mkdir()
    first, second = planned.jobs[0].name, planned.jobs[1].name
    swapped = {first: second, second: first}
    for name, content in expected.items():
        stem, dot, kind = name.partition(".")
        (tmp_path / "records" / f"{swapped.get(stem, stem)}{dot}{kind}").write_bytes(content)
    with pytest.warns(files.KeptFileWarning, match="computed again"):
        reports = list(sweeps.run(planned, tmp_path))
    assert [reports[0].done, reports[-1].done] == [6, 8]
    assert recorded(tmp_path) == expected


def test_a_report_says_which_records_it_leaves_out(file, whole, tmp_path, capsys):
    shutil.copytree(whole[0], tmp_path / "out")
    name = sweeps.read_plan(file).jobs[2].name
    (tmp_path / "out" / "records" / f"{name}.npz").write_bytes(b"PK")
    assert cli.main(["report", str(tmp_path / "out")]) == 0
    captured = capsys.readouterr()
    assert captured.err == f"warning: the arrays of record {name} are not those that were written: left out\n"


@pytest.mark.parametrize(
    "jobs", [{"../../x": {}}, {"0" * 24: []}, {"0" * 24: {"other": 1}}, {"0" * 24: {"tv": 1}, "a": {"tv": 1}}]
)
def test_a_forged_plan_is_refused(tmp_path, capsys, jobs):
    (tmp_path / "plan.json").write_text(json.dumps({"varied": ["tv"], "jobs": jobs}))
    assert cli.main(["report", str(tmp_path)]) == 2
    assert "plan.json is damaged" in capsys.readouterr().err


@pytest.mark.slow
def test_a_failing_job_stops_no_other(file, whole, tmp_path, monkeypatch):
    planned = sweeps.read_plan(file)
    prepare, broken = jobs.prepare, planned.jobs[1].config

    def failing(config, setup=None):
        if config == broken:
            raise ValueError("no such thing")
        return prepare(config, setup)

    monkeypatch.setattr(engines.jobs, "prepare", failing)
    *_, last = sweeps.run(planned, tmp_path)
    assert (last.done, last.failed) == (7, 1)
    (failure,) = sweeps.failures_of(tmp_path)
    assert failure["name"] == planned.jobs[1].name
    assert "no such thing" in failure["traceback"]
    monkeypatch.undo()
    *_, last = sweeps.run(planned, tmp_path)
    assert (last.done, last.failed) == (8, 0)
    assert sweeps.failures_of(tmp_path) == []
    assert recorded(tmp_path) == recorded(whole[0])


@pytest.mark.slow
def test_a_full_disk_loses_nothing_recorded(file, whole, tmp_path, monkeypatch):
    planned = sweeps.read_plan(file)
    save = records.files.save_json
    written = []

    def full(path, content):
        if path.parent.name == "records":
            if len(written) == 2:
                raise OSError(28, "No space left on device")
            written.append(path)
        save(path, content)

    monkeypatch.setattr(records.files, "save_json", full)
    with pytest.raises(OSError, match="No space left"):
        list(sweeps.run(planned, tmp_path))
    monkeypatch.undo()
    assert next(sweeps.run(planned, tmp_path)).done == 2
    list(sweeps.run(planned, tmp_path))
    assert recorded(tmp_path) == recorded(whole[0])


def test_a_sweep_is_computed_once_at_a_time(file, whole):
    running = sweeps.run(sweeps.read_plan(file), whole[0])
    next(running)
    with pytest.raises(ValueError, match="another process"):
        next(sweeps.run(sweeps.read_plan(file), whole[0]))
    running.close()
    assert next(sweeps.run(sweeps.read_plan(file), whole[0])).done == 8


def test_other_files_in_the_folder_stay(file, whole):
    mine = whole[0] / "records" / ".settings.json.bak"
    mine.write_text("mine")
    assert next(sweeps.run(sweeps.read_plan(file), whole[0])).done == 8
    assert mine.exists()
    mine.unlink()


@pytest.mark.parametrize("content", [b"", b"[1]", b"[" * 100_000, b"\xff\xfe", b'{"varied": 1, "jobs": 2}'])
def test_damaged_json_is_one_clear_error(tmp_path, capsys, content):
    (tmp_path / "failures").mkdir()
    (tmp_path / "failures" / "one.json").write_bytes(content)
    assert sweeps.failures_of(tmp_path) == []
    (tmp_path / "plan.json").write_bytes(content)
    assert cli.main(["report", str(tmp_path)]) == 2
    assert "plan.json is damaged" in capsys.readouterr().err


def test_kill_and_resume(file, whole, tmp_path):
    """SIGKILL as soon as the first record is there: what is recorded stays, the same command goes on."""
    out = tmp_path / "out"
    command = [sys.executable, "-m", "jaxinvert", "sweep", str(file), "--out", str(out)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT) as process:
        deadline = time.monotonic() + 120
        while not list(out.glob("records/*.json")) and time.monotonic() < deadline:
            time.sleep(0.002)
        assert process.poll() is None
        os.kill(process.pid, signal.SIGKILL)
    first, *_ = sweeps.run(sweeps.read_plan(file), out)
    assert 0 < first.done < 8
    assert recorded(out) == recorded(whole[0])


def test_the_commands(file, tmp_path, capsys):
    out = tmp_path / "out"
    assert cli.main(["sweep", str(file), "--out", str(out)]) == 0
    assert "8 of 8 jobs recorded, 0 failed" in capsys.readouterr().out
    assert (out / "summary.parquet").exists()
    assert cli.main(["report", str(out)]) == 0
    assert cli.main(["report", str(tmp_path)]) == 2
    assert "holds no sweep" in capsys.readouterr().err


def test_a_dry_run_measures_and_records_nothing(file, tmp_path, capsys):
    out = tmp_path / "out"
    assert cli.main(["sweep", str(file), "--out", str(out), "--dry-run"]) == 0
    text = capsys.readouterr().out
    assert "1 programs to compile" in text
    assert "nothing was recorded" in text
    assert not out.exists()


def test_ray_is_an_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ValueError, match="needs Ray"):
        sweeps.on_ray()


def test_a_grid_is_counted_before_it_is_built(tmp_path):
    """Ten million jobs in two hundred bytes; also through the blocks of a list."""
    axes = ", ".join(f"{name}: {[*range(1, 11)]}" for name in ("seed", "steps", "targets", "tv"))
    inner = ", ".join(f"{name}: {[*range(1, 11)]}" for name in ("restarts", "num_examples", "lr"))
    block = {"grid": {"seed": [0, 1]}, "list": [{"grid": {"tv": [1, 2, 3]}}, {}]}
    assert plan.count_jobs(block) == len([*plan.expand(block)]) == 8
    begin = time.monotonic()
    for text in (f"grid: {{{axes}, {inner}}}", f"grid: {{{axes}}}\nlist: [{{grid: {{{inner}}}}}, {{}}]"):
        (tmp_path / "x.yaml").write_text(text)
        with pytest.raises(ValueError, match=r"it has 10,0\d0,000 jobs, more than 100,000"):
            sweeps.read_plan(tmp_path / "x.yaml")
    assert time.monotonic() - begin < 2


def test_pipes_are_not_hashed(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="pipe is neither a file nor a folder"):
        jobs.job_name(jobs.JobConfig().replace(data=str(tmp_path / "pipe")))
    folder = tmp_path / "data"
    folder.mkdir()
    os.mkfifo(folder / "pipe")
    assert len(jobs.job_name(jobs.JobConfig().replace(data=str(folder)))) == 24
