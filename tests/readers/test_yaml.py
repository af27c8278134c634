"""YAML files that cost more than they hold, or mean something else than they say."""

import os
import time

import pytest

from jaxinvert.readers.yaml_files import read_yaml


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 16_000, "nested deeper than the limit of 32"),
        ("a: " + "{b: " * 16_000, "nested deeper"),
        ("- " * 100_000, "nested deeper"),
        ("? " * 100_000, "nested deeper"),
        ("".join(f"{' ' * i}a:\n" for i in range(700)), "nested deeper"),
        ("a: [" + "1," * 20_000 + "]", "more than 10,000 values"),
        ("a: " + "1:" * 100_000 + "1", "too long"),
        ("a: 0x" + "f" * 100_000, "too long"),
        ("x" * 300_000, "larger than the limit of 262,144 bytes"),
        (r'a: "\ud800"', "lone surrogate"),
        ("a: 1\nb: 2\na: 3", "'a' twice"),
        ("b: [{a: 1, a: 1}]", "'a' twice"),
        ("a: &x [1]\nb: *x", "alias"),
        ("!!python/object/apply:os.system ['true']", "constructor"),
        ("a: \x1b[2J", "special characters"),
        ("a: !!int ''", "not readable"),
        ("- 1", "expected fields"),
        ("", "expected fields"),
    ],
)
def test_what_costs_or_misleads_is_refused(text, message, tmp_path):
    (tmp_path / "x.yaml").write_text(text)
    begin = time.process_time()
    with pytest.raises(ValueError, match=rf"x\.yaml.*{message}") as caught:
        read_yaml(tmp_path / "x.yaml")
    assert time.process_time() - begin < 4
    assert len(str(caught.value)) < 2000
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("text", ["[" * 16_000, "a: " + "[" * 1000, "? " + "[" * 1000, "[{a: " * 1000])
def test_open_brackets_cost_nothing(text, tmp_path):
    """The scanner looks a thousand of them ahead, and visits all at each: half a second for a kilobyte."""
    (tmp_path / "x.yaml").write_text(text)
    begin = time.process_time()
    with pytest.raises(ValueError, match="nested deeper than the limit of 32"):
        read_yaml(tmp_path / "x.yaml")
    assert time.process_time() - begin < 0.1


def test_special_files_are_not_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", "/dev/zero", tmp_path, tmp_path / "nothing"):
        with pytest.raises(ValueError, match="is not a file"):
            read_yaml(path)


def test_plain_fields_come_back(tmp_path):
    (tmp_path / "x.yaml").write_text("a: 1e-3\nb: [1, 2.5, x]\nc: {d: null, e: 'é'}\n")
    assert read_yaml(tmp_path / "x.yaml") == {"a": "1e-3", "b": [1, 2.5, "x"], "c": {"d": None, "e": "é"}}
