"""What `fuzz` reads: every entry by which a file from outside comes in, with valid files and a check of what is read.

A check compares what was accepted with an independent reader of the format (NumPy, safetensors, Flax), where there is
one: a file that the package reads differently, or reads although the other refuses it, is accepted wrongly.
"""

import hashlib
import io
import json
import random
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from flax import serialization, traverse_util
from PIL import Image

from jaxinvert import data, files, jobs, manifest, models, report, sweeps
from jaxinvert.cli.audit import Audit
from jaxinvert.data import pixels
from jaxinvert.data.prepared import PHOTOS_DIR
from jaxinvert.observation import captures
from jaxinvert.priors import generators

Files = Mapping[str, bytes]
TREE = {"params": {"w": np.linspace(-1, 1, 6, dtype=np.float32).reshape(2, 3), "b": np.array([1, 2], np.float32)}}
LIKE = jax.eval_shape(lambda: jax.tree.map(jnp.asarray, TREE))


class Entry(NamedTuple):
    """One entry.

    Attributes:
      name: for people.
      seeds: valid inputs: files by name in a folder.
      load: reads them from the folder.
      check: what is wrong with what was read, or "".
      weight: share of the inputs, small where reading is slow.
      repaired: puts checksums right after a mutation, so that what lies behind them is reached.
    """

    name: str
    seeds: Sequence[Files]
    load: Callable[[Path], Any]
    check: Callable[[Any, Path], str] = lambda found, folder: ""
    weight: float = 1.0
    repaired: Callable[[Files, random.Random], Files] = lambda content, rng: content


def npz_bytes(arrays: Mapping[str, Any], *, compressed: bool = False) -> bytes:
    """An npz file."""
    file = io.BytesIO()
    (np.savez_compressed if compressed else np.savez)(file, **arrays)
    return file.getvalue()


def entries() -> tuple[Entry, ...]:
    """All entries."""
    return (
        *_tensor_entries(),
        *_data_entries(),
        *_model_entries(),
        *_text_entries(),
        _sweep_entry(),
        _prepared_entry(),
    )


def _tensor_entries() -> tuple[Entry, ...]:
    flat: dict[str, Any] = traverse_util.flatten_dict(TREE, sep="/")  # pyright: ignore[reportAssignmentType]
    half = {name: value.astype(np.float16) for name, value in flat.items()}
    contents = {
        "update, safetensors": [{"x.safetensors": safetensors.numpy.save(tensors)} for tensors in (flat, half)],
        "update, npz": [{"x.npz": npz_bytes(flat)}, {"x.npz": npz_bytes(half, compressed=True)}],
        "update, Flax msgpack": [{"x.msgpack": serialization.to_bytes(TREE)}],
    }
    batch = {"inputs": np.linspace(0, 1, 24, dtype=np.float32).reshape(2, 2, 2, 3), "labels": np.array([0, 1])}
    bytes_batch = batch | {"inputs": np.arange(24, dtype=np.uint8).reshape(2, 2, 2, 3)}
    kept = {"truth": np.ones((2, 3)), "step": np.arange(3)}
    updates = (
        Entry(name, seeds, lambda folder: captures.load_tree(_only(folder), LIKE), _as_other_reader, weight=3.0)
        for name, seeds in contents.items()
    )
    return (
        *updates,
        Entry(
            "true examples, npz",
            [{"x.npz": npz_bytes(one)} for one in (batch, bytes_batch)],
            lambda folder: captures.load_batch(_only(folder), (2, 2, 3), 2),
            lambda found, folder: _unlike(found.labels, np.load(_only(folder))["labels"]),
        ),
        Entry(
            "kept arrays, npz",
            [{"x.npz": npz_bytes(kept)}, {"x.npz": npz_bytes(kept, compressed=True)}],
            lambda folder: files.load_arrays(_only(folder)),
            lambda found, folder: "".join(_unlike(found[name], one) for name, one in np.load(_only(folder)).items()),
        ),
    )  # fmt: skip


