"""The templates: no loop hides a name of its page, and no macro is written twice."""

from pathlib import Path

import jinja2
import pytest
from jinja2 import nodes

from jaxinvert import report

FOLDER = Path(report.__file__).parent
TEMPLATES = sorted(path.name for path in FOLDER.glob("*.jinja"))


def parsed(name: str) -> nodes.Template:
    return jinja2.Environment().parse((FOLDER / name).read_text(encoding="utf-8"))


def stored(node: nodes.Node) -> set[str]:
    names = [node, *node.find_all(nodes.Name)] if isinstance(node, nodes.Name) else node.find_all(nodes.Name)
    return {name.name for name in names if name.ctx == "store"}


@pytest.mark.parametrize("name", TEMPLATES)
def test_no_loop_hides_a_name_of_the_page(name):
    template = parsed(name)
    of_page = {one for node in template.body if isinstance(node, nodes.Assign) for one in stored(node.target)}
    of_loops = {one for loop in template.find_all(nodes.For) for one in stored(loop.target)}
    assert of_page & of_loops == set()


def test_no_macro_is_written_twice():
    written = [macro.name for name in TEMPLATES for macro in parsed(name).find_all(nodes.Macro)]
    twice = {macro for macro in written if written.count(macro) > 1}
    assert twice == set()
