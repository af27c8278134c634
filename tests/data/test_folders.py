"""Folders of images: layouts, labels, and files that mean harm."""

import os
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from jaxinvert import data
from jaxinvert.data import folders, pixels


def save(path, color=(255, 0, 0), size=(40, 40), **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, color).save(path, **options)
    return path


def png_claiming(width, height):
    """A PNG whose header claims a size and whose data is missing."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + header
    crc = struct.pack(">I", zlib.crc32(chunk))
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", len(header)) + chunk + crc


def test_flat_folder_makes_every_file_a_class(tmp_path):
    for name in ("b.png", "a.jpg", "c.webp", "d.bmp"):
        save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("not an image")
    (tmp_path / ".hidden.png").write_text("not an image either")
    loaded = data.load(tmp_path)
    assert loaded.class_names == ("a.jpg", "b.png", "c.webp", "d.bmp")
    np.testing.assert_array_equal(loaded.labels, [0, 1, 2, 3])
    assert loaded.images.shape == (4, 32, 32, 3)
    assert loaded.mean == (0.5,) * 3
    np.testing.assert_allclose(loaded.images[1, 5, 5], [1, 0, 0], atol=1e-6)  # lossless formats keep the color
    assert data.load(tmp_path, size=17).images.shape == (4, 17, 17, 3)


def test_subfolders_are_classes(tmp_path):
    save(tmp_path / "dog" / "1.png", (0, 0, 255))
    save(tmp_path / "cat" / "deep" / "2.png", (0, 255, 0))
    loaded = data.load(str(tmp_path))
    assert loaded.class_names == ("cat", "dog")
    np.testing.assert_array_equal(loaded.labels, [0, 1])
    np.testing.assert_allclose(loaded.images[:, 0, 0], [[0, 1, 0], [0, 0, 1]])


def test_splits_share_their_classes(tmp_path):
    save(tmp_path / "train" / "cat" / "1.png")
    save(tmp_path / "train" / "dog" / "1.png")
    save(tmp_path / "train" / "dog" / "2.png")
    save(tmp_path / "test" / "dog" / "1.png")
    assert data.load(tmp_path).labels.tolist() == [1]
    train = data.load(tmp_path, split="train[1:]")
    assert train.labels.tolist() == [1, 1]
    assert train.num_classes == 2
    assert data.load(tmp_path, split="train+test").labels.tolist() == [0, 1, 1, 1]
    with pytest.raises(ValueError, match=r"Unknown split 'validation'"):
        data.load(tmp_path, split="validation")


def test_a_class_named_like_a_split(tmp_path):
    save(tmp_path / "train" / "1.png")
    save(tmp_path / "plane" / "1.png")
    assert data.load(tmp_path).class_names == ("plane", "train")


def test_image_beside_splits(tmp_path):
    save(tmp_path / "train" / "1.png")
    save(tmp_path / "stray.png")
    with pytest.raises(ValueError, match="both next to and inside"):
        data.load(tmp_path, split="train")


def test_unsplit_folder_has_no_train(tmp_path):
    # Serving the same images as train and test would let an audit train on its victims unawares.
    save(tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"the splits are test \(1\)"):
        data.load(tmp_path, split="train")


def test_single_class_gets_an_unused_second(tmp_path):
    save(tmp_path / "me.png")
    loaded = data.load(tmp_path)
    assert loaded.num_classes == 2
    assert loaded.class_names == ("me.png", "(unused)")


def test_empty_and_mixed_folders(tmp_path):
    with pytest.raises(ValueError, match=r"holds no \.png"):
        data.load(tmp_path)
    save(tmp_path / "a.png")
    save(tmp_path / "cat" / "b.png")
    with pytest.raises(ValueError, match="both next to and inside its subfolders"):
        data.load(tmp_path)


def test_center_crop(tmp_path):
    # Three vertical bands of 40 px: the center square is the green one alone.
    bands = np.zeros((40, 120, 3), np.uint8)
    for channel in range(3):
        bands[:, 40 * channel : 40 * channel + 40, channel] = 255
    Image.fromarray(bands).save(tmp_path / "bands.png")
    image = data.load(tmp_path).images[0]
    np.testing.assert_allclose(image, np.broadcast_to([0.0, 1.0, 0.0], (32, 32, 3)))


def test_exif_orientation(tmp_path):
    # Orientation 3 is a half turn: what is stored at the bottom is shown at the top.
    halves = np.zeros((32, 32, 3), np.uint8)
    halves[16:] = 255
    exif = Image.Exif()
    exif[0x0112] = 3
    Image.fromarray(halves).save(tmp_path / "turned.png", exif=exif)
    image = data.load(tmp_path).images[0]
    assert image[:16].min() == 1
    assert image[16:].max() == 0


@pytest.mark.parametrize(
    ("mode", "value", "expected"),
    [
        ("L", 51, (51, 51, 51)),
        ("1", 1, (255, 255, 255)),
        ("RGBA", (255, 0, 0, 0), (255, 255, 255)),  # transparent: the white below
        ("RGBA", (255, 0, 0, 255), (255, 0, 0)),
        ("LA", (0, 0), (255, 255, 255)),
        ("I;16", 0x3300, (51, 51, 51)),
        ("P", 7, None),
    ],
)
def test_pixel_modes_become_rgb(tmp_path, mode, value, expected):
    image = Image.new(mode, (8, 8), value)
    image.save(tmp_path / "image.png")
    pixel = pixels.read_square(tmp_path / "image.png", 8)
    assert pixel.shape == (8, 8, 3)
    assert pixel.dtype == np.uint8
    if expected:
        np.testing.assert_array_equal(pixel[4, 4], expected)


@pytest.mark.parametrize("damage", ["truncated", "garbage", "empty", "flipped", "gif"])
def test_damaged_file_is_named(tmp_path, damage):
    path = tmp_path / "bad.png"
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    whole = path.read_bytes()
    if damage == "gif":
        Image.fromarray(noise).save(path, format="GIF")  # readable by Pillow, but not among our formats
    else:
        path.write_bytes(
            {
                "truncated": whole[: len(whole) // 2],
                "garbage": b"\x00" * 100,
                "empty": b"",
                "flipped": whole[:60] + bytes(byte ^ 0xFF for byte in whole[60:80]) + whole[80:],
            }[damage]
        )
    save(tmp_path / "good.png")
    with pytest.raises(ValueError, match=r"cannot read the image .*bad\.png"):
        data.load(tmp_path)
    assert data.load(tmp_path, split="test[1:]").labels.tolist() == [1]  # only what is selected is decoded


@pytest.mark.parametrize("side", [9_000, 12_000, 60_000])
def test_decompression_bomb(tmp_path, side):
    # Below Pillow's warning, between its warning and its error, above both.
    (tmp_path / "bomb.png").write_bytes(png_claiming(side, side))
    with pytest.raises(ValueError, match=r"bomb\.png.*(pixels|bomb)"):
        data.load(tmp_path)


@pytest.mark.parametrize(
    ("mode", "suffix", "side"),
    [("RGBA", "png", 3500), ("I;16", "png", 3500), ("P", "png", 3500), ("RGB", "webp", 2000), ("RGB", "jpg", 3500)],
)
def test_small_files_of_many_pixels_are_not_decoded(tmp_path, monkeypatch, mode, suffix, side):
    """One color compresses a thousandfold, whatever the mode; a photograph of this size has megabytes."""
    path = tmp_path / f"bomb.{suffix}"
    Image.new(mode, (side, side)).save(path)
    assert path.stat().st_size < 200_000
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("it was decoded"))
    with pytest.raises(ValueError, match=r"bomb.*claims \d+ x \d+ pixels, the limit for its"):
        pixels.read_square(path, 8)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "I;16", "L", "CMYK"])
def test_conversion_in_strips_changes_nothing(tmp_path, monkeypatch, mode):
    rng = np.random.default_rng(0)
    colors = rng.integers(0, 256, (40, 50, len(Image.new(mode, (1, 1)).getbands())), dtype=np.uint8)
    image = (
        Image.fromarray(rng.integers(0, 2**16, (40, 50), dtype=np.uint16))
        if mode == "I;16"
        else Image.merge(mode, [Image.fromarray(channel) for channel in np.moveaxis(colors, -1, 0)])
    )
    path = tmp_path / ("image.jpg" if mode == "CMYK" else "image.png")
    image.save(path)
    whole = pixels.read_square(path, 16)
    monkeypatch.setattr(pixels, "_STRIP_PIXELS", 120)
    np.testing.assert_array_equal(pixels.read_square(path, 16), whole)


def test_names_of_classes_can_be_printed_and_written(tmp_path):
    for name in ("\x1b]0;title\x07", "caf\udce9", "plain"):
        save(tmp_path / name / "a.png")
    assert data.load(tmp_path).class_names == (r"\x1b]0;title\x07", r"caf\udce9", "plain")


def test_special_files_are_not_images(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    for path in (tmp_path / "pipe.png", tmp_path):
        with pytest.raises(ValueError, match="not a regular file"):
            pixels.read_square(path, 8)


def test_caps(tmp_path, monkeypatch):
    for name in "abc":
        save(tmp_path / f"{name}.png")
    with monkeypatch.context() as patch:
        patch.setattr(folders, "MAX_FILES", 2)
        with pytest.raises(ValueError, match="more than 2 images"):
            data.load(tmp_path)
    monkeypatch.setattr(folders, "MAX_BYTES", 2 * 32 * 32 * 3 * 4)
    assert len(data.load(tmp_path, split="test[:2]").images) == 2
    with pytest.raises(ValueError, match=r"3 images at 32 px exceed .* select fewer"):
        data.load(tmp_path)


def test_links_and_pipes_are_not_followed(tmp_path):
    outside = save(tmp_path / "outside" / "secret.png")
    inside = tmp_path / "inside"
    save(inside / "cat" / "a.png")
    (inside / "cat" / "link.png").symlink_to(outside)
    (inside / "dog").symlink_to(outside.parent, target_is_directory=True)
    (inside / "loop").symlink_to(inside, target_is_directory=True)
    (inside / "train").symlink_to(outside.parent, target_is_directory=True)
    os.mkfifo(inside / "cat" / "pipe.png")
    assert data.load(inside).class_names == ("cat", "(unused)")
    assert data.load(tmp_path / "outside" / ".." / "inside").labels.tolist() == [0]