def _only(folder: Path) -> Path:
    (path,) = folder.iterdir()
    return path


def _unlike(found: Any, expected: np.ndarray) -> str:
    same = np.array_equal(np.asarray(found), expected, equal_nan=expected.dtype.kind in "fc")
    return "" if same else "another reader finds other values"


def _as_other_reader(found: Any, folder: Path) -> str:
    """Compares an update with what the format's own library reads."""
    path = _only(folder)
    content = path.read_bytes()
    try:
        if path.suffix == ".safetensors":
            tensors = safetensors.numpy.load(content)
        elif path.suffix == ".npz":
            with np.load(io.BytesIO(content), allow_pickle=False) as archive:
                tensors = {name: archive[name] for name in archive.files}
        else:
            tensors = traverse_util.flatten_dict(serialization.msgpack_restore(content), sep="/")
    except Exception as error:
        return f"another reader refuses it: {error}"
    names: dict[str, Any] = {
        str(name).replace(".", "/").removeprefix("params/"): value for name, value in tensors.items()
    }
    for name, leaf in found["params"].items():
        expected = names.get(name, np.empty(0))
        expected = expected.view(jnp.bfloat16) if expected.dtype == np.dtype("V2") else expected
        if fault := _unlike(leaf, np.asarray(expected, np.float32)):
            return f"{name}: {fault}"
    return _not_finite(found)


def _not_finite(tree: Any) -> str:
    return "" if all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(tree)) else "it is not finite"


def _data_entries() -> tuple[Entry, ...]:
    rng = np.random.default_rng(0)
    arrays = {
        "train_images": rng.integers(0, 256, (3, 4, 4, 3), dtype=np.uint8),
        "train_labels": np.array([0, 1, 2]),
        "test_images": rng.integers(0, 256, (2, 4, 4, 3), dtype=np.uint8),
        "test_labels": np.array([1, 0], np.uint8),
        "class_names": np.array(["a", "b", "c"]),
        "mean": np.array([0.5] * 3),
        "std": np.array([0.25] * 3),
    }
    plain = {"images": rng.integers(0, 256, (2, 4, 4), dtype=np.uint8), "labels": np.array([0, 3])}

    def check(found: data.Dataset, folder: Path) -> str:
        with np.load(_only(folder), allow_pickle=False) as archive:
            images = archive["test_images" if "test_images" in archive else "images"]
            labels = archive["test_labels" if "test_labels" in archive else "labels"]
        expected = images.reshape(found.images.shape).astype(np.float32) / np.float32(255)
        if not (found.num_classes <= 100_000 and all(name.isprintable() for name in found.class_names)):
            return "its classes cannot be shown"
        return _unlike(found.images, expected) or _unlike(found.labels, labels.astype(found.labels.dtype))

    picture = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    images: list[Files] = []
    for mode, suffix, options in (
        ("RGB", "png", {}), ("RGBA", "png", {}), ("P", "png", {"transparency": 3}), ("LA", "png", {}),
        ("RGB", "jpg", {"exif": exif}), ("CMYK", "jpg", {}), ("L", "jpg", {"progressive": True}),
        ("RGBA", "webp", {}), ("RGB", "webp", {"lossless": True}), ("RGB", "bmp", {}), ("P", "bmp", {}),
    ):  # fmt: skip
        file = io.BytesIO()
        picture.convert(mode).save(file, {"jpg": "JPEG"}.get(suffix, suffix.upper()), **options)
        images.append({f"x.{suffix}": file.getvalue()})
    return (
        Entry(
            "data set, npz",
            [{"x.npz": npz_bytes(one, compressed=flag)} for one in (arrays, plain) for flag in (False, True)],
            lambda folder: data.load(_only(folder), split="test"),
            check,
        ),
        Entry(
            "image files",
            images,
            lambda folder: pixels.read_square(_only(folder), 8),
            lambda found, folder: "" if found.shape == (8, 8, 3) and found.dtype == np.uint8 else "it is no image",
        ),
    )


