"""The PyTorch attacks of `experiments.benchmark_peers` compute what this library computes, from the same case."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from experiments import benchmark_peers
from experiments.peers import load, mobile, ours, serving
from jaxinvert import data, models

CASES = {case.name: case for case in benchmark_peers.CASES}


def folder_of(case, tmp_path):
    (tmp_path / "case.json").write_text(json.dumps(dataclasses.asdict(case)))
    return tmp_path


@pytest.mark.parametrize(
    ("name", "side"),
    [
        ("lenet", 32),
        ("small-convnet4", 8),
        ("convnet2", 18),
        ("resnet8-1", 8),
        ("resnet18", 32),
        ("vit-pre-norm-4-16-2", 8),
        ("mobile", 8),
    ],
)
def test_a_network_of_pytorch_is_the_one_here(name, side):
    torch = pytest.importorskip("torch")
    from experiments.peers import torch_networks

    facts = {"input_shape": (side, side, 3), "num_classes": 10}
    model = mobile.mobile(**facts) if name == "mobile" else models.create(name, **facts)
    draw = np.random.default_rng(0)
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    params = jax.tree.map(lambda leaf: np.abs(draw.normal(0.1, 0.2, leaf.shape)).astype(np.float32), shapes)
    images = draw.uniform(size=(2, side, side, 3)).astype(np.float32)
    network = torch_networks.make(name, side=side, channels=3, classes=10)
    missing, extra = network.load_state_dict(
        torch_networks.as_torch(network, models.to_named(model, params)), strict=False
    )
    assert not extra
    assert all(key.endswith("num_batches_tracked") for key in missing)
    theirs = network(torch.tensor(images).movedim(-1, 1)).detach().numpy()
    np.testing.assert_allclose(jax.jit(model.apply)(params, images), theirs, rtol=1e-4)


def test_three_steps_of_both_loops_end_at_the_same_images(tmp_path):
    pytest.importorskip("torch")
    from experiments.peers import torch_loop

    here = ours.Ours(folder_of(CASES["LeNet"], tmp_path))
    task = torch_loop.load(tmp_path)
    (last, best), losses = torch_loop.invert(task, task.starts[0], num_steps=3)
    assert losses[0] == pytest.approx(here.first_losses[0], rel=1e-5)
    assert losses[-1] < losses[0]
    assert best.shape == last.shape
    np.testing.assert_allclose(here.images(3)["images"], last.movedim(1, -1).numpy(), atol=1e-5)
    at_start = torch_loop.cosine_distance(torch_loop.client_update(task, task.starts[0]), task.update)
    assert at_start.item() < losses[0]


def test_local_steps_are_the_same_client(tmp_path):
    pytest.importorskip("torch")
    from experiments.peers import torch_loop

    case = dataclasses.replace(CASES["FedAvg, 4 images x 4 steps"], model="lenet", images=2, local_steps=2)
    here = ours.Ours(folder_of(case, tmp_path))
    task = torch_loop.load(tmp_path)
    _, losses = torch_loop.invert(task, task.starts[0], num_steps=1)
    assert losses[0] == pytest.approx(here.first_losses[0], rel=1e-4)


def test_every_case_has_photos_and_a_network():
    for case in benchmark_peers.CASES:
        photos = data.load("photos", split=f"test[:{case.images}]", size=case.size)
        assert ours.model_of(case.model, photos).input_shape == (case.size, case.size, 3)


def test_without_pytorch_it_says_what_to_give(tmp_path):
    with pytest.raises(SystemExit, match=r"--venv FOLDER.*--python INTERPRETER.*--smoke"):
        benchmark_peers.main(["--rows", "LeNet"])
    fake = tmp_path / "python"
    fake.write_text("#!/bin/sh\nexit 1\n")
    fake.chmod(0o755)
    with pytest.raises(SystemExit, match="cannot import numpy and torch"):
        benchmark_peers.main(["--rows", "LeNet", "--python", str(fake)])


def test_a_process_answers_and_says_why_it_ended(tmp_path):
    program = tmp_path / "serves.py"
    program.write_text(
        "from experiments.peers import serving\n"
        "serving.serve(lambda folder: {'double': lambda number: {'found': 2 * number}, 'fail': lambda: 1 / 0})\n"
    )
    worker = serving.Process([benchmark_peers.sys.executable, str(program)], tmp_path)
    assert worker.ask("double", number=4) == {"found": 8}
    found = worker.ask("memory")
    assert found["peak"] >= found["resident"] > 0
    with pytest.raises(RuntimeError, match="ZeroDivisionError"):
        worker.ask("fail")
    worker.close()


def test_samples_under_load_come_last():
    config = benchmark_peers.Config(max_foreign=0.1)
    found = benchmark_peers.Samples(lambda: 0.0)
    for seconds, foreign in ((1.0, 0.5), (2.0, 0.0), (3.0, 0.2), (4.0, 0.1)):
        found.add(seconds, foreign, config)
    assert [seconds for seconds, _ in found.kept(2)] == [2.0, 4.0]
    assert [seconds for seconds, _ in found.kept(3)] == [2.0, 4.0, 3.0]


def test_a_row_of_shorter_samples_is_measured_again():
    config = benchmark_peers.Config(seconds=3.0, repeats=4)
    row = {"case": "LeNet", "samples": 4, "seconds_per_sample": 3.0}
    assert benchmark_peers.is_measured(row, config)
    assert not benchmark_peers.is_measured(None, config)
    assert not benchmark_peers.is_measured({**row, "seconds_per_sample": 0.5}, config)
    assert not benchmark_peers.is_measured({**row, "samples": 1}, config)
    assert not benchmark_peers.is_measured({"case": "LeNet", "samples": 4}, config)


def test_own_work_is_no_load():
    _, foreign = load.beside(lambda: sum(range(3_000_000)), [])
    assert foreign >= 0
