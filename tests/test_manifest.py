"""`capture.json`: what follows the schema is read, and anything else is refused with the field's name."""

import json

import pytest

from jaxinvert import manifest

FACTS = {
    "format": "jaxinvert-capture/1",
    "kind": "weights",
    "round": 3,
    "framework": "flower 1.42",
    "input_shape": [32, 32, 3],
    "num_classes": 10,
    "normalization": {"mean": [0.5] * 3, "std": [0.25] * 3},
    "local": {"optimizer": "sgd", "learning_rate": 0.1, "epochs": 1, "batch_size": 4, "shuffled": True},
    "defense": "clip:norm=1",
    "clients": {"17": {"num_examples": 4}, "site-2": {}},
}


def written(tmp_path, content):
    path = tmp_path / "capture.json"
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return path


def test_facts_are_read(tmp_path):
    found = manifest.read_manifest(written(tmp_path, FACTS))
    assert found.clients == {"17": 4, "site-2": None}
    assert found.normalization == ((0.5,) * 3, (0.25,) * 3)
    assert found.input_shape == (32, 32, 3)
    assert (found.local.learning_rate, found.local.momentum) == (0.1, None)


def test_little_is_needed_and_the_rest_is_unknown(tmp_path):
    found = manifest.read_manifest(written(tmp_path, {"format": manifest.FORMAT, "kind": "delta", "clients": {}}))
    assert found.normalization is None
    assert found.local == manifest.Local()
    none = manifest.read_manifest(written(tmp_path, FACTS | {"normalization": "none"}))
    assert none.normalization == (None, None)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "other/1"}, "format is 'other/1'"),
        ({"kind": "gradients"}, "kind is 'gradients', expected one of pseudo-gradient"),
        ({"model": "os:system"}, "unknown field 'model'"),
        ({"input_shape": [32, 32]}, "expected \\[height, width, channels\\]"),
        ({"num_classes": True}, "num_classes is True"),
        ({"normalization": {"mean": [0.5]}}, "expected 'none' or mean and positive std"),
        ({"normalization": {"mean": [0.5], "std": [0.0]}}, "positive std"),
        ({"local": {"learning_rate": -1}}, "learning_rate is -1"),
        ({"local": {"optimizer": "lion"}}, "optimizer is 'lion', expected one of sgd, adam"),
        ({"clients": {"../../etc": {}}}, "is no name of 1 to 128 letters"),
        ({"clients": {".hidden": {}}}, "is no name of"),
        ({"clients": {"1": {"num_examples": 0}}}, "num_examples is 0"),
        ({"defense": "clip\n"}, "expected one line"),
        ({"clients": None}, "lacks 'clients'"),
        ({"input_shape": [32, 32, 10**9]}, "input_shape is 1000000000, expected a whole number from 1 to 16,384"),
        ({"input_shape": [16384] * 3}, "at most 67,108,864 values in one example"),
        ({"num_classes": 10**9}, "num_classes is 1000000000, expected a whole number from 1 to 100,000"),
        ({"round": -1}, "round is -1, expected a whole number from 0 to"),
        ({"aggregate": 10**5}, "aggregate is 100000, expected a whole number from 1 to 10,000"),
        ({"local": {"epochs": 10**8}}, "epochs is 100000000, expected a whole number from 1 to 10,000"),
        ({"local": {"batch_size": 10**8}}, "batch_size is 100000000, expected a whole number from 1 to 1,000,000"),
        ({"local": {"learning_rate": 1e39}}, "learning_rate is 1e\\+39, expected a number from 0 to 3.4e"),
        ({"clients": {"1": {"num_examples": 10**8}}}, "num_examples is 100000000, expected a whole number from 1 to"),
        ({"clients": {"1": {"num_examples": 10**400}}}, "outside of the range of integers"),
    ],
)
def test_what_does_not_follow_the_schema_is_named(change, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        manifest.read_manifest(written(tmp_path, FACTS | change))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "Expecting value"),
        (b"\xff\xfe", "cannot read"),
        (b"[" * 100_000, "nested deeper"),
        (b'{"a": 1, "a": 2}', "twice"),
        (b'{"a": NaN}', "NaN is no number"),
        (b" " * (2 << 20), "larger than the limit"),
        (b'["x"]', "expected an object"),
    ],
)
def test_hostile_files_are_refused(content, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        manifest.read_manifest(written(tmp_path, content))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no facts of a captured round"):
        manifest.read_manifest(tmp_path / "capture.json")
