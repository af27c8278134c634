"""The Ray engine, where Ray is installed (`pip install 'jaxinvert[ray]'`)."""

import subprocess
import sys

import pytest

from jaxinvert import sweeps
from tests.sweeps.test_sweeps import FILE, recorded

pytest.importorskip("ray")
pytestmark = pytest.mark.slow


def test_ray_leaves_the_same_records(tmp_path):
    """In a process of its own: Ray forks, and pytest's process has JAX's threads."""
    file = tmp_path / "sweep.yaml"
    file.write_text(FILE)
    command = [
        sys.executable,
        "-m",
        "jaxinvert",
        "sweep",
        str(file),
        "--engine",
        "ray",
        "--out",
        str(tmp_path / "ray"),
    ]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    *_, last = sweeps.run(sweeps.read_plan(file), tmp_path / "here")
    assert (last.done, last.failed) == (8, 0)
    assert recorded(tmp_path / "ray") == recorded(tmp_path / "here")
