"""Files that mean harm: each is a single clear error, runs no code, and costs no memory that it has not earned."""

import bz2
import io
import json
import pickle
import tracemalloc
import zipfile
from pathlib import Path

import jax.numpy as jnp
import msgpack
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jaxinvert.observation.captures import load_batch, load_tree
from tests.readers.writers import WRITERS

TREE = {"params": {"w": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.float32([1, 2])}}
LIKE = {"params": {"w": jnp.zeros((2, 3)), "b": jnp.zeros(2)}}
ENOUGH_BYTES = 8 << 20
"""More than a table of contents of 4 MiB may cost, and far less than what the files below claim."""


def refusal(path, content, like=LIKE):
    """The message about a file, after a check of the memory that it cost."""
    path.write_bytes(content)
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match="cannot read the update") as caught:
            load_tree(path, like)
        assert tracemalloc.get_traced_memory()[1] < ENOUGH_BYTES
    finally:
        tracemalloc.stop()
    assert str(path) in str(caught.value)
    assert len(str(caught.value)) < 2000
    return str(caught.value)


class Bomb:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)


def zipped(members, compression=zipfile.ZIP_DEFLATED):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return file.getvalue()


def npy(header, data=b"", *, version=1, minor=0):
    length = len(header).to_bytes(2 if version == 1 else 4, "little")
    return b"\x93NUMPY" + bytes([version, minor]) + length + header.encode() + data


@pytest.mark.parametrize("begins", [b"\x80\x02", b"\x80\x03", b"\x80\x05", b"\x81\x02", b"\xde\x02"])
def test_safetensors_are_read_whatever_the_length_of_their_header(tmp_path, begins):
    """Its first two bytes may be those of a pickle or of a msgpack map."""
    length = int.from_bytes(begins, "little")
    tensors = {
        "params/w": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
        "params/b": {"dtype": "F32", "shape": [2], "data_offsets": [24, 32]},
    }
    header = json.dumps(tensors).encode().ljust(length)
    data = TREE["params"]["w"].tobytes() + TREE["params"]["b"].tobytes()
    path = tmp_path / "update.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + data)
    found = load_tree(path, LIKE)
    np.testing.assert_array_equal(found["params"]["w"], TREE["params"]["w"])


def test_a_pickle_is_not_run(tmp_path):
    marker = tmp_path / "was run"
    objects = np.array([Bomb(marker), 1, 2])
    as_npz = io.BytesIO()
    np.savez(as_npz, **{"params/w": objects, "params/b": objects})
    for protocol in range(6):
        message = refusal(tmp_path / "pickle", pickle.dumps(Bomb(marker), protocol=protocol))
        assert ("is a pickle" if protocol > 1 else "no safetensors, npz or Flax msgpack file") in message
    as_torch = zipped({"archive/data.pkl": pickle.dumps(Bomb(marker)), "archive/data/0": b"\0" * 24})
    assert "PyTorch" in refusal(tmp_path / "net.pt", as_torch)
    as_npy = io.BytesIO()
    np.save(as_npy, objects, allow_pickle=True)
    refusal(tmp_path / "array.npy", as_npy.getvalue())
    like = {"params": {"w": jnp.zeros(3), "b": jnp.zeros(3)}}
    assert "is object, expected float32" in refusal(tmp_path / "objects.npz", as_npz.getvalue(), like)
    assert not marker.exists()
    pickle.loads(pickle.dumps(Bomb(marker)))
    assert marker.exists()  # it would have


@pytest.mark.parametrize("claimed", [10 * 2**30, 2**60, 2**64 - 1])
def test_a_safetensors_header_of_gigabytes(claimed, tmp_path):
    assert "its header claims" in refusal(tmp_path / "file", claimed.to_bytes(8, "little") + b'{"a":' + b" " * 1000)


