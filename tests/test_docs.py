"""The documentation holds: its code runs, its commands are accepted, its links lead somewhere, its lists are whole.

Python blocks of a page run in order, in one namespace and one folder, with few steps. Commands of pages are parsed as
the command line parses them; those of the README are run (`test_readme.py`). A block below `<!-- test: compile -->`
is only compiled: it needs a framework that runs elsewhere.
"""

import importlib
import importlib.util
import json
import re
import shlex
from pathlib import Path

import jax
import numpy as np
import pytest
import tyro
import yaml

from experiments import gallery, tables
from jaxinvert import attacks, audit, data, jobs, sweeps
from jaxinvert.attacks import registry
from jaxinvert.cli import main
from jaxinvert.jobs.automatic import AUTO
from tests.docs_blocks import PAGES, ROOT, Block, anchors, blocks, links, small

SITE = yaml.load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"), Loader=yaml.BaseLoader)
OTHERS = {"export", "python", "pip", "make", "jaxinvert"}


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def with_blocks(*languages: str) -> list:
    pages = [page for page in PAGES if any(block.language in languages for block in blocks(page))]
    return [pytest.param(page, id=name_of(page)) for page in pages]


def captured_round() -> dict:
    """What a server and a client have at hand, for blocks that write captures."""
    params = {"head": {"kernel": np.ones((12, 10), np.float32), "bias": np.zeros(10, np.float32)}}
    photos = data.load("photos", split="test[:1]")
    local = jax.tree.map(lambda leaf: leaf - 0.01, params)
    names = {"mean": (0.5,) * 3, "std": (0.25,) * 3, "server_params": params, "local_params": local}
    return {**names, "images": photos.images, "labels": photos.labels}


@pytest.mark.parametrize("page", with_blocks("python"))
def test_python_blocks_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(registry, "REGISTRY", dict(registry.REGISTRY))
    names = {"__name__": "page", **captured_round()}
    for block in blocks(page):
        if block.language == "python":
            code = compile(small(block.code), name_of(page), "exec")
            if block.mark != "compile" and page.name != "README.md":  # its blocks run in test_readme.py
                exec(code, names)


class Parsed(Exception):
    """Raised in place of running a command."""


@pytest.fixture
def only_parsed(monkeypatch):
    """The command line parses and checks its arguments, but runs nothing."""
    parse = tyro.cli

    def parsed(*arguments, **options):
        raise Parsed(parse(*arguments, **options))

    monkeypatch.setattr(tyro, "cli", parsed)


@pytest.mark.parametrize("page", with_blocks("", "bash", "console"))
def test_commands_are_accepted(page, only_parsed):
    for block in blocks(page):
        if block.language in ("", "bash", "console"):
            for line in block.commands:
                check_command(line)


def check_command(line: str) -> None:
    words = shlex.split(line)
    words = words[next(i for i, word in enumerate(words) if "=" not in word or i == len(words) - 1) :]
    assert words[0] in OTHERS, f"{line}: no test knows {words[0]}"
    if words[0] == "make":
        assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE), line
    elif words[0] == "pip":
        extras = re.findall(r"^ {8}\"(\w+)\": ", (ROOT / "setup.py").read_text(encoding="utf-8"), flags=re.MULTILINE)
        asked = re.findall(r"(?:^| )\.\[(.+?)\]", line.replace("'", ""))
        assert {extra for group in asked for extra in group.split(",")} <= set(extras), line
    elif words[0] == "python":
        file = words[2].replace(".", "/") + ".py" if words[1] == "-m" else words[1]
        assert (ROOT / file).is_file(), line
    elif "--help" in words:
        assert main(words[1:]) == 0, line
    elif words[0] == "jaxinvert":
        with pytest.raises(Parsed):
            main(words[1 : words.index(">") if ">" in words else None])


