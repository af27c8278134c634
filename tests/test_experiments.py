"""Every experiment runs in seconds with `--smoke`, from its own command line."""

import importlib
import json
import pkgutil

import pytest

import experiments

NAMES = sorted(
    module.name for module in pkgutil.iter_modules(experiments.__path__) if module.name not in ("harness", "tables")
)


@pytest.mark.parametrize("name", NAMES)
def test_smoke(name, tmp_path):
    main = importlib.import_module(f"experiments.{name}").main
    if name == "demo":
        main(["--smoke", "--out", str(tmp_path)])
        assert (tmp_path / "overview.png").stat().st_size > 10_000
        return
    main(["--smoke", "--json", str(tmp_path / "rows.json")])
    content = json.loads((tmp_path / "rows.json").read_text())
    assert content["rows"]
    assert content["device"]
