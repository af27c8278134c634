"""The embedded set: what it holds, that TFDS itself opens it, and that the script remakes it."""

import pathlib
import subprocess
import sys

import numpy as np
import pytest

from jaxinvert import data
from jaxinvert.data import make_photos, pixels
from jaxinvert.data.prepared import PHOTOS_DIR
from jaxinvert.data.tfds import import_tfds

SCENES = ("astronaut", "cat", "coffee", "rocket", "retina", "galaxies", "face", "shuttle", "helmet", "eye")


def test_default_split_is_one_scene_per_class():
    photos = data.load("photos")
    assert photos.images.shape == (10, 32, 32, 3)
    assert photos.images.dtype == np.float32
    assert photos.labels.dtype == np.int32
    np.testing.assert_array_equal(photos.labels, range(10))
    assert photos.class_names == SCENES
    assert photos.num_classes == 10
    assert photos.images.min() >= 0
    assert photos.images.max() <= 1
    assert photos.mean == (0.5, 0.5, 0.5)
    assert photos.std == (0.25, 0.25, 0.25)


def test_train_holds_distinct_textured_tiles_of_every_class():
    tiles = data.load("photos", split="train")
    assert len(tiles.images) == 237
    assert set(tiles.labels) == set(range(10))
    np.testing.assert_array_equal(tiles.labels[:10], range(10))  # classes take turns
    assert len({tile.tobytes() for tile in tiles.images}) == 237
    assert (tiles.images.std(axis=(1, 2)).mean(axis=1) * 255 >= make_photos.MIN_TILE_STD - 1e-3).all()


def test_large_photos_are_the_same_scenes():
    # Downsampling by 7 with a box filter is close to the Lanczos crop from the full photograph.
    small, large = data.load("photos"), data.load("photos", size=224)
    assert large.images.shape == (10, 224, 224, 3)
    boxes = large.images.reshape(10, 32, 7, 32, 7, 3).mean((2, 4))
    assert np.abs(boxes - small.images).mean(axis=(1, 2, 3)).max() < 0.03


def test_other_sizes_are_resampled():
    assert data.load("photos", size=64).images.shape == (10, 64, 64, 3)
    assert data.load("photos", split="test[:2]", size=16).images.shape == (2, 16, 16, 3)


def test_tiles_come_in_32_px_only():
    with pytest.raises(ValueError, match=r"'train' at 32 px only, not at size=224"):
        data.load("photos", split="train[:4]", size=224)


@pytest.mark.parametrize("size", [0, -1, 5000])
def test_size_is_checked(size):
    with pytest.raises(ValueError, match=f"size={size}"):
        data.load("photos", size=size)


@pytest.mark.parametrize(
    ("spec", "length"),
    [("test[:3]", 3), ("test[-2:]", 2), ("test[20%:50%]", 3), ("test+train[:5]", 15), ("all", 247)],
)
def test_split_expressions(spec, length):
    photos = data.load("photos", split=spec)
    assert len(photos.images) == len(photos.labels) == length
    assert photos.num_classes == 10  # a slice keeps the classes


def test_slice_selects_the_right_rows():
    whole = data.load("photos", split="train")
    part = data.load("photos", split="train[100:103]")
    np.testing.assert_array_equal(part.images, whole.images[100:103])
    np.testing.assert_array_equal(part.labels, whole.labels[100:103])


@pytest.mark.parametrize("spec", ["nope", "test[", "test[:99]", "test[:0]", "test[5:2]", "", "test[2]"])
def test_bad_split_expressions_name_the_splits(spec):
    with pytest.raises(ValueError, match=r"split=.*test.*10.*train.*237"):
        data.load("photos", split=spec)


def test_tfds_reads_it_directly():
    tfds = import_tfds()
    builder = tfds.builder_from_directory(PHOTOS_DIR / "32")
    source = builder.as_data_source("train[:7]", decoders={"image": tfds.decode.SkipDecoding()})
    assert len(source) == 7
    assert len(builder.as_data_source("train")) == 237
    png = pixels.decode_png(source[6]["image"])
    loaded = data.load("photos", split="train[6:7]")
    np.testing.assert_array_equal(png, np.round(loaded.images[0] * 255).astype(np.uint8))


def test_ships_small_with_a_licence_for_every_photograph():
    files = [path for path in PHOTOS_DIR.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 2_000_000
    licenses = (PHOTOS_DIR / "LICENSES").read_text(encoding="utf-8")
    for file in make_photos.TILED_SHORT_SIDE:
        section = licenses.split(f"\n{file} ")[1].split("\n\n")[0]
        assert "CC0 1.0" in section or "public domain" in section
    for scene in make_photos.SCENES:
        assert scene.name in licenses


def test_script_remakes_the_pixels(tmp_path):
    pytest.importorskip("skimage", reason="the photographs are in scikit-image's wheel")
    photos = make_photos.read_photos()
    made = {32: make_photos.crop_scenes(photos, 32), 224: make_photos.crop_scenes(photos, 224)}
    for size, crops in made.items():
        shipped = np.round(data.load("photos", size=size).images * 255)
        for crop, image in zip(crops, shipped, strict=True):
            # JPEG decoders may differ by a gray level or two; a wrong crop differs by far more.
            assert np.abs(crop.pixels - image).mean() < 0.5
    tiles = make_photos.cut_tiles(photos)
    assert [tile.label for tile in tiles] == data.load("photos", split="train").labels.tolist()


def test_script_writes_a_prepared_folder(tmp_path, monkeypatch):
    pytest.importorskip("skimage", reason="the photographs are in scikit-image's wheel")
    monkeypatch.setattr(make_photos, "SIZES", (32,))
    make_photos.make(tmp_path)
    builder = import_tfds().builder_from_directory(tmp_path / "32")
    assert {name: info.num_examples for name, info in builder.info.splits.items()} == {
        "test": 10,
        "train": 237,
    }


def test_label_at_prefers_the_smallest_scene():
    names = [SCENES[make_photos.label_at("astronaut.png", x, y)] for x, y in [(220, 80), (400, 100), (10, 500)]]
    assert names == ["face", "shuttle", "astronaut"]


def test_import_leaves_tfds_alone():
    root = pathlib.Path(__file__).parents[2]
    code = "import sys, jaxinvert.data; sys.exit('tensorflow_datasets' in sys.modules)"
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, cwd=root)


def test_names_and_unknown_names():
    assert data.names() == ("photos", "cifar10", "cifar100", "mnist", "fashion_mnist")
    with pytest.raises(FileNotFoundError, match="no dataset 'cifar11': expected photos, cifar10"):
        data.load("cifar11")
    with pytest.raises(ValueError, match="neither a folder"):
        data.load(__file__)