def test_a_sparse_file_of_gigabytes_costs_nothing(tmp_path):
    """Its header and size agree: it is refused for its shape, before a byte of its data is read."""
    num_bytes = 16 * 2**30
    header = json.dumps({"w": {"dtype": "F32", "shape": [num_bytes // 4], "data_offsets": [0, num_bytes]}}).encode()
    with open(tmp_path / "sparse", "wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + num_bytes)
    tracemalloc.start()
    with pytest.raises(ValueError, match=r"w has shape \(4294967296,\), expected \(3,\)"):
        load_tree(tmp_path / "sparse", {"w": jnp.zeros(3)})
    assert tracemalloc.get_traced_memory()[1] < ENOUGH_BYTES
    tracemalloc.stop()


@pytest.mark.slow
def test_zip_bombs(tmp_path):
    fits = "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }\n"
    huge = b"\0" * (16 << 20)
    large = "{'descr': '<f4', 'fortran_order': False, 'shape': (1048576, 4), }\n"
    for name, member, message in [
        ("expands", npy(large, huge), r"has shape (1048576, 4), expected (2, 3)"),
        ("beyond its header", npy(fits, huge), "params/w.npy claims float32 (2, 3), but has"),
        ("header", npy(" " * (16 << 20), version=2), "claims 16,777,216 bytes, the limit is 4,096"),
        ("no array", huge, "is no npy array"),
        ("version of tomorrow", npy(fits, b"\0" * 24, minor=1), "is no npy array"),
    ]:
        content = zipped({"params/w.npy": member, "params/b.npy": npy(fits.replace("2, 3", "2,"), b"\0" * 8)})
        assert len(content) < 1 << 20
        assert message in refusal(tmp_path / name, content)
    for compression in (zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        assert "numpy.savez does not use" in refusal(tmp_path / "other", zipped({"params/w.npy": huge}, compression))


def test_a_zip_table_of_contents_of_megabytes(tmp_path):
    many = zipped({f"{i:0200d}": b"" for i in range(20_001)}, zipfile.ZIP_STORED)
    assert "table of contents claims" in refusal(tmp_path / "many", many)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\x81\xa1w" + b"\xdd\xff\xff\xff\xff" * 500, "'w' is a list"),
        (b"\x81\xa1w" * 5000 + b"\xc0", "nested deeper than 32"),
        (
            b"\xdf\xff\xff\xff\xff" + b"".join(b"\xa5%05d\x80" % i for i in range(20_001)),
            "more than 20,000 maps and arrays",
        ),
        (b"\x81\xdb\xff\xff\xff\xff", "expected text of at most 512 bytes"),
        (b"\x81\xa1w\xc6\xff\xff\xff\xff", "'w' is a bytes"),
        (b"\x81\xa1w\xc9\xff\xff\xff\xff\x01", "claims 4,294,967,295 bytes, but the file has 0 left"),
        (b"\x81\xa1w\xc7\x03\x05\x01\x02\x03", "extension type 5"),
        (b"\x81\xa1w\xcb" + b"\0" * 8, "'w' is a value of msgpack type 0xcb"),
        (b"\x81\xff\x80", "a name is a value of msgpack type 0xff"),
        (b"\x81\xa2\xff\xfe\x80", "not UTF-8"),
        (b"\x81\xda\x01\xff" + b"w" * 511 + b"\x81\xa1v\x80", "is longer than 512 characters"),
        (b"\x80extra", "has 5 bytes after its end"),
        (b"\x82\xa1w\x80", "ends in the middle"),
        (b"\x82\xa1w\x80\xa1w\x80", "holds 'w' twice"),
        (b"\x82\xa1w\x81\xa1v\x80\xa3w/v\x80", "holds 'w/v' twice"),
        (b"\x82\x00\x80\xa10\x80", "holds '0' twice"),
    ],
)
def test_msgpack_that_flax_does_not_write(content, message, tmp_path):
    assert message in refusal(tmp_path / "file", content)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (([2, 3], "float32", b"\0" * 20), "claims float32 (2, 3), but has 20 bytes of data"),
        (([2**62, 2**62], "float32", b""), "but has 0 bytes"),
        (([2], "object", b"\0" * 16), "params/b is object, expected float32"),
        (([-2, 3], "float32", b""), "holds a value of msgpack type 0xfe"),
        (([2] * 40, "float32", b""), "is a list of length 40"),
        ((b"", "float32", b""), "is a bytes of length 0"),
        (([2, 3], "float32", b"\0" * 24, 0), "no array of flax.serialization"),
    ],
)
def test_arrays_that_flax_does_not_write(array, message, tmp_path):
    tree = {"params": {"b": msgpack.ExtType(1, msgpack.packb(array))}}
    assert message in refusal(tmp_path / "file", msgpack.packb(tree), {"params": {"b": jnp.zeros(2)}})


def test_names_cannot_speak_to_the_terminal(tmp_path):
    message = refusal(tmp_path / "file", WRITERS["safetensors"]({"\x1b[2Jw" + "x" * 10_000: np.ones(1)}))
    assert message.isprintable()
    assert r"\x1b[2Jwxxx" in message


def test_what_is_no_file_of_tensors(tmp_path):
    refusal(tmp_path / "empty", b"")
    refusal(tmp_path / "text", b"not a checkpoint at all")
    refusal(tmp_path / "compressed", bz2.compress(b"x"))
    assert "it is empty" in refusal(tmp_path / "nothing", b"\x80")
    with pytest.raises(ValueError, match="not a regular file"):
        load_tree(tmp_path, LIKE)
    with pytest.raises(FileNotFoundError, match="no update at"):
        load_tree(tmp_path / "nowhere", LIKE)


@pytest.mark.parametrize("name", WRITERS)
def test_every_truncation_is_refused(name, tmp_path):
    whole = WRITERS[name](TREE)
    for length in range(len(whole)):
        (tmp_path / "file").write_bytes(whole[:length])
        with pytest.raises(ValueError, match="cannot read the update"):
            load_tree(tmp_path / "file", LIKE)


POSITION = st.floats(0, 1, exclude_max=True)
FLIP = st.tuples(st.just("flip"), POSITION, st.integers(1, 255))
INSERT = st.tuples(st.just("insert"), POSITION, st.binary(min_size=1, max_size=12))
CUT = st.tuples(st.just("cut"), POSITION, st.integers(1, 12))


def mutated(content, mutations):
    data = bytearray(content)
    for how, position, value in mutations:
        at = int(position * len(data))
        if how == "flip" and data:
            data[at] ^= value
        elif how == "insert":
            data[at:at] = value
        elif how == "cut":
            del data[at : at + value]
    return bytes(data)


def outcome(load):
    """What `load` returns, and the message of the ValueError that it raises instead."""
    try:
        return load(), ""
    except ValueError as error:
        return None, str(error)


@pytest.mark.parametrize("name", WRITERS)
@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(mutations=st.lists(FLIP | INSERT | CUT, min_size=1, max_size=4))
def test_damage_is_refused_or_harmless(name, mutations, tmp_path):
    """A damaged file becomes finite tensors of the right shapes, or one ValueError."""
    path = tmp_path / "file"
    path.write_bytes(mutated(WRITERS[name](TREE), mutations))
    found, message = outcome(lambda: load_tree(path, LIKE))
    if found is None:
        assert str(path) in message
    else:
        assert found["params"]["w"].shape == (2, 3)
        assert found["params"]["b"].shape == (2,)
        assert all(np.all(np.isfinite(leaf)) for leaf in found["params"].values())


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(mutations=st.lists(FLIP | INSERT | CUT, min_size=1, max_size=4))
def test_damaged_images_are_refused_or_harmless(mutations, tmp_path):
    images = {"inputs": np.linspace(0, 1, 24, dtype=np.float32).reshape(2, 2, 2, 3), "labels": np.array([0, 1])}
    path = tmp_path / "file"
    path.write_bytes(mutated(WRITERS["npz"](images), mutations))
    batch, message = outcome(lambda: load_batch(path, (2, 2, 3), 2))
    if batch is None:
        assert str(path) in message
    else:
        assert 0 <= np.min(batch.inputs) <= np.max(batch.inputs) <= 1
        assert set(batch.labels.tolist()) <= {0, 1}
