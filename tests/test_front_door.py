"""The package's face: all public names are there, importing it costs nothing, and lists of fields agree."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import jaxinvert
from jaxinvert.observation.threat_models import MEANINGS, ThreatModel
from jaxinvert.types import SHARED_FIELDS, Observation

PACKAGE = Path(jaxinvert.__file__).parent


@pytest.mark.parametrize("name", jaxinvert.__all__)
def test_every_public_name_is_there(name):
    assert getattr(jaxinvert, name) is not None
    assert name in dir(jaxinvert)


def test_every_package_is_public():
    """All but the command line, which is run and not imported."""
    found = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert found - {"__init__", "__main__", "cli"} <= set(jaxinvert.__all__)


def test_observe_is_the_function():
    assert jaxinvert.observe is jaxinvert.observation.observe
    assert callable(jaxinvert.observe)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'analytic'"):
        _ = jaxinvert.analytic


def test_importing_the_package_imports_nothing_else():
    """`import jaxinvert` takes no time beside `import jax, flax, optax`: what it hands on is imported when used."""
    code = "import sys, jaxinvert; print(*{'jax', 'flax', 'optax', 'numpy'} & sys.modules.keys())"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.split() == []


def test_lists_of_observation_fields_agree():
    assert {"update", *ThreatModel._fields} == set(Observation._fields) == set(MEANINGS)
    assert set(SHARED_FIELDS) <= set(Observation._fields)


def test_the_version_is_that_of_the_changelog():
    changelog = (PACKAGE.parent / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"## {jaxinvert.__version__}\n" in changelog


def test_the_citation_has_the_version_and_invents_nobody():
    citation = yaml.safe_load((PACKAGE.parent / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == jaxinvert.__version__
    assert citation["authors"] == [{"name": "The jaxinvert developers"}]


def test_the_source_archive_holds_what_its_installation_reads():
    """`setup.py` is run inside of the archive, which holds no more of the repository than this."""
    text = (PACKAGE.parent / "setup.py").read_text(encoding="utf-8")
    read = set(re.findall(r'ROOT / "([^"/]+\.\w+)"', text))
    included = (PACKAGE.parent / "MANIFEST.in").read_text(encoding="utf-8").split()
    assert "requirements.txt" in read
    assert read - {"README.md"} <= set(included)  # a README is always included


def test_the_matrix_has_the_supported_versions():
    """CI runs the oldest and the newest supported jax, and every Python."""
    workflow = yaml.safe_load((PACKAGE.parent / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8"))
    matrix = workflow["jobs"]["tests"]["strategy"]["matrix"]
    least, below = re.search(
        r"^jax>=0\.(\d+),<0\.(\d+)$", (PACKAGE.parent / "requirements.txt").read_text(), re.MULTILINE
    ).groups()
    assert matrix["jax"] == [f"0.{least}.*", f"0.{int(below) - 1}.*"]
    assert matrix["python"] == ["3.11", "3.12", "3.13"]
