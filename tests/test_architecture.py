"""The house keeps its plan: imports only go down the list of rooms, and rooms stay small."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "jaxinvert"

FLOORS = [
    "types",
    "trees",
    "escaping",
    "readers",
    "files",
    "schema",
    "manifest",
    "nn",
    "models",
    "data",
    "metrics",
    "parallel",
    "clients",
    "inspection",
    "priors",
    "defenses",
    "observation",
    "federation",
    "labels",
    "search",
    "attacks",
    "jobs",
    "sweeps",
    "audit",
    "report",
    "integrations",
    "cli",
    "__main__",
]
"""Folders and modules at the top of the package; each imports from itself and from those above it in this list."""
ATTACKER = {"priors", "labels", "search", "attacks"}
JUDGE = {"metrics", "data", "jobs", "sweeps", "audit"}
FILES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_modules(path: Path) -> set[str]:
    """The `jaxinvert` modules that a file imports, wherever in the file."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return {module for module in found if module.startswith("jaxinvert.")}


def test_every_room_is_on_the_list():
    assert {room_of(path) for path in FILES} == set(FLOORS)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_only_go_down(path):
    here = FLOORS.index(room_of(path))
    for module in imported_modules(path):
        room = module.split(".")[1]
        assert FLOORS.index(room) <= here, f"{path.name} imports {module}, which comes later"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_rooms_stay_small(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 420


def test_only_jobs_see_truth_and_reconstruction_together():
    """Attacks, matching and search cannot import the measures that need truth, nor the data."""
    for path in FILES:
        if room_of(path) in ATTACKER:
            rooms = {module.split(".")[1] for module in imported_modules(path)}
            assert not rooms & JUDGE, path


def test_clients_and_defenses_know_nothing_of_the_attacker():
    for path in FILES:
        if room_of(path) in {"clients", "defenses", "federation"}:
            rooms = {module.split(".")[1] for module in imported_modules(path)}
            assert not rooms & ATTACKER, path


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_nothing_is_unpickled_and_nothing_below_the_report_prints(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    refused = {"pickle", "dill", "cloudpickle", "joblib"}
    if path.name == "perceptual.py":  # opens one known file, and lets nothing but arrays out of it
        refused.remove("pickle")
    assert not refused & {
        alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names
    }
    if FLOORS.index(room_of(path)) < FLOORS.index("report") and path.name != "make_photos.py":
        calls = [n.func.id for n in ast.walk(tree) if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)]
        assert "print" not in calls


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def test_no_file_imports_itself_through_others():
    """Package faces are left out: they only hand names on."""
    modules = {module_of(path): path for path in FILES if path.name != "__init__.py"}
    above = {name: (imported_modules(path) & modules.keys()) - {name} for name, path in modules.items()}
    while ground := [name for name, imports in above.items() if not imports & above.keys()]:
        for name in ground:
            del above[name]
    assert not above