def _model_entries() -> tuple[Entry, ...]:
    params = jax.tree.map(np.asarray, TREE)
    facts = {"model": "mine", "num_classes": 3, "mean": [0.5] * 3, "std": [0.25] * 3, "epochs": 2}
    prior = generators.Prior(generators.convolutional(output_shape=(8, 8, 3), num_latents=2, width=2), None)
    prior = prior._replace(params=prior.generator.init(jax.random.key(0)))
    with tempfile.TemporaryDirectory() as temporary:
        checkpoint, generator = Path(temporary, "checkpoint"), Path(temporary, "generator")
        models.save_checkpoint(checkpoint, params, facts)
        generators.save_prior(generator, prior, options={"num_latents": 2, "width": 2}, facts={})
        contents = checkpoint.read_bytes(), generator.read_bytes()

    def load(folder: Path) -> tuple[dict[str, Any], Any]:
        return models.read_facts(_only(folder)), models.load_checkpoint(_only(folder), LIKE)

    def check(found: tuple[dict[str, Any], Any], folder: Path) -> str:
        mean, std = (np.float32(found[0].get(name, 1)) for name in ("mean", "std"))
        with np.errstate(all="ignore"):
            finite = all(np.all(np.isfinite(np.array([0, 1], np.float32) - each)) for each in np.ravel(mean))
            finite &= bool(np.all(np.isfinite(1 / std) & (std > 0)))
        return _as_other_reader(found[1], folder) if finite else "normalized inputs are not finite"

    return (
        Entry("checkpoint", [{"x.safetensors": contents[0]}], load, check),
        Entry(
            "generator",
            [{"x.safetensors": contents[1]}],
            lambda folder: generators.load_prior(_only(folder)),
            lambda found, folder: _not_finite(found.params),
            weight=0.1,
        ),
    )  # fmt: skip


_SWEEP = """model: mlp
steps: 3
size: 12
targets: 1
grid:
  tv: [1e-3, 1e-2]
  seed: [0, 1]
list:
  - attack: see-through-gradients
  - attack: inverting-gradients
    lr: 0.1
"""
_AUDIT = """model: mlp
targets: 2
steps: 10
attack: inverting-gradients
num_examples: 1
tv: 1e-3
defenses: [none, "gaussian:scale=0.01"]
"""
_CAPTURE = {
    "format": manifest.FORMAT, "kind": "weights", "round": 1, "framework": "flower 1.42", "input_shape": [32, 32, 3],
    "num_classes": 10, "normalization": {"mean": [0.5] * 3, "std": [0.25] * 3},
    "local": {"optimizer": "sgd", "learning_rate": 0.1, "epochs": 1, "batch_size": 32, "shuffled": True},
    "defense": "clip+gaussian:norm=1,scale=0.01", "aggregate": 1, "clients": {"7": {"num_examples": 32}, "8": {}},
}  # fmt: skip


def _text_entries() -> tuple[Entry, ...]:
    return (
        Entry(
            "sweep, YAML", [{"x.yaml": _SWEEP.encode()}], lambda folder: sweeps.read_plan(_only(folder)), weight=0.5
        ),
        Entry(
            "audit, YAML",
            [{"x.yaml": _AUDIT.encode()}],
            lambda folder: jobs.build(Audit, jobs.typed(Audit, jobs.read_yaml(_only(folder)))),
        ),
        Entry(
            "capture.json",
            [{"capture.json": json.dumps(_CAPTURE).encode()}],
            lambda folder: manifest.read_manifest(_only(folder)),
        ),
    )


