"""Files are whole or absent, and are never unpickled."""

import json
import pickle

import jax.numpy as jnp
import numpy as np
import pytest

from jaxinvert import files


def test_json_keeps_plain_values_and_turns_arrays_into_lists(tmp_path):
    path = tmp_path / "deep" / "summary.json"
    files.save_json(path, {"a": np.float32(0.5), "b": jnp.arange(2), "c": (True, None), "d": tmp_path, "e": np.nan})
    assert json.loads(path.read_text()) == {
        "a": 0.5,
        "b": [0, 1],
        "c": [True, None],
        "d": str(tmp_path),
        "e": None,
    }


def test_arrays_come_back(tmp_path):
    files.save_arrays(tmp_path / "x.npz", {"truth": jnp.ones((2, 3)), "count": np.arange(3)})
    arrays = files.load_arrays(tmp_path / "x.npz")
    np.testing.assert_array_equal(arrays["truth"], np.ones((2, 3)))
    assert set(arrays) == {"truth", "count"}


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "x.json"
    files.save_json(path, {"version": 1})

    def fail(file):
        file.write(b"half")
        raise OSError("no space left")

    with pytest.raises(OSError, match="no space"):
        files.write_atomically(path, fail)
    assert json.loads(path.read_text()) == {"version": 1}
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("kind", ["pickle", "truncated", "text", "object array"])
def test_hostile_files_are_refused_with_their_name(tmp_path, kind):
    path = tmp_path / "x.npz"
    if kind == "pickle":
        path.write_bytes(pickle.dumps({"a": 1}))
    elif kind == "text":
        path.write_text("hello")
    elif kind == "truncated":
        files.save_arrays(path, {"a": np.ones(1000)})
        path.write_bytes(path.read_bytes()[:100])
    else:
        np.savez(path, a=np.array([{"a": 1}], dtype=object))
    with pytest.raises(ValueError, match=r"cannot read the arrays .*x\.npz"):
        files.load_arrays(path)


def test_objects_are_not_written():
    with pytest.raises(TypeError, match="cannot write a object"):
        files.plain(object())
