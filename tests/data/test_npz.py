"""NumPy archives: layout, defaults, and everything that is refused."""

import tracemalloc
import zipfile

import numpy as np
import pytest

from jaxinvert import data
from jaxinvert.data import npz


def arrays(**changes):
    rng = np.random.default_rng(0)
    content = {
        "train_images": rng.integers(0, 256, (6, 8, 8, 3), dtype=np.uint8),
        "train_labels": np.array([0, 1, 2, 0, 1, 2], np.uint8),
        "test_images": rng.integers(0, 256, (3, 8, 8, 3), dtype=np.uint8),
        "test_labels": np.array([2, 1, 0]),
        "class_names": np.array(["a", "b", "c", "d"]),
    }
    content.update(changes)
    return {key: value for key, value in content.items() if value is not None}


def load(tmp_path, content, **options):
    path = tmp_path / "set.npz"
    np.savez(path, **content)
    return data.load(path, **options)


def test_splits_and_slices(tmp_path):
    content = arrays()
    test = load(tmp_path, content)
    np.testing.assert_allclose(test.images * 255, content["test_images"], atol=1e-4)
    assert test.images.dtype == np.float32
    assert test.labels.dtype == np.int32
    assert test.labels.tolist() == [2, 1, 0]
    assert test.class_names == ("a", "b", "c", "d")
    assert test.num_classes == 4
    part = load(tmp_path, content, split="train[2:4]+test[:1]", size=16)
    assert part.labels.tolist() == [2, 0, 2]
    assert part.images.shape == (3, 16, 16, 3)


def test_normalization_defaults(tmp_path):
    assert load(tmp_path, arrays()).mean == (0.4914, 0.4822, 0.4465)
    assert load(tmp_path, arrays()).std == (0.2470, 0.2435, 0.2616)
    stored = load(tmp_path, arrays(mean=np.array([0.25, 0.5, 0.75]), std=np.array([0.5, 0.25, 0.125])))
    assert (stored.mean, stored.std) == ((0.25, 0.5, 0.75), (0.5, 0.25, 0.125))
    gray = load(tmp_path, {"images": np.zeros((2, 5, 5), np.uint8), "labels": np.array([0, 4])})
    assert (gray.mean, gray.std) == ((0.5,), (0.25,))
    assert gray.images.shape == (2, 5, 5, 1)
    assert gray.class_names == ("0", "1", "2", "3", "4")


def test_classes_without_names_come_from_the_whole_file(tmp_path):
    assert load(tmp_path, arrays(class_names=None), split="test[2:]").num_classes == 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"test_images": np.zeros((3, 8, 8, 3), np.float32)}, "test_images is float32"),
        ({"test_images": np.zeros((3, 8, 8, 4), np.uint8)}, "C = 1 or 3"),
        ({"test_images": np.zeros((2, 8, 8, 3), np.uint8)}, r"test_images has 2 images for test_labels \(3,\)"),
        ({"test_labels": np.array([0.0, np.nan, 2.0])}, "test_labels holds values that are not finite"),
        ({"test_labels": np.zeros((3, 1, 1))}, "expected integers"),
        ({"test_labels": np.array(["a", "b", "c"])}, "expected integers"),
        ({"test_labels": np.array([0, 1, -1])}, "ranges from -1"),
        ({"test_labels": np.array([0, 1, 4])}, "labels reach 4"),
        ({"test_labels": None}, "no array test_labels"),
        ({"mean": np.array([0.5, 0.5, 0.5])}, "one of mean and std"),
        ({"mean": np.array([125.0] * 3), "std": np.array([60.0] * 3)}, "outside"),
        ({"mean": np.array([0.5] * 3), "std": np.array([0.0] * 3)}, "outside"),
        ({"mean": np.array([0.5] * 2), "std": np.array([0.5] * 2)}, "expected 3 floats"),
        ({"test_images": np.array([{}], dtype=object)}, "test_images is object"),
    ],
)
def test_invalid_arrays_are_named(tmp_path, changes, message):
    with pytest.raises(ValueError, match=rf"cannot read the dataset .*set\.npz.*{message}"):
        load(tmp_path, arrays(**changes))


def test_other_splits_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"the splits are train \(6\), test \(3\)"):
        load(tmp_path, arrays(), split="validation")


def test_no_images(tmp_path):
    with pytest.raises(ValueError, match="no array SPLIT_images"):
        load(tmp_path, {"x": np.zeros(3)})


