"""NumPy archives: layout, defaults, and everything that is refused."""

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
        ({"test_images": np.zeros((2, 8, 8, 3), np.uint8)}, "2 images for 3 labels"),
        ({"test_labels": np.array([0.0, np.nan, 2.0])}, "test_labels holds values that are not finite"),
        ({"test_labels": np.array([[[0, 1, 2]]])}, "expected integers"),
        ({"test_labels": np.array(["a", "b", "c"])}, "expected integers"),
        ({"test_labels": np.array([0, 1, -1])}, "ranges from -1"),
        ({"test_labels": np.array([0, 1, 4])}, "labels reach 4"),
        ({"test_labels": None}, "no array test_labels"),
        ({"mean": np.array([0.5, 0.5, 0.5])}, "one of mean and std"),
        ({"mean": np.array([125.0] * 3), "std": np.array([60.0] * 3)}, "outside"),
        ({"mean": np.array([0.5] * 3), "std": np.array([0.0] * 3)}, "outside"),
        ({"mean": np.array([0.5] * 2), "std": np.array([0.5] * 2)}, "expected 3 floats"),
        ({"test_images": np.array([{}], dtype=object)}, "allow_pickle"),
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
