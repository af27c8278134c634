"""A long search goes on where it was left, to the same result."""

import importlib
import json

import numpy as np
import pytest

from jaxinvert import cli, files, jobs

execution = importlib.import_module("jaxinvert.jobs.execute")  # jobs.execute is its function
CONFIG = jobs.JobConfig.of(model="mlp", size=12, targets=2, restarts=2, steps=30)


class Killed(BaseException):
    """As abrupt as can be in one process."""


@pytest.fixture(scope="module")
def task():
    return jobs.prepare(CONFIG)


@pytest.fixture(scope="module")
def whole(task):
    return jobs.execute(CONFIG, task.program, task.observations)


def left(task, folder, error):
    """Runs until the second report, then leaves."""
    reports = []

    def leave(progress):
        reports.append(progress.step)
        if len(reports) == 2:
            raise error

    return jobs.execute(CONFIG, task.program, task.observations, on_progress=leave, state_folder=folder), reports


def test_an_interrupted_search_goes_on(task, whole, tmp_path):
    interrupted, before = left(task, tmp_path / "state", KeyboardInterrupt)
    assert interrupted.interrupted
    steps = []
    resumed = jobs.execute(
        CONFIG,
        task.program,
        task.observations,
        on_progress=lambda progress: steps.append(progress.step),
        state_folder=tmp_path / "state",
    )
    assert min(steps) > before[-1] > 0
    assert resumed.history["step"].tolist() == [*before, *steps]
    np.testing.assert_array_equal(resumed.reconstructions.inputs, whole.reconstructions.inputs)
    np.testing.assert_array_equal(resumed.history["best_loss"][-1], whole.history["best_loss"][-1])
    assert resumed.seconds_run > interrupted.seconds_run
    again = jobs.execute(CONFIG, task.program, task.observations, state_folder=tmp_path / "state")
    assert len(again.history["step"]) > 0  # the state stays until the result is safe
    jobs.forget_state(tmp_path / "state", CONFIG)
    assert not (tmp_path / "state").exists()


def test_a_search_left_at_its_end_takes_no_step_more(task, whole, tmp_path, monkeypatch):
    monkeypatch.setattr(execution, "_SECONDS_BETWEEN_STATES", 0.0)
    finished = jobs.execute(CONFIG, task.program, task.observations, state_folder=tmp_path)
    again = jobs.execute(CONFIG, task.program, task.observations, state_folder=tmp_path)
    assert again.history["step"][-2:].tolist() == [30, 30]
    np.testing.assert_array_equal(again.reconstructions.inputs, finished.reconstructions.inputs)
    np.testing.assert_array_equal(again.history["best_loss"][-1], whole.history["best_loss"][-1])
    shorter = CONFIG.replace(steps=7)
    kept = next(iter(tmp_path.iterdir()))
    kept.rename(tmp_path / execution._state_name(shorter))
    with pytest.raises(ValueError, match="has done 30 steps, more than num_steps 7"):
        jobs.execute(shorter, task.program, task.observations, state_folder=tmp_path)


def test_a_killed_search_goes_on_from_what_it_kept_last(task, whole, tmp_path, monkeypatch):
    monkeypatch.setattr(execution, "_SECONDS_BETWEEN_STATES", 0.0)
    with pytest.raises(Killed):
        left(task, tmp_path, Killed)
    resumed = jobs.execute(CONFIG, task.program, task.observations, state_folder=tmp_path)
    np.testing.assert_array_equal(resumed.reconstructions.inputs, whole.reconstructions.inputs)


def test_another_job_does_not_go_on_from_it(task, tmp_path):
    left(task, tmp_path, KeyboardInterrupt)
    other = CONFIG.replace(tv=0.5)
    found = jobs.execute(other, task.program, task.observations, state_folder=tmp_path)
    assert found.history["step"][0] == jobs.execute(other, task.program, task.observations).history["step"][0]
    assert len(list(tmp_path.iterdir())) == 1  # the first one's is still there


def test_a_damaged_state_is_one_clear_error(task, tmp_path, capsys):
    left(task, tmp_path / "state", KeyboardInterrupt)
    files = [path for path in (tmp_path / "state").rglob("*") if path.is_file()]
    for path in files:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ValueError, match="delete it to start anew"):
        jobs.execute(CONFIG, task.program, task.observations, state_folder=tmp_path / "state")
    arguments = ["--model", "mlp", "--size", "12", "--targets", "2", "--restarts", "2", "--steps", "30"]
    assert cli.main(["invert", *arguments, "--out", str(tmp_path)]) == 2
    assert "delete it to start anew" in capsys.readouterr().err


def test_the_summary_of_a_resumed_run_is_whole(task, tmp_path):
    left(task, tmp_path / "state", KeyboardInterrupt)
    arguments = ["--model", "mlp", "--size", "12", "--targets", "2", "--restarts", "2", "--steps", "30"]
    assert cli.main(["invert", *arguments, "--out", str(tmp_path)]) == 0
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert (summary["num_steps"], summary["interrupted"]) == (30, False)
    assert files.load_arrays(tmp_path / "reconstructions.npz")["truth"].shape[0] == 2
    assert not (tmp_path / "state").exists()
