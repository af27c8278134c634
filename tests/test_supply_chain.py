"""What is installed: bounded on both sides, locked with hashes, used, and explained."""

import re
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
LOCK = (ROOT / "requirements.lock").read_text(encoding="utf-8")
NAMES = {"dm-pix": "dm_pix", "pillow": "PIL", "pyyaml": "yaml"}
"""How a package is imported, where that is not its name."""
IMPORTED_BY_OTHERS = {"array-record", "importlib-resources"}


def runtime():
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    return [Requirement(text) for line in lines if (text := line.split("#")[0].strip())]


def extras():
    """All requirements that `setup.py` names, and those of the extra `dev`."""
    text = (ROOT / "setup.py").read_text(encoding="utf-8")
    dev = re.search(r'"dev": \[(.+?)\]', text, re.DOTALL)[1]
    names = r'"([a-z][\w.-]*(?:\[\w+\])?(?:>=|==|<)[^"\s]+)"'
    return [[Requirement(one) for one in re.findall(names, part)] for part in (text, dev)]


def locked():
    """Versions by name; a name has several where they depend on the Python."""
    found = {}
    for name, version in re.findall(r"^([\w.-]+)==([\w.+]+)", LOCK, re.MULTILINE):
        found.setdefault(canonicalize_name(name), []).append(version)
    return found


def test_every_dependency_is_bounded_on_both_sides():
    build = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["build-system"]["requires"]
    found = [*runtime(), *extras()[0], *map(Requirement, build)]
    assert len(found) > 30
    for one in found:
        operators = {specifier.operator for specifier in one.specifier}
        assert operators == {"=="} or operators == {">=", "<"}, f"{one} has no upper or no lower bound"


def test_the_lock_holds_what_the_tests_need_within_the_bounds():
    versions = locked()
    for one in [*runtime(), *extras()[1]]:
        assert canonicalize_name(one.name) in versions, f"{one.name} is not locked: make lock"
        for version in versions[canonicalize_name(one.name)]:
            assert one.specifier.contains(version), f"{one} is locked at {version}: make lock"


def test_every_locked_file_has_a_hash_and_nothing_says_where_it_comes_from():
    entries = re.split(r"^(?=[\w.-]+==)", LOCK, flags=re.MULTILINE)[1:]
    assert len(entries) == sum(map(len, locked().values())) > 50
    for entry in entries:
        assert re.search(r"--hash=sha256:[0-9a-f]{64}", entry), entry[:80]
    assert not re.search(r"https?:|file:|index|find-links|@", LOCK)
    assert "\n#    make lock\n" in LOCK
    assert re.search("^lock:", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)


@pytest.mark.parametrize("name", sorted(canonicalize_name(one.name) for one in runtime()))
def test_every_dependency_is_used_and_explained(name):
    guide = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    assert re.search(rf"^\|.*`{name.replace('-', '[-_]')}`.*\|", guide, re.MULTILINE), f"no line explains {name}"
    module = NAMES.get(name, name.replace("-", "_"))
    sources = (path.read_text(encoding="utf-8") for path in (ROOT / "jaxinvert").rglob("*.py"))
    pattern = re.compile(rf"^\s*(?:import|from) {module}\b", re.MULTILINE)
    assert name in IMPORTED_BY_OTHERS or any(map(pattern.search, sources))


def test_ci_installs_from_the_lock_on_the_oldest_and_the_newest_python():
    jobs = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8"))["jobs"]
    steps = " ".join(step.get("run", "") for step in jobs["locked"]["steps"])
    assert "--require-hashes -r requirements.lock" in steps
    every = jobs["tests"]["strategy"]["matrix"]["python"]
    assert jobs["locked"]["strategy"]["matrix"]["python"] == [every[0], every[-1]]