@pytest.mark.parametrize("page", with_blocks("yaml", "json"))
def test_settings_are_accepted(page, tmp_path):
    for block in blocks(page):
        if block.language == "json":
            json.loads(block.code)
        elif block.language == "yaml":
            (tmp_path / "sweep.yaml").write_text(block.code, encoding="utf-8")
            assert len(sweeps.read_plan(tmp_path / "sweep.yaml").jobs) > 1


def test_blocks_are_of_a_known_kind():
    """What is none of these is checked by nothing."""
    known = {"", "bash", "console", "json", "python", "text", "yaml"}
    assert {block.language for page in PAGES for block in blocks(page)} <= known


@pytest.mark.parametrize("page", [*PAGES, ROOT / "experiments" / "README.md", *tables.DETAILS], ids=name_of)
def test_links_lead_somewhere(page):
    for path, anchor in links(page):
        target = (page.parent / path).resolve() if path else page
        if target.parts[-2:-1] == ("api",):  # made from docstrings
            assert f"api/{target.name}" in listed(SITE["nav"])
            continue
        assert target.exists(), path
        assert not anchor or anchor in anchors(target), f"{path}#{anchor}"


def listed(nav) -> set[str]:
    if isinstance(nav, str):
        return {nav}
    values = nav if isinstance(nav, list) else nav.values()
    return set().union(*map(listed, values))


def test_every_page_is_in_the_navigation():
    pages = {str(page.relative_to(ROOT / "docs")) for page in (ROOT / "docs").rglob("*.md")}
    assert pages | {f"details/{page.name}" for page in tables.DETAILS} <= listed(SITE["nav"])
    packages = {path.split("/")[1].removesuffix(".md") for path in listed(SITE["nav"]) if path.startswith("api/")}
    modules = {path.stem for path in (ROOT / "jaxinvert").iterdir() if not path.name.startswith("_")}
    assert packages - {"index"} <= modules


ATTACK_PAGES = {
    page: page.read_text(encoding="utf-8")
    for page in sorted((ROOT / "docs" / "attacks").glob("*.md"))
    if page.name != "index.md"
}
DECLARED = {
    name.replace("_", "-")
    for package in (attacks.closed_form, attacks.optimization)
    for name in package.__all__
    if registry.is_declared(getattr(package, name))
}
IN_GALLERY = {case.attack for case in gallery.CASES}


@pytest.mark.parametrize("attack", sorted(DECLARED | registry.REGISTRY.keys() - {AUTO}))
def test_every_attack_has_a_page(attack):
    """With a picture, if it reconstructs images; it says when it works and when it fails."""
    pages = [page for page, text in ATTACK_PAGES.items() if f"<!-- attack: {attack} -->" in text]
    assert len(pages) == 1, f"docs/attacks needs one page with the line <!-- attack: {attack} -->"
    page = pages[0]
    index = (page.parent / "index.md").read_text(encoding="utf-8")
    assert re.search(rf"\[(?:.*`{attack}`.*|DAGER|TabLeak|TAG|LAMP|TIGER)\]\({page.name}\)", index)
    if attack in registry.REGISTRY:
        assert attack in IN_GALLERY
        assert f"({attack}.png)" in ATTACK_PAGES[page]
        assert f"gallery.json attack=={attack} " in ATTACK_PAGES[page]
        rows = json.loads((ROOT / "experiments" / "results" / "gallery.json").read_text(encoding="utf-8"))["rows"]
        assert attack in {row["attack"] for row in rows}


def test_an_attack_that_does_not_say_when_it_works_has_no_page():
    def silent(problem):
        """Does something."""

    attacks.register(silent, name="dlg-again")
    try:
        with pytest.raises(ValueError, match=r"dlg-again: its docstring has no paragraph 'Works: \.\.\.'"):
            tables.conditions("dlg-again")
    finally:
        del registry.REGISTRY["dlg-again"]


