"""Files are whole or absent, and are never unpickled."""

import json
import os
import pickle
import subprocess
import sys
import threading

import jax.numpy as jnp
import numpy as np
import pytest

from jaxinvert import files, report


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


def page_and_picture(folder, name="report"):
    """Writes a page and a picture into a folder."""
    pixels = np.zeros((1, 4, 4, 3), np.float32)
    report.save_report_html(folder / f"{name}.html", summary={}, truth=pixels, reconstruction=pixels)
    report.save_reconstructions_png(folder / f"{name}.png", truth=pixels, reconstruction=pixels)


@pytest.mark.parametrize(("umask", "mode"), [(0o077, 0o600), (0o022, 0o644), (0o002, 0o664)])
def test_the_umask_is_respected(tmp_path, umask, mode):
    before = os.umask(umask)
    try:
        files.save_json(tmp_path / "a.json", {})
        files.save_arrays(tmp_path / "a.npz", {"x": np.zeros(2)})
        files.append_line(tmp_path / "a.jsonl", "{}")
        page_and_picture(tmp_path)
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {mode}


def test_a_link_is_replaced_and_its_target_stays(tmp_path):
    target = tmp_path / "target"
    target.write_text("mine")
    for name in ("report.html", "report.png", "a.json"):
        (tmp_path / name).symlink_to(target)
    page_and_picture(tmp_path)
    files.save_json(tmp_path / "a.json", {})
    assert target.read_text() == "mine"
    assert not (tmp_path / "report.html").is_symlink()
    (tmp_path / "log.jsonl").symlink_to(target)
    with pytest.raises(OSError, match=r"log\.jsonl"):
        files.append_line(tmp_path / "log.jsonl", "{}")
    (tmp_path / ".lock").symlink_to(target)
    with pytest.raises(OSError, match=r"not a link.*\.lock"), files.alone_in(tmp_path):
        pass
    (tmp_path / ".lock").unlink()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (tmp_path / "records").symlink_to(elsewhere)
    with pytest.raises(OSError, match="records: it is a symbolic link"), files.alone_in(tmp_path, "records"):
        pass
    assert target.read_text() == "mine"


def test_pages_and_pictures_are_whole_or_as_before(tmp_path, monkeypatch):
    page_and_picture(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def full(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    pixels = np.ones((1, 4, 4, 3), np.float32)
    with pytest.raises(OSError, match=r"No space left on device: '.*report\.html'"):
        report.save_report_html(tmp_path / "report.html", summary={}, truth=pixels, reconstruction=pixels)
    with pytest.raises(OSError, match=r"No space left on device: '.*report\.png'"):
        report.save_reconstructions_png(tmp_path / "report.png", truth=pixels, reconstruction=pixels)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_one_process_at_a_time_writes_and_cleans_up_after_those_that_were_killed(tmp_path):
    out = tmp_path / "deep" / "out"
    with files.alone_in(out, "attacks", "*/attacks"):
        with pytest.raises(ValueError, match="another process writes its results"), files.alone_in(out):
            pass
        code = f"import pathlib, jaxinvert.files as f\nwith f.alone_in(pathlib.Path({str(out)!r})): pass"
        other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert "another process writes its results" in other.stderr
    assert not (tmp_path / "deep").exists()  # nothing was written
    (out / "digest" / "attacks").mkdir(parents=True)
    left = [out / ".jaxinvert-0.partial", out / "digest" / "attacks" / ".jaxinvert-1.partial"]
    mine = [out / ".x.partial", out / "digest" / ".jaxinvert-2.partial"]
    for path in (*left, *mine, out / ".lock"):
        path.write_text("")
    with files.alone_in(out, "attacks", "*/attacks"):
        assert [path.exists() for path in (*left, *mine)] == [False, False, True, True]
    assert not (out / ".lock").exists()


def test_a_lock_can_be_waited_for(tmp_path):
    inside, most = [], []

    def write():
        for _ in range(20):
            with files.locked(tmp_path, wait=True):
                inside.append(1)
                most.append(len(inside))
                inside.pop()

    threads = [threading.Thread(target=write) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(most), max(most)) == (80, 1)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["link", "link/deeper", "a\0b", "\ud800"])
def test_a_folder_that_cannot_be_made_is_refused(tmp_path, name):
    (tmp_path / "link").symlink_to(tmp_path / "missing")
    with pytest.raises(OSError, match="cannot write to"):
        files.check_writable(tmp_path / name)


def test_checked_arrays_are_what_was_written_or_refused(tmp_path):
    """Every single bit is flipped in turn: the same arrays come back, or a ValueError."""
    path = tmp_path / "x.npz"
    arrays = {"inputs": np.arange(3, dtype=np.float32), "empty": np.zeros((0, 2)), "choice": np.array("spectral")}
    files.save_checked(path, arrays, "job attack")
    for name, array in files.load_checked(path, "job attack").items():
        np.testing.assert_array_equal(array, arrays[name])
    with pytest.raises(ValueError, match="checksum differs"):
        files.load_checked(path, "job random update")
    content, refused = path.read_bytes(), 0
    for bit in range(0, 8 * len(content), 7):
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        try:
            found = files.load_checked(path, "job attack")
        except ValueError:
            refused += 1
            continue
        assert found.keys() == arrays.keys()
        assert all(found[name].tobytes() == array.tobytes() for name, array in arrays.items())
    assert refused > 500
    for size in range(0, len(content), 50):
        path.write_bytes(content[:size])
        with pytest.raises(ValueError, match="cannot read the arrays"):
            files.load_checked(path, "job attack")


def test_a_large_state_that_was_written_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_MAX_BYTES", 1000)
    file, arrays = tmp_path / "state.npz", {"a": np.random.default_rng(0).normal(size=5000)}
    files.save_checked(file, arrays, "a job")
    np.testing.assert_array_equal(files.load_checked(file, "a job")["a"], arrays["a"])
    bomb = tmp_path / "bomb.npz"
    np.savez_compressed(bomb, a=np.zeros(5000))
    with pytest.raises(ValueError, match="the limit is 1,000"):
        files.load_checked(bomb, "a job")


def test_a_line_begins_on_its_own(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text("cut sho")
    files.append_line(path, "one")
    files.append_line(path, "two")
    assert path.read_text() == "cut sho\none\ntwo\n"
