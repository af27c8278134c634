"""A long search goes on where it was left, to the same result."""

import importlib
import json

import numpy as np
import pytest

from jaxinvert import cli, files, jobs
from jaxinvert.jobs import state
from jaxinvert.search import Resumable

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
    (kept,) = tmp_path.iterdir()
    shorter = CONFIG.replace(steps=7)
    kept.rename(kept.with_name(f"{execution._state_name(shorter)}.npz"))
    with pytest.warns(files.KeptFileWarning, match="starts anew: .*checksum differs"):
        found = jobs.execute(shorter, task.program, task.observations, state_folder=tmp_path)
    assert found.num_steps == 7


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


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["bit", "cut", "empty", "text", "no checksum"])
def test_a_damaged_state_starts_anew_and_says_so(task, whole, tmp_path, capsys, damage):
    left(task, tmp_path / "state", KeyboardInterrupt)
    (file,) = (tmp_path / "state").iterdir()
    content = bytearray(file.read_bytes())
    if damage == "bit":  # within the array of lanes: the end of the archive is its directory
        content[len(content) // 3] ^= 8
    elif damage == "no checksum":
        arrays = files.load_arrays(file)
        del arrays["sha256"]
        files.save_arrays(file, arrays)
        content = file.read_bytes()
    file.write_bytes({"cut": content[: len(content) // 2], "empty": b"", "text": b"hello"}.get(damage, content))
    with pytest.warns(files.KeptFileWarning, match=f"starts anew: .*{file.name}"):
        again = jobs.execute(CONFIG, task.program, task.observations, state_folder=tmp_path / "state")
    np.testing.assert_array_equal(again.reconstructions.inputs, whole.reconstructions.inputs)
    if damage == "bit":
        arguments = ["--model", "mlp", "--size", "12", "--targets", "2", "--restarts", "2", "--steps", "30"]
        assert cli.main(["invert", *arguments, "--out", str(tmp_path)]) == 0
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("warning: the search starts anew")
        assert not (tmp_path / "state").exists()


@pytest.mark.parametrize(
    "history",
    [
        {"steps": np.array([[1], [3]])},
        {"steps": np.array([1.0, 3.0])},
        {"best_loss": np.ones(2, np.float32)},
        {"best_loss": np.full((2, 2, 1), "x")},
        {"best_loss": np.ones((3, 2, 1), np.float32)},
    ],
)
def test_a_forged_history_is_refused(history, tmp_path):
    """Checksums are no proof of origin."""
    place, lanes = state.Place(tmp_path, "name"), (np.ones(3, np.float32),)
    content = {"steps": np.array([1, 3]), "best_loss": np.ones((2, 2, 1), np.float32)}
    state.keep(place, state.Kept(Resumable(3, 1.5, lanes), **content))
    assert state.find(place, lanes).resumable.step == 3
    state.keep(place, state.Kept(Resumable(3, 1.5, lanes), **content | history))
    with pytest.warns(files.KeptFileWarning, match="starts anew: .* has a history of (another form|other steps)"):
        assert state.find(place, lanes) is None


def test_states_of_two_searches_of_a_job_are_told_apart(task, tmp_path):
    for role in ("attack", "random update"):

        def leave(progress):
            raise KeyboardInterrupt

        jobs.execute(
            CONFIG,
            task.program,
            task.observations,
            on_progress=leave,
            state_folder=tmp_path / role,
            state_role=role,
        )
    (mine,), (other,) = ((tmp_path / role).iterdir() for role in ("attack", "random update"))
    assert mine.name == other.name
    other.replace(mine)
    with pytest.warns(files.KeptFileWarning, match="starts anew"):
        jobs.execute(CONFIG, task.program, task.observations, state_folder=tmp_path / "attack", state_role="attack")


def test_a_full_disk_ends_no_search(task, whole, tmp_path, monkeypatch):
    """The best so far is returned, and the warning names the file."""
    monkeypatch.setattr(execution, "_SECONDS_BETWEEN_STATES", 0.0)

    def full(path, write):
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(files, "write_atomically", full)
    with pytest.warns(files.KeptFileWarning, match=rf"not saved: .*No space left.*{tmp_path.name}/state/\w+\.npz"):
        found = jobs.execute(CONFIG, task.program, task.observations, state_folder=tmp_path / "state")
    np.testing.assert_array_equal(found.reconstructions.inputs, whole.reconstructions.inputs)
    with pytest.warns(files.KeptFileWarning, match="not saved"):
        interrupted, steps = left(task, tmp_path / "state", KeyboardInterrupt)
    assert (interrupted.interrupted, interrupted.num_steps) == (True, steps[-1])


def test_the_summary_of_a_resumed_run_is_whole(task, tmp_path):
    left(task, tmp_path / "state", KeyboardInterrupt)
    arguments = ["--model", "mlp", "--size", "12", "--targets", "2", "--restarts", "2", "--steps", "30"]
    assert cli.main(["invert", *arguments, "--out", str(tmp_path)]) == 0
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert (summary["num_steps"], summary["interrupted"]) == (30, False)
    assert files.load_arrays(tmp_path / "reconstructions.npz")["truth"].shape[0] == 2
    assert not (tmp_path / "state").exists()
