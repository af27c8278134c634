"""Generates the embedded photo set: ten scenes from six photographs in scikit-image's wheel, at two sizes.

    python -m jaxinvert.data.make_photos    # rewrites photos/32 and photos/224; needs scikit-image

The photographs are in the public domain or CC0 (`photos/LICENSES` names authors and sources). The pixels
depend only on the wheel's files, Pillow's Lanczos filter and its JPEG decoder; nothing is random. The
files' bytes may differ from run to run, because protobuf gives an example's fields no order.

- `test`: one square crop per scene, at 32 and at 224 px. The first six scenes are crops of the six whole
  photographs, the last four are details (a face, the shuttle model, the helmet, the cat's eye). Every scene is its
  own class, which gives ten correctly named classes for the usual 10-class models.
- `train` (32 px only): the photographs at about half resolution, cut into 32-px tiles; flat tiles are omitted. A tile
  belongs to the smallest scene that contains its center. Tiles show parts of the test scenes at another scale, so the
  two splits are suitable for attacks and priors, but not for measuring generalization.

The format is array_record. Parquet would avoid a dependency on macOS (tensorflow-datasets requires array_record on
Linux only), but in TFDS 4.9.10 it loses data: the writer drops examples after the first hundred, and the reader
ignores split slices.
"""

import pathlib
import shutil
import tempfile
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from jaxinvert.data import pixels
from jaxinvert.data.prepared import PHOTOS_DIR
from jaxinvert.data.tfds import import_tfds

SIZES = (32, 224)
TILE = 32
MIN_TILE_STD = 10.0
"""Tiles with a smaller standard deviation (pixels in 0 ... 255) show sky or the black frame and are omitted."""
MAX_TILES_PER_CLASS = 40


class Scene(NamedTuple):
    """One class: a square region of a photograph.

    Attributes:
      name: the class name.
      file: the photograph's file in `skimage/data`.
      box: left, upper, right, lower in pixels of that file.
    """

    name: str
    file: str
    box: tuple[int, int, int, int]


SCENES = (
    Scene("astronaut", "astronaut.png", (40, 0, 440, 400)),
    Scene("cat", "chelsea.png", (75, 0, 375, 300)),
    Scene("coffee", "coffee.png", (100, 0, 500, 400)),
    Scene("rocket", "rocket.jpg", (106, 0, 533, 427)),
    Scene("retina", "retina.jpg", (0, 0, 1411, 1411)),
    Scene("galaxies", "hubble_deep_field.jpg", (560, 300, 1000, 740)),
    Scene("face", "astronaut.png", (136, 0, 316, 180)),
    Scene("shuttle", "astronaut.png", (292, 0, 512, 220)),
    Scene("helmet", "astronaut.png", (272, 272, 512, 512)),
    Scene("eye", "chelsea.png", (110, 55, 250, 195)),
)

TILED_SHORT_SIDE = {
    "astronaut.png": 256,
    "chelsea.png": 150,
    "coffee.png": 200,
    "rocket.jpg": 214,
    "retina.jpg": 256,
    "hubble_deep_field.jpg": 256,
}
"""Shorter side, in pixels, at which a photograph is tiled: half its resolution, at most 256."""


class Example(NamedTuple):
    """One labeled image: `[H, W, 3]` uint8, its class and its origin."""

    name: str
    pixels: np.ndarray
    label: int


def crop_scenes(photos: dict[str, Image.Image], size: int) -> list[Example]:
    """Cuts the `test` split: every scene at `size` pixels, in class order."""
    crops = []
    for label, scene in enumerate(SCENES):
        crop = photos[scene.file].crop(scene.box).resize((size, size), Image.Resampling.LANCZOS)
        crops.append(Example(scene.name, np.asarray(crop), label))
    return crops