def _sweep_entry() -> Entry:
    """A folder of two recorded jobs and a failed one, as `jaxinvert report` reads it."""
    names = [f"{number:024x}" for number in range(3)]
    jobs_by_name = {name: {"model": f"m{i}", "settings.tv": 10.0**-i} for i, name in enumerate(names)}
    plan = {"varied": ["model", "settings.tv"], "jobs": jobs_by_name, "versions": {"jax": "1"}}
    failure = {"name": names[2], "config": {"settings": {"tv": 1}}, "traceback": "ValueError: no"}
    content = {"plan.json": json.dumps(plan).encode(), f"failures/{names[2]}.json": json.dumps(failure).encode()}
    for i, name in enumerate(names[:2]):
        image = {"target": 0, "example": 0, "label": 1, "class_name": "cat", "psnr_db": 20.0 + i, "ssim": 0.5}
        fact = {"name": "labels", "value": "granted", "favors": "attacker"}
        assumptions = {"known": ["all"], "client": "FedSGD", "realism": {"kind": "as deployed", "facts": [fact]}}
        summary = {
            "device": "one", "versions": {"jax": "1"}, "targets": [{"attack_loss": 0.5}], "images": [image],
            "assumptions": assumptions,
        }  # fmt: skip
        record = {"name": name, "config": {"model": "m", "settings": {"tv": 1}}, "summary": summary}
        content[f"records/{name}.json"] = json.dumps(record).encode()
        images = {"truth": np.zeros((1, 2, 2, 3), np.float32), "reconstruction": np.ones((1, 2, 2, 3), np.float32)}
        content[f"records/{name}.npz"] = npz_bytes(images, compressed=True)

    def load(folder: Path) -> None:
        rows, read = sweeps.summarize(folder), sweeps.read_plan_file(folder)
        report.sweep_table(rows, read["varied"])
        report.save_sweep_html(
            folder / "report.html", rows=rows, varied=read["varied"], records=sweeps.records_of(folder),
            failures=sweeps.failures_of(folder), jobs=read["jobs"], title=folder.name, command="",
        )  # fmt: skip

    return Entry(
        "sweep's folder, report", [_with_checksums(content, None)], load, weight=0.15, repaired=_with_checksums
    )


def _with_checksums(content: Files, rng: random.Random | None) -> Files:
    """The files with valid checksums of records, three times of four, as whoever forges a record writes them."""
    if rng is not None and rng.random() < 0.25:
        return content
    repaired = dict(content)
    for name in content:
        arrays = content.get(name.replace(".json", ".npz"))
        if not name.startswith("records/") or not name.endswith(".json") or arrays is None:
            continue
        try:
            record = json.loads(content[name])
            record.pop("sha256", None)
            record["arrays_sha256"] = hashlib.sha256(arrays).hexdigest()
            text = json.dumps(record, sort_keys=True)
            record["sha256"] = hashlib.sha256(text.encode()).hexdigest()
            repaired[name] = json.dumps(record).encode()
        except (ValueError, AttributeError, TypeError, RecursionError):
            continue
    return repaired


def _prepared_entry() -> Entry:
    """A set that `jaxinvert data prepare` would have written; `evil` must not be imported."""
    folder = PHOTOS_DIR / "32"
    content = {path.name: path.read_bytes() for path in folder.iterdir() if "train" not in path.name}
    info = json.loads(content["dataset_info.json"])
    info["splits"] = [split for split in info["splits"] if split["name"] == "test"]
    content["dataset_info.json"] = json.dumps(info).encode()

    def load(folder: Path) -> data.Dataset:
        placed = folder / "cifar10" / "1.0.0"
        inside = [path for path in folder.iterdir() if path.is_file()]
        placed.mkdir(parents=True)
        for path in inside:
            shutil.move(path, placed)
        return data.load("cifar10", split="test", data_dir=folder)

    def check(found: data.Dataset, folder: Path) -> str:
        if "evil" in sys.modules:
            return "it imported a module"
        right = found.labels.max() < found.num_classes and 0 <= found.images.min() <= found.images.max() <= 1
        return "" if right else "labels or pixels are out of range"

    return Entry("prepared data set", [content], load, check, weight=0.1)
