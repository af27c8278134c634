"""JSON: what the standard parser accepts and nothing later can use."""

import json
import os

import pytest

from jaxinvert.readers.json_files import parse_json, printable, read_json


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[" * 100_000, "nested deeper"),
        ("[" * 33 + "]" * 33, "nested deeper than the limit of 32"),
        ('{"a": {"b": 1, "b": 2}}', "twice"),
        ("[NaN]", "NaN is no number"),
        ("[-Infinity]", "no number"),
        ("[1e999]", "outside of the range"),
        ("[" + "9" * 100_000 + "]", "outside of the range of integers"),
        ("[18446744073709551616]", "outside of the range"),
        (r'["\ud800"]', "surrogate"),
        (r'{"\udfff": 1}', "surrogate"),
        ("", "Expecting value"),
        (b"\xff\xfe\xfd", "decode"),
    ],
)
def test_what_later_code_cannot_use_is_refused(content, message, tmp_path):
    with pytest.raises(ValueError, match=message) as caught:
        parse_json(content)
    assert len(str(caught.value)) < 300
    (tmp_path / "x.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=rf"cannot read .*x\.json.*{message}"):
        read_json(tmp_path / "x.json")


def test_plain_content_comes_back():
    content = {
        "a": [1, -2.5, None, True, "\U0001f600 [[[[[["],
        "b": {"c": 2**64 - 1},
        "deep": json.loads("[" * 30 + "]" * 30),
    }
    assert parse_json(json.dumps(content)) == content


def test_special_files_are_not_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe")  # to open it would wait for a writer
    for path in (tmp_path / "pipe", "/dev/zero", tmp_path):
        with pytest.raises(ValueError, match="not a regular file"):
            read_json(path)
    with pytest.raises(FileNotFoundError):
        read_json(tmp_path / "nothing")
    (tmp_path / "long").write_text(" " * 100)
    with pytest.raises(ValueError, match="the limit of 99 bytes"):
        read_json(tmp_path / "long", max_bytes=99)


def test_texts_for_the_terminal():
    assert printable("\x1b[2J\ud800é\n") == r"\x1b[2J\ud800é\n"
    assert printable("x" * 2000, limit=10) == "x" * 10 + "..."
