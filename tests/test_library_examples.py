"""The examples of the library run in a short form, and write what they say."""

import runpy
import sys
from pathlib import Path

import pytest

from jaxinvert.attacks import registry

EXAMPLES = Path(__file__).parents[1] / "examples"
SHORT = {
    "first_attack": (["--steps", "2"], ["first_attack.png"]),
    "defense_sweep": (
        ["--steps", "2", "--targets", "1", "--defenses", "none", "top-k, 10 %"],
        ["summary.parquet", "defense_sweep.png"],
    ),
    "audit_flax": (["--steps", "1", "--clients", "2", "--defenses", "none"], ["report.html", "audit.json"]),
    "new_attack": (["--steps", "2", "--clients", "1"], ["new_attack.png"]),
    "large_batch": (["--steps", "2", "--images", "4"], ["large_batch.png"]),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SHORT)
def test_an_example_runs(name, tmp_path, monkeypatch, capsys):
    options, files = SHORT[name]
    monkeypatch.setattr(registry, "REGISTRY", dict(registry.REGISTRY))
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "argv", [name, *options, "--out", str(tmp_path)])
    main = runpy.run_path(str(EXAMPLES / f"{name}.py"))["main"]
    assert not main()
    assert all((tmp_path / file).stat().st_size > 1_000 for file in files)
    assert capsys.readouterr().out


def test_every_example_is_run():
    assert {path.stem for path in EXAMPLES.glob("*.py")} - {"photos"} == SHORT.keys()
