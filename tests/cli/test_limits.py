"""Numbers beyond all limits, and names that are none, end in one line: not in the allocator or a traceback."""

import importlib
import os

import jax
import pytest

from jaxinvert import cli, jobs, sweeps
from jaxinvert.data import folders
from jaxinvert.jobs import identity

HUGE = "999999999999"
INVERT = ["invert", "--model", "mlp-8", "--targets", "1", "--steps", "1", "--restarts", "1"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["invert", "--model", f"mlp-{HUGE}"], f"model is 'mlp-{HUGE}', expected sizes of at most 65,536"),
        (["invert", "--model", "mlp-" + "9" * 5000], "expected sizes of at most 65,536"),
        (["invert", "--model", "mlp" + "-8" * 2000], "expected at most 1,000 layers"),
        (["invert", "--model", "resnet5000-1"], "expected at most 1,000 layers"),
        (["invert", "--model", "vit-pre-norm-4-8-2000"], "expected at most 1,000 layers"),
        (["invert", "--model", "convnet65536"], "has 3,015,100,596,234 parameters, expected at most 1,073,741,824"),
        ([*INVERT, "--restarts", HUGE], f"restarts is {HUGE}, expected at most 1,000,000"),
        ([*INVERT, "--targets", HUGE], "targets is"),
        ([*INVERT, "--num-examples", HUGE], "num_examples is"),
        ([*INVERT, "--aggregate", HUGE], "aggregate is 999999999999, expected at most 10,000"),
        ([*INVERT, "--rounds", HUGE], "rounds is 999999999999, expected at most 1,000"),
        ([*INVERT, "--chunk", HUGE], "chunk is"),
        ([*INVERT, "--gradient-chunk", HUGE], "gradient_chunk is"),
        ([*INVERT, "--steps", HUGE], "steps is 999999999999, expected at most 2,147,483,646"),
        (
            [*INVERT, "--client", "fedavg", "--local-epochs", "100000000"],
            "local_epochs is 100000000, expected at most",
        ),
        (
            [
                *INVERT,
                "--client",
                "fedavg",
                "--num-examples",
                "8",
                "--local-batch-size",
                "1",
                "--local-epochs",
                "9999",
            ],
            "local training takes 79,992 steps, expected at most 10,000",
        ),
        ([*INVERT, "--split", "+".join(["test"] * 3000)], "has 3,000 terms, expected at most 100"),
        ([*INVERT, "--data", "~nosuchuser/x"], "'~nosuchuser/x' is in the home folder of a user who does not exist"),
        ([*INVERT, "--data", ""], "the data set's name is empty"),
        (["audit", "--candidates", HUGE], "candidates is 999999999999, expected at most 1,000,000"),
        (["audit", "--candidates", "0"], "candidates is 0, expected at least 1"),
        (["audit", "--accuracy-rounds", HUGE], "accuracy_rounds is 999999999999, expected at most"),
        (["audit", "--sampling-rate", "0.1", "--training-steps", "9" * 20], "training_steps is 9999"),
        (["audit", "--update", "a", "--params", "b", "--input-shape", "9", "9", HUGE], "input_shape is 9999"),
        (["audit", "--update", "a", "--params", "b", "--num-classes", HUGE], "num_classes is 9999"),
        (["audit", "table", "--members", HUGE], "members is"),
        (["audit", "table", "--widths", "8", HUGE], "width is 999999999999, expected at most 65,536"),
        (["tokens", "--length", HUGE], "length is"),
        (["tokens", "--vocabulary", HUGE], "vocabulary is"),
        (["tokens", "--depth", HUGE], "depth is 999999999999, expected at most 1,000"),
        (["tokens", "--json", "."], "cannot write to .: it is a folder"),
        (["records", "--json", "."], "cannot write to .: it is a folder"),
    ],
)
def test_it_is_refused_with_one_line(arguments, message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(arguments) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert message in lines[0]
    assert not [*tmp_path.iterdir()]


def test_a_pipe_is_no_data_set_of_a_sweep(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="pipe is neither a file nor a folder"):
        jobs.job_name(jobs.JobConfig.of(data=str(tmp_path / "pipe")))


def test_a_tree_of_files_is_no_data_set_of_a_sweep(tmp_path, monkeypatch):
    """As `data: /`: it is refused while it is listed, before anything in it is read, and so is a folder too large."""
    for number in range(8):
        (tmp_path / f"{number}.txt").write_text("no image")
        (tmp_path / f"{number}.png").write_bytes(b"not read")
    (tmp_path / "sweep.yaml").write_text(f"data: {tmp_path}\n")
    name = jobs.job_name(jobs.JobConfig.of(data=str(tmp_path)))
    (tmp_path / "notes.txt").write_text("read by nothing")
    assert jobs.job_name(jobs.JobConfig.of(data=str(tmp_path))) == name  # of what is read
    (tmp_path / "0.png").write_bytes(b"another")
    assert jobs.job_name(jobs.JobConfig.of(data=str(tmp_path))) != name
    monkeypatch.setattr(identity, "_MAX_FOLDER_BYTES", 50)
    with pytest.raises(ValueError, match="of images, expected at most"):
        sweeps.read_plan(tmp_path / "sweep.yaml")
    monkeypatch.setattr(folders, "MAX_ENTRIES", 16)
    with pytest.raises(ValueError, match="holds more than 16 files and folders; name a smaller folder"):
        sweeps.read_plan(tmp_path / "sweep.yaml")


def test_lanes_that_no_memory_holds_are_refused_before_they_are_allocated(tmp_path, capsys):
    assert cli.main([*INVERT, "--restarts", "1000000", "--size", "224", "--out", str(tmp_path)]) == 2
    assert (
        "1 targets x 1,000,000 restarts x 1 images of 224x224x3 need 1,121.5 GiB at least" in capsys.readouterr().err
    )


def test_an_allocator_that_fails_is_one_line_and_other_errors_of_the_device_are_not_hidden(capsys, monkeypatch):
    def failing(message):
        def command(command, line):
            raise jax.errors.JaxRuntimeError(message)

        return command

    listing = importlib.import_module("jaxinvert.cli.listing")
    monkeypatch.setattr(listing, "show_list", failing("RESOURCE_EXHAUSTED: Out of memory allocating 12 bytes."))
    assert cli.main(["list"]) == 2
    assert "not enough memory: RESOURCE_EXHAUSTED: Out of memory allocating 12 bytes" in capsys.readouterr().err
    monkeypatch.setattr(listing, "show_list", failing("INTERNAL: a bug"))
    with pytest.raises(jax.errors.JaxRuntimeError, match="a bug"):
        cli.main(["list"])


def test_names_of_jobs_leave_out_what_every_job_meant_before_a_field_existed():
    """A job with momentum 0.9 has the name that it had when 0.9 was no field; another momentum is another job."""
    config = jobs.JobConfig.of(client="fedavg", local_optimizer="momentum")
    names = [jobs.job_name(config.replace(local_momentum=value)) for value in (0.9, 0.5)]
    assert names[0] != names[1]
    assert "local_momentum" not in identity.fields_of(config)
    assert identity.fields_of(config.replace(local_momentum=0.5))["local_momentum"] == 0.5


@pytest.mark.parametrize(
    ("command", "text"),
    [
        (["audit", "job.yaml"], "{model: 'my_evil:make'}"),
        (["sweep", "job.yaml"], "{model: 'my_evil:make'}"),
        (["sweep", "job.yaml", "--dry-run"], "{grid: {model: [mlp-8, 'my_evil:make']}}"),
        (["sweep", "job.yaml"], "{list: [{model: mlp-8}, {list: [{model: 'my_evil:make'}]}]}"),
    ],
)
def test_a_file_imports_no_module(command, text, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_evil.py").write_text("open('ran', 'w')", encoding="utf-8")
    (tmp_path / "job.yaml").write_text(text, encoding="utf-8")
    assert cli.main(command) == 2
    told = capsys.readouterr().err
    assert "job.yaml: it names the network 'my_evil:make', whose module would be imported and run" in told
    assert ("--import-models" if command[0] == "sweep" else "--model my_evil:make") in told
    assert not (tmp_path / "ran").exists()
    if command[0] == "sweep":
        assert sweeps.read_plan(tmp_path / "job.yaml", import_models=True).jobs
