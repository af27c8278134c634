"""Lanes on several devices and in several processes: the same draws and losses, whole results, no lane lost."""

import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxinvert import files, jobs, search
from jaxinvert.attacks import objectives
from jaxinvert.parallel import devices
from jaxinvert.types import Batch

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
TIMEOUT = 300
CASES = ("walk", "signed", "smooth")


def run_together(commands, *, num_devices):
    """Runs Python processes side by side, each with so many devices; none outlives the call."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={num_devices}".strip()
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags, "PYTHONPATH": path}
    with contextlib.ExitStack() as stack:
        logs = [stack.enter_context(tempfile.TemporaryFile("w+")) for _ in commands]
        children = []
        try:
            for command, log in zip(commands, logs, strict=True):
                line = [sys.executable, "-m", *command]
                children.append(subprocess.Popen(line, env=environment, stdout=log, stderr=subprocess.STDOUT))
            statuses = [child.wait(timeout=TIMEOUT) for child in children]
        except subprocess.TimeoutExpired:
            statuses = "some still run"
        finally:
            for child in children:
                child.kill()
                child.wait()
        printed = []
        for log in logs:
            log.seek(0)
            printed.append(log.read()[-4000:])
    assert statuses == [0] * len(commands), "\n".join(printed)


def free_port():
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """All searches on one and on four devices, in one process."""
    folder = tmp_path_factory.mktemp("devices")
    run_together([["tests.parallel.spread", str(folder)]], num_devices=4)
    return np.load(folder / "0.npz")


@pytest.fixture(scope="module")
def found_by_two(tmp_path_factory):
    """Searches on two devices of each of two processes: what either found."""
    folder, port = tmp_path_factory.mktemp("processes"), str(free_port())
    run_together([["tests.parallel.spread", str(folder), port, process, "2"] for process in "01"], num_devices=2)
    return [np.load(folder / f"{process}.npz") for process in "01"]


def test_lanes_are_split_over_all_devices_and_side_by_side_on_each(found):
    for case in CASES:
        assert [int(found[f"{plan}/{case}/start/parts"]) for plan in ("one", "all")] == [1, 4]
        assert [int(found[f"{plan}/{case}/chunk_size"]) for plan in ("one", "all")] == [9, 3]  # of 9, of 12 / 4
        assert found[f"all/{case}/num_traces"] == 1


def test_starts_and_steps_draw_the_same_bits(found):
    for when in ("start", "end"):
        one, spread = (found[f"{plan}/walk/{when}/inputs"] for plan in ("one", "all"))
        assert one.shape == (9, 2)
        assert len(np.unique(one)) == one.size
        np.testing.assert_array_equal(spread, one)
    assert not np.array_equal(found["one/walk/start/inputs"], found["one/walk/end/inputs"])


@pytest.mark.parametrize("case", ["signed", "smooth"])
def test_every_first_loss_is_that_of_one_device(found, case):
    one, spread = (found[f"{plan}/{case}/start/best_loss"] for plan in ("one", "all"))
    assert spread.shape == (3, 3)
    assert len(np.unique(spread)) == 9
    np.testing.assert_allclose(spread, one, rtol=1e-5)
    np.testing.assert_array_equal(found[f"all/{case}/start/restart_losses"], spread)


def test_shapes_do_not_depend_on_devices(found):
    for name in found:
        if name.startswith("one/"):
            assert found[name].shape == found[name.replace("one/", "all/", 1)].shape, name


@pytest.mark.parametrize("case", CASES)
def test_the_same_plan_gives_the_same_bits(found, case):
    for what in ("inputs", "best_loss"):
        np.testing.assert_array_equal(found[f"all/{case}/end/{what}"], found[f"all/{case}/again/{what}"])


def test_a_smooth_attack_is_as_good_on_four_devices(found):
    """Restart by restart within a tenth, though the search has lowered the loss a hundredfold."""
    one, spread = (found[f"{plan}/smooth/end/best_loss"] for plan in ("one", "all"))
    assert np.all(one < 0.01 * found["one/smooth/start/best_loss"])
    np.testing.assert_allclose(spread, one, rtol=0.1)


def test_both_processes_have_all_results_of_the_first_ones_key(found, found_by_two):
    first, second = found_by_two
    assert first.files == second.files
    for name in first.files:
        np.testing.assert_array_equal(first[name], second[name])
    assert first["all/smooth/start/parts"] == 4
    for when in ("start", "end"):
        np.testing.assert_array_equal(first[f"all/walk/{when}/inputs"], found[f"one/walk/{when}/inputs"])
    np.testing.assert_allclose(first["all/smooth/start/best_loss"], found["one/smooth/start/best_loss"], rtol=1e-5)
    np.testing.assert_array_equal(first["all/smooth/end/inputs"], first["all/smooth/again/inputs"])


def test_processes_of_different_speed_report_at_the_same_steps(found_by_two):
    first, second = (list(arrays["steps"]) for arrays in found_by_two)
    assert first == second
    assert first[-1] == 200
    assert len(first) > 2


def test_the_command_line_spreads_a_network_with_convolutions(tmp_path):
    """Of the starts, one to a device: every loss is that of the images in the file."""
    flags = ["--model", "lenet", "--size", "12", "--targets", "2", "--restarts", "1", "--steps", "0", "--tv", "0"]
    run_together([["jaxinvert", "invert", *flags, "--devices", "2", "--out", str(tmp_path)]], num_devices=2)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert (summary["num_devices"], summary["chunk_size"]) == (2, 1)
    config = jobs.JobConfig.of(model="lenet", size=12, targets=2)
    program, observations, truth, *_ = jobs.prepare(config)
    client = jax.jit(jobs.deployment_of(config, program.model).simulated_update())
    images = files.load_arrays(tmp_path / "reconstructions.npz")["reconstruction"]
    for t in range(2):
        simulated = client(observations.params, Batch(jnp.asarray(images[t : t + 1]), truth.labels[t]))
        expected = objectives.cosine(simulated, jax.tree.map(lambda leaf, t=t: leaf[t], observations.update))
        assert summary["targets"][t]["attack_loss"] == pytest.approx(float(expected), rel=1e-4)


def test_more_devices_than_there_are_is_one_clear_error():
    config = jobs.JobConfig.of(model="mlp", size=12, targets=1, steps=1, devices=4096)
    task = jobs.prepare(config)
    with pytest.raises(ValueError, match=r"^devices is 4096, but there (is 1|are \d+)\b") as error:
        jobs.execute(config, task.program, task.observations)
    assert "\n" not in str(error.value)
    if jax.default_backend() == "cpu":
        assert "XLA_FLAGS=--xla_force_host_platform_device_count=4096 makes more" in str(error.value)
    with pytest.raises(ValueError, match="devices is 0, expected at least 1"):
        jobs.JobConfig.of(devices=0)


def test_no_device_is_refused():
    with pytest.raises(ValueError, match="expected those of process 0"):
        search.Stepwise(lambda settings: None, devices=[])


@pytest.mark.parametrize("num_lanes", [1, 2, 3, 4])
def test_lanes_are_made_even_by_repeating_whole_ones(num_lanes):
    mesh = jax.sharding.AbstractMesh((3,), ("lanes",))
    lanes = {"index": jnp.arange(num_lanes), "key": jax.random.split(jax.random.key(0), num_lanes)}
    even = devices.even_lanes(lanes, mesh)
    expected = {1: [0, 0, 0], 2: [0, 1, 0], 3: [0, 1, 2], 4: [0, 1, 2, 3, 0, 1]}[num_lanes]
    np.testing.assert_array_equal(even["index"], expected)
    np.testing.assert_array_equal(
        jax.random.key_data(even["key"]), jax.random.key_data(lanes["key"])[np.array(expected)]
    )