def cut_tiles(photos: dict[str, Image.Image]) -> list[Example]:
    """Cuts the `train` split: textured tiles, round-robin over classes, the most textured tile of a class first."""
    by_class: dict[int, list[tuple[float, Example]]] = {label: [] for label in range(len(SCENES))}
    for file, short_side in TILED_SHORT_SIDE.items():
        photo = photos[file]
        scale = min(photo.size) / short_side
        small = photo.resize((round(photo.width / scale), round(photo.height / scale)), Image.Resampling.LANCZOS)
        left, top = small.width % TILE // 2, small.height % TILE // 2
        for y in range(top, small.height - TILE + 1, TILE):
            for x in range(left, small.width - TILE + 1, TILE):
                tile = np.asarray(small.crop((x, y, x + TILE, y + TILE)))
                spread = float(tile.astype(np.float64).std(axis=(0, 1)).mean())
                if spread < MIN_TILE_STD:
                    continue
                label = label_at(file, (x + TILE / 2) * scale, (y + TILE / 2) * scale)
                name = f"{pathlib.Path(file).stem} tile at {x},{y}"
                by_class[label].append((-spread, Example(name, tile, label)))
    ranked = [[example for _, example in sorted(tiles, key=_rank)] for tiles in by_class.values()]
    return [tiles[turn] for turn in range(MAX_TILES_PER_CLASS) for tiles in ranked if turn < len(tiles)]


def label_at(file: str, x: float, y: float) -> int:
    """Returns the class at a pixel of a photograph: the smallest scene that contains it, else the photograph's."""
    scenes = [(label, scene) for label, scene in enumerate(SCENES) if scene.file == file]
    inside = [
        (scene.box[2] - scene.box[0], label)
        for label, scene in scenes
        if scene.box[0] <= x < scene.box[2] and scene.box[1] <= y < scene.box[3]
    ]
    return min(inside)[1] if inside else scenes[0][0]


def make(target: pathlib.Path) -> None:
    """Writes the prepared sets `target/32` and `target/224`, replacing earlier contents.

    Raises:
      ModuleNotFoundError: scikit-image is not installed (`pip install scikit-image`).
    """
    photos = read_photos()
    for size in SIZES:
        splits = {"test": crop_scenes(photos, size)}
        if size == TILE:
            splits["train"] = cut_tiles(photos)
        with tempfile.TemporaryDirectory() as scratch:
            written = _write(splits, size, pathlib.Path(scratch))
            shutil.rmtree(target / str(size), ignore_errors=True)
            shutil.copytree(written, target / str(size))


def read_photos() -> dict[str, Image.Image]:
    """Reads the six photographs from scikit-image's installed wheel, as RGB."""
    import skimage

    folder = pathlib.Path(skimage.__path__[0]) / "data"
    photos = {}
    for file in TILED_SHORT_SIDE:
        with Image.open(folder / file) as photo:
            photos[file] = photo.convert("RGB")
    return photos


def _rank(ranked: tuple[float, Example]) -> tuple[float, str]:
    return ranked[0], ranked[1].name


def _write(splits: dict[str, list[Example]], size: int, folder: pathlib.Path) -> pathlib.Path:
    """Prepares the splits with TFDS; returns the folder of the prepared set."""
    tfds = import_tfds()

    def info(self: Any) -> Any:
        features = {
            "id": tfds.features.Text(),
            "image": tfds.features.Image(shape=(size, size, 3), encoding_format="png"),
            "label": tfds.features.ClassLabel(names=[scene.name for scene in SCENES]),
        }
        return tfds.core.DatasetInfo(
            builder=self,
            description="Ten scenes from six public-domain or CC0 photographs; see LICENSES.",
            features=tfds.features.FeaturesDict(features),
            supervised_keys=("image", "label"),
            disable_shuffling=True,  # demos show the first images
        )

    def split_generators(self: Any, dl_manager: Any) -> dict[str, Iterator[tuple[int, dict[str, Any]]]]:
        return {split: self._generate_examples(examples) for split, examples in splits.items()}

    def generate_examples(self: Any, examples: list[Example]) -> Iterator[tuple[int, dict[str, Any]]]:
        for index, example in enumerate(examples):
            png = pixels.encode_png(example.pixels, optimize=True)
            yield index, {"id": example.name, "image": png, "label": example.label}

    with tfds.core.registered.skip_registration():
        builder_cls = type(
            "Photos",
            (tfds.core.GeneratorBasedBuilder,),
            {
                "name": "photos",
                "VERSION": tfds.core.Version("1.0.0"),
                "_info": info,
                "_split_generators": split_generators,
                "_generate_examples": generate_examples,
                "__module__": "jaxinvert.data.make_photos",
            },
        )
    builder = builder_cls(data_dir=folder, file_format="array_record")
    builder.download_and_prepare()
    return pathlib.Path(builder.data_dir)


if __name__ == "__main__":
    make(PHOTOS_DIR)
