"""The README is short, its attack runs as printed, and its commands run; tables of results are made as described."""

import contextlib
import io
import json
import re
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import yaml

from experiments import tables
from jaxinvert import data
from jaxinvert.attacks import adaptive
from jaxinvert.cli import main
from jaxinvert.defenses import registry as defenses
from tests.docs_blocks import ROOT, blocks

README = ROOT / "README.md"
PROGRAMS = [block.code for block in blocks(README) if block.language == "python"]
COMMANDS = [line for block in blocks(README) if not block.language for line in block.commands]
NET = """
from flax import linen as nn

class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(10)(x.reshape(x.shape[0], -1))

def make():
    return Net()
"""
QUICK = ["--steps", "1", "--restarts", "1"]


def test_it_is_a_screen_and_a_half():
    assert 80 <= len(README.read_text(encoding="utf-8").splitlines()) <= 110


def test_the_attack_runs_and_leaks():
    code = PROGRAMS[0]
    assert len([line for line in code.splitlines() if line.strip()]) <= 12
    # A third of the steps: enough to see that it works, not to reach the figure that the README prints.
    code = code.replace("num_steps=300", "num_steps=100")
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code, "README.md", "exec"), {})
    assert float(printed.getvalue().split()[0]) > 20


@pytest.mark.slow
def test_a_training_is_captured_and_audited(tmp_path, monkeypatch):
    """The five lines and the command below them, on a network as the README assumes."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "my_net.py").write_text(NET, encoding="utf-8")
    import my_net

    assert len([line for line in PROGRAMS[1].splitlines() if line.strip()]) == 5
    photos = data.load("photos", split="test[:1]")
    params = my_net.make().init(jax.random.key(0), photos.images)
    names = {"mean": (0.5,) * 3, "std": (0.25,) * 3, "images": photos.images, "labels": photos.labels}
    local = jax.tree.map(lambda leaf: leaf - 0.01 * np.sign(leaf), params)
    exec(compile(PROGRAMS[1], "README.md", "exec"), {**names, "server_params": params, "local_params": local})
    (command,) = (line for line in COMMANDS if "--capture" in line)
    assert main([*command.split()[1:], *QUICK, "--attack", "inverting-gradients", "--no-attack-free"]) == 0
    assert (tmp_path / "runs" / "audit" / "report.html").exists()
    sys.modules.pop("my_net")


def small_file(name: str, folder: Path) -> str:
    """An audit's file with one client, one setting, and nothing that takes long."""
    fields = yaml.safe_load((ROOT / name).read_text(encoding="utf-8"))
    few = {"model": "mlp", "attack": "inverting-gradients", "targets": 1, "steps": 1, "attack_free": False}
    fields |= few | {"defenses": fields["defenses"][-1:], "accuracy_rounds": 0, "leakage_rounds": 0}
    (folder / "small.yaml").write_text(yaml.safe_dump(fields), encoding="utf-8")
    return str(folder / "small.yaml")


@pytest.mark.parametrize(
    "line", [line for line in COMMANDS if line.startswith("jaxinvert") and "--capture" not in line]
)
def test_commands_run(line, tmp_path):
    line = re.sub(r" > .*| --out \S+", "", line)
    words = [small_file(word, tmp_path) if word.endswith(".yaml") else word for word in line.split()[1:]]
    if words[0] == "invert":
        words += [*QUICK, "--targets", "1", "--attack", "inverting-gradients"]
    writes = words[0] not in ("list", "completion") and "--help" not in words
    if writes:
        words += ["--out", str(tmp_path)]
    assert main(words) == 0
    assert not writes or (tmp_path / "report.html").exists()


def test_every_command_is_tested():
    """`make demo` is a smoke-tested experiment, `make test` is this."""
    others = [line for line in COMMANDS if not line.startswith("jaxinvert")]
    assert others == ["make demo", "make test"]


def test_figures_are_those_of_the_results():
    text = README.read_text(encoding="utf-8")
    rows = json.loads((ROOT / "experiments" / "results" / "spectral.json").read_text(encoding="utf-8"))["rows"]
    wanted = {("spectral", 480), ("inverting-gradients", 4800)}
    same = [row for row in rows if (row["case"], row["data"], row["seed"]) == ("LeNet untrained", "cifar10_slice", 0)]
    found = {(row["attack"], row["steps"]): row for row in same if (row["attack"], row["steps"]) in wanted}
    assert found.keys() == wanted
    for row in found.values():
        assert f"{row['mean_psnr_db']:.1f}" in text
        assert row["clients"] == 100
    assert f"[{len(defenses.REGISTRY)}, most with an adaptive attacker]" in text
    assert 2 * len(adaptive.COUNTERS.keys() & defenses.REGISTRY.keys()) > len(defenses.REGISTRY)
    assert len(re.findall(r"^\| ", text, flags=re.MULTILINE)) > 5  # the table is there


def test_a_table_is_made_of_the_named_columns():
    rows = [{"model": "lenet", "rate": 1234.5, "share": None}]
    table = tables.markdown(rows, ["rate=steps_per_second", "share", "model"])
    assert table.splitlines() == [
        "| steps per second | share | model |",
        "| ---: | ---: | ---: |",
        "| 1,234 | - | lenet |",
    ]


def test_a_table_can_select_and_spread():
    rows = [
        {"law": law, "batch": batch, "rule": rule, "exact": exact}
        for law, batch, rule, exact in [
            ("uniform", 1, "llg", 1.0),
            ("uniform", 1, "rlg", 0.5),
            ("uniform", 8, "llg", 0.25),
            ("single", 1, "llg", 0.125),
        ]
    ]
    assert tables.markdown(rows, ["law==uniform", "batch=B", "rule/exact"]).splitlines() == [
        "| B | llg | rlg |",
        "| ---: | ---: | ---: |",
        "| 1 | 1 | 0.5 |",
        "| 8 | 0.25 | - |",
    ]