@pytest.mark.parametrize("page", ATTACK_PAGES, ids=name_of)
def test_a_page_says_what_an_attack_solves_when_it_works_and_what_was_measured(page):
    text = ATTACK_PAGES[page]
    assert "```text" in text  # the equation
    assert "- *Works* " in text
    assert "- *Fails* " in text
    assert re.search(r"arxiv.org/abs/|this library's own|from no paper", text)
    measured = text.partition("## Published and measured")[2]
    assert re.search(r"<!-- table:|\[tests\]", measured)
    if page.stem != "known-patches":  # which has no command
        assert "## Try it\n\n```\n" in text


@pytest.mark.parametrize("page", [page for page, text in ATTACK_PAGES.items() if "gallery.json" in text], ids=name_of)
def test_the_command_of_a_page_makes_its_picture(page, only_parsed):
    cases = {case.attack: case for case in gallery.CASES}
    commands = [line for block in blocks(page) for line in block.commands if line.startswith("jaxinvert ")]
    assert commands
    for line in commands:
        with pytest.raises(Parsed) as parsed:
            main(shlex.split(line)[1:])
        given, case = parsed.value.args[0].flat, cases[parsed.value.args[0].attacker.attack]
        wanted = jobs.JobConfig.of(**case.job).flat
        of_searches = set() if "steps" in case.fields else {"restarts", "steps"}
        assert {name for name, value in wanted.items() if given[name] != value} <= of_searches


def test_every_example_shows_what_it_gives():
    page = (ROOT / "docs" / "examples.md").read_text(encoding="utf-8")
    for section in re.split(r"^## ", page, flags=re.MULTILINE)[1:]:
        assert "![" in section, section.partition("\n")[0]


def resolve(name: str) -> object:
    """What a dotted name in the package stands for, modules included."""
    found = importlib.import_module("jaxinvert")
    for number, part in enumerate(parts := name.split(".")):
        try:
            found = getattr(found, part)
        except AttributeError:
            found = importlib.import_module(".".join(["jaxinvert", *parts[: number + 1]]))
    return found


@pytest.mark.parametrize("page", [page for page in PAGES if page.parent != ROOT], ids=name_of)
def test_names_of_the_library_exist(page):
    """Such as `search.Stepwise` and `ji.nn.fast_convolutions(apply)`."""
    packages = "|".join(path.stem for path in (ROOT / "jaxinvert").iterdir() if path.is_dir())
    text = re.sub(r"^ *```.*?^ *```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    for name in re.findall(rf"`(?:ji\.|jaxinvert\.)?((?:{packages})\.[\w.]+)", text):
        if not name.endswith((".html", ".json", ".py")) and not name.startswith(
            ("integrations.flower", "integrations.nvflare")
        ):
            assert resolve(name) is not None, name


def test_every_level_of_a_verdict_is_explained():
    page = (ROOT / "docs" / "howto" / "reading-an-audit.md").read_text(encoding="utf-8")
    levels = audit.verdict.Level.__args__
    assert [level for level in levels if f"| {level} |" not in page] == []


@pytest.mark.parametrize("document", tables.DOCUMENTS, ids=name_of)
def test_the_tables_are_those_of_the_committed_results(document):
    assert tables.filled(document) == document.read_text(encoding="utf-8")


def test_the_site_builds():
    if importlib.util.find_spec("mkdocs") is None:
        pytest.skip("needs mkdocs, `make docs` builds the site")
    from mkdocs.commands.build import build
    from mkdocs.config import load_config

    build(load_config(str(ROOT / "mkdocs.yml"), strict=True))


def test_a_broken_block_is_found():
    block = Block("", "jaxinvert invert --targets 4 \\\n  --steps 3  # few\n# a remark\nmake demo\n", "")
    assert block.commands == ["jaxinvert invert --targets 4    --steps 3", "make demo"]
    with pytest.raises(pytest.fail.Exception, match="DID NOT RAISE"):
        check_command("jaxinvert invert --no-such-flag 3")
    with pytest.raises(AssertionError, match="no test knows rm"):
        check_command("rm -r runs")
