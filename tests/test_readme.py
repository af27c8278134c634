"""The README's attack runs as printed, and the tables of the READMEs are those of the committed results."""

import contextlib
import io
import re
from pathlib import Path

import jax
import numpy as np
import pytest

from experiments import tables

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


PROGRAMS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


def test_the_attack_runs_and_leaks():
    code = PROGRAMS[0]
    assert len([line for line in code.splitlines() if line.strip()]) <= 12
    # A third of the steps: enough to see that it works, not to reach the figure that the README prints.
    code = code.replace("num_steps=300", "num_steps=100")
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code, "README.md", "exec"), {})
    assert float(printed.getvalue().split()[0]) > 20


def test_a_captured_update_is_read():
    names = {}
    exec(compile(PROGRAMS[1], "README.md", "exec"), names)
    for leaf in jax.tree.leaves(names["update"]):
        np.testing.assert_allclose(leaf, -0.01, atol=1e-7)  # the pseudo-gradient, params - local_params


def test_linked_files_exist():
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert (Path(__file__).parents[1] / target).exists(), target


@pytest.mark.parametrize("document", tables.DOCUMENTS, ids=lambda document: str(document.relative_to(tables.ROOT)))
def test_the_tables_are_those_of_the_committed_results(document):
    text = document.read_text(encoding="utf-8")
    assert text.count("| ---: |") >= 1
    assert tables.filled(document) == text


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