def test_damaged_files(tmp_path, monkeypatch):
    path = tmp_path / "set.npz"
    np.savez_compressed(path, **arrays())
    whole = path.read_bytes()
    for content in (b"", b"not a zip", whole[: len(whole) // 2], whole[:300] + b"\xff" * 50 + whole[350:]):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"cannot read the dataset .*set\.npz"):
            data.load(path, split="train")  # the first array, which the last damage hits
    path.write_bytes(whole)
    monkeypatch.setattr(npz, "MAX_BYTES", 100)
    with pytest.raises(ValueError, match="the limit is 100"):
        data.load(path)


def written(tmp_path, members):
    """A dataset of raw members in place of its arrays."""
    path = tmp_path / "set.npz"
    np.savez(path, images=np.zeros((2, 4, 4), np.uint8), labels=np.array([0, 1]))
    with zipfile.ZipFile(path) as archive:
        content = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, member in (content | members).items():
            archive.writestr(name, member)
    return path


def header(shape, descr="|u1", length=None):
    text = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY\x01\x00" + (len(text) if length is None else length).to_bytes(2, "little") + text


@pytest.mark.parametrize(
    ("member", "message"),
    [
        (b"no npy", "is no npy array"),
        (b"", "is no npy array"),
        (header((10**21,)), "claims uint8 .*but has 0 bytes"),
        (header((10**7, 10**7, 10**7)), "but has 0 bytes"),
        (header((2, 4, 4), length=60_000) + bytes(32), "claims 60,000 bytes"),
        (header("(2, 4, 4").replace(b"}", b"") + bytes(32), "not that of a plain array"),
        (header("(2, -4, 4)") + bytes(32), "not that of a plain array"),
        (header("(2, 4, 4)", "O8") + bytes(32), "unknown type|objects|is object"),
        (header("(2, 4, 4)", "|V999") + bytes(32 * 999), "is void"),
        (header("(2, 4, 4)", "[('a', '<f4')]") + bytes(128), "not that of a plain array"),
        (header((2**20, 2**10, 3)) + bytes(100), "but has 100 bytes"),
    ],
)
@pytest.mark.parametrize("name", ["images.npy", "labels.npy", "class_names.npy"])
def test_members_that_numpy_does_not_write(tmp_path, name, member, message):
    with pytest.raises(ValueError, match=rf"cannot read the dataset .*set\.npz.*({message}|expected)"):
        data.load(written(tmp_path, {name: member}))


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.array([0, 2_000_000_000]), "the labels reach 2,000,000,000, the limit is 100,000 classes"),
        (np.array([0, 2**63], np.uint64), "ranges from 0 to 9223372036854775808"),
        (np.zeros((2, 200_000), np.float32), "has 200,000 columns"),
        (np.zeros((2, 0), np.float32), "has 0 columns"),
        (np.array([0.0, 1e300]), "float32 cannot hold"),
        (np.array([0, np.inf]), "not finite"),
    ],
)
def test_labels_beyond_reason_cost_nothing(tmp_path, labels, message):
    np.savez(tmp_path / "set.npz", images=np.zeros((2, 4, 4), np.uint8), labels=labels)
    tracemalloc.start()
    with pytest.raises(ValueError, match=message):
        data.load(tmp_path / "set.npz")
    assert tracemalloc.get_traced_memory()[1] < 32 << 20
    tracemalloc.stop()


def test_a_compressed_bomb_is_not_expanded(tmp_path, monkeypatch):
    monkeypatch.setattr(npz, "MAX_BYTES", 32 << 20)
    images = np.zeros((8, 1024, 1024), np.uint8)
    np.savez_compressed(tmp_path / "set.npz", images=images, labels=np.arange(8))
    tracemalloc.start()
    with pytest.raises(ValueError, match="its images need 41,943,040 bytes, the limit is 33,554,432"):
        data.load(tmp_path / "set.npz")
    assert tracemalloc.get_traced_memory()[1] < 8 << 20
    tracemalloc.stop()
    assert data.load(tmp_path / "set.npz", split="test[:1]").images.shape == (1, 1024, 1024, 1)
    with pytest.raises(ValueError, match="its images need"):
        data.load(tmp_path / "set.npz", split="test[:1]", size=4096)


def test_class_names_can_be_printed_and_written(tmp_path):
    names = np.array(["\x1b[2J", "\ud800", "x" * 1000, "d"])
    names_read = load(tmp_path, arrays(class_names=names)).class_names
    assert names_read == (r"\x1b[2J", r"\ud800", "x" * 200 + "...", "d")
    with pytest.raises(ValueError, match=r"100001,.*the limit is 100,000 names"):
        load(tmp_path, arrays(class_names=np.zeros(100_001, "U1")))
    beyond_unicode = written(
        tmp_path, {"class_names.npy": header("(2,)", "<U1") + np.array([2**31, 65], np.uint32).tobytes()}
    )
    with pytest.raises(ValueError, match="cannot read the dataset"):
        data.load(beyond_unicode)


def test_two_arrays_of_one_split_are_refused(tmp_path):
    content = arrays() | {"images": np.zeros((2, 4, 4), np.uint8), "labels": np.array([0, 1])}
    with pytest.raises(ValueError, match="both images and test_images"):
        load(tmp_path, content)
