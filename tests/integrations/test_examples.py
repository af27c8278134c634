"""Every example runs by one command, with its real framework on this machine, and ends in an audit page."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
NEEDS = {
    "flower_pytorch": ("flwr", "ray", "torch"),
    "nvflare_pytorch": ("nvflare", "torch"),
    "nnx": (),
    "equinox": ("equinox",),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", NEEDS)
def test_an_example_ends_in_a_page(name, tmp_path):
    if missing := [module for module in NEEDS[name] if importlib.util.find_spec(module) is None]:
        pytest.skip(f"{name} needs {', '.join(missing)}")
    command = [sys.executable, str(EXAMPLES / name / "run.py"), "--clients", "2", "--steps", "1"]
    done = subprocess.run(
        [*command, "--out", str(tmp_path)], capture_output=True, text=True, check=False, timeout=600
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    record = json.loads((tmp_path / "audit" / "audit.json").read_text(encoding="utf-8"))
    assert (record["num_clients"], record["num_examples"]) == (2, 1)
    told = record["settings"][0]["verdict"]["certainty"]
    assert "explain" not in told  # the declared training accounts for what the framework sent
    assert (tmp_path / "audit" / "report.html").exists()


def test_every_example_is_tested():
    assert {path.parent.name for path in EXAMPLES.glob("*/run.py")} == NEEDS.keys()
