"""What `fuzz` reads: every entry by which a single file comes in, with valid files and a check of what is read.

A check compares what was accepted with an independent reader of the format (NumPy, safetensors, Flax), where there is
one: a file that the package reads differently, or reads although the other refuses it, is accepted wrongly. Folders
are in `fuzz_folders`.
"""

import io
import json
import random
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

from jaxinvert import data, files, inspection, manifest, models, sweeps
from jaxinvert.cli.audit import Audit
from jaxinvert.cli.audit_discrete import AuditTable, AuditText
from jaxinvert.cli.fields import with_file
from jaxinvert.data import pixels
from jaxinvert.models.tensors import Tensor
from jaxinvert.observation import captures
from jaxinvert.priors import generators
from jaxinvert.readers.tensor_files import read_floats

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


def file_entries() -> tuple[Entry, ...]:
    """All entries of single files."""
    return (
        *_tensor_entries(),
        _library_entry(),
        _inspection_entry(),
        *_example_entries(),
        *_data_entries(),
        *_model_entries(),
        *_text_entries(),
    )


def _tensor_entries() -> tuple[Entry, ...]:
    flat: dict[str, Any] = traverse_util.flatten_dict(TREE, sep="/")  # pyright: ignore[reportAssignmentType]
    half = {name: value.astype(np.float16) for name, value in flat.items()}
    contents = {
        "update, safetensors": [{"x.safetensors": safetensors.numpy.save(tensors)} for tensors in (flat, half)],
        "update, npz": [{"x.npz": npz_bytes(flat)}, {"x.npz": npz_bytes(half, compressed=True)}],
        "update, Flax msgpack": [{"x.msgpack": serialization.to_bytes(TREE)}],
    }
    return tuple(
        Entry(name, seeds, lambda folder: captures.load_tree(only(folder), LIKE), as_other_reader, weight=12)
        for name, seeds in contents.items()
    )


def _library_entry() -> Entry:
    """An update under the names and in the layouts of PyTorch, or without names, as Flower sends it."""
    tensors = (Tensor("fc.weight", "params/w", "dense"), Tensor("fc.bias", "params/b"))
    model = models.from_functions(
        lambda key: TREE, lambda params, inputs: inputs[:, 0, 0, :2], name="x", input_shape=(1, 1, 3), num_classes=2
    )
    model = model._replace(tensors=tensors)
    named = {"fc.weight": np.ascontiguousarray(TREE["params"]["w"].T), "fc.bias": TREE["params"]["b"]}
    seeds = [
        {"x.safetensors": safetensors.numpy.save(named)},
        {"x.npz": npz_bytes(named)},
        {"x.npz": npz_bytes({f"arr_{number}": value for number, value in enumerate(named.values())})},
    ]

    def check(found: Any, folder: Path) -> str:
        by_shape = {np.shape(value): value for value in _by_other_reader(only(folder)).values()}
        faults = (unlike(leaf.T, np.asarray(by_shape[leaf.T.shape], np.float32)) for leaf in found["params"].values())
        return "".join(faults) or not_finite(found)

    return Entry(
        "update, other library", seeds, lambda folder: captures.load_for_model(only(folder), model), check, weight=6
    )


def _inspection_entry() -> Entry:
    """Parameters that a client received, checked as `jaxinvert inspect FILE` does."""
    rng = np.random.default_rng(0)
    layers = {
        "conv.weight": rng.standard_normal((8, 3, 3, 3)),
        "fc1.weight": rng.standard_normal((12, 8)),
        "fc1.bias": rng.standard_normal(12),
        "fc2.weight": rng.standard_normal((4, 12)),
        "fc2.bias": rng.standard_normal(4),
    }
    named = {name: value.astype(np.float32) for name, value in layers.items()}

    def check(found: inspection.Inspection, folder: Path) -> str:
        values = [measure.value for measure in found.measures]
        return "" if np.all(np.isfinite(values)) else "a figure is not finite"

    return Entry(
        "parameters, inspect",
        [{"x.safetensors": safetensors.numpy.save(named)}, {"x.npz": npz_bytes(named)}],
        lambda folder: inspection.inspect_tensors(
            read_floats(only(folder), what="parameters", max_bytes=2**30), head="fc2"
        ),
        check,
        weight=4,
    )


def _example_entries() -> tuple[Entry, ...]:
    batch = {"inputs": np.linspace(0, 1, 24, dtype=np.float32).reshape(2, 2, 2, 3), "labels": np.array([0, 1])}
    bytes_batch = batch | {"inputs": np.arange(24, dtype=np.uint8).reshape(2, 2, 2, 3)}
    kept = {"truth": np.ones((2, 3)), "step": np.arange(3)}

    def examples(folder: Path) -> Any:
        path = only(folder)
        found = captures.load_batch(path, (2, 2, 3), 2)
        others = captures.load_labels(path), captures.load_images(path, (2, 2, 3)), captures.num_labels(path)
        return found, others

    def check(found: Any, folder: Path) -> str:
        (inputs, labels), (also_labels, also_inputs, count) = found
        content = _by_other_reader(only(folder))
        pixels_are = content["inputs"] / np.float32(255) if content["inputs"].dtype == np.uint8 else content["inputs"]
        return (
            unlike(labels, content["labels"])
            or unlike(also_labels, content["labels"])
            or unlike(inputs, np.asarray(pixels_are, np.float32))
            or unlike(also_inputs, np.asarray(pixels_are, np.float32))
            or ("" if count == len(content["labels"]) else "it counts other labels")
        )

    return (
        Entry("true examples, npz", [{"x.npz": npz_bytes(one)} for one in (batch, bytes_batch)], examples, check, 6),
        Entry(
            "kept arrays, npz",
            [{"x.npz": npz_bytes(kept)}, {"x.npz": npz_bytes(kept, compressed=True)}],
            lambda folder: files.load_arrays(only(folder)),
            lambda found, folder: "".join(
                unlike(found[name], one) for name, one in _by_other_reader(only(folder)).items()
            ),
            weight=5,
        ),
    )


def only(folder: Path) -> Path:
    """The one file in a folder."""
    (path,) = folder.iterdir()
    return path


def unlike(found: Any, expected: np.ndarray) -> str:
    """What is wrong with an array that is not the expected one."""
    same = np.array_equal(np.asarray(found), expected, equal_nan=expected.dtype.kind in "fc")
    return "" if same else "another reader finds other values"


def as_other_reader(found: Any, folder: Path) -> str:
    """Compares an update with what the format's own library reads."""
    try:
        tensors = _by_other_reader(only(folder))
    except Exception as error:
        return f"another reader refuses it: {error}"
    names: dict[str, Any] = {
        str(name).replace(".", "/").removeprefix("params/"): value for name, value in tensors.items()
    }
    for name, leaf in found["params"].items():
        expected = names.get(name, np.empty(0))
        expected = expected.view(jnp.bfloat16) if expected.dtype == np.dtype("V2") else expected
        if fault := unlike(leaf, np.asarray(expected, np.float32)):
            return f"{name}: {fault}"
    return not_finite(found)


def _by_other_reader(path: Path) -> dict[str, Any]:
    """The tensors of a file by name, as the format's own library reads it."""
    content = path.read_bytes()
    if path.suffix == ".safetensors":
        return safetensors.numpy.load(content)
    if path.suffix == ".npz":
        with np.load(io.BytesIO(content), allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    return traverse_util.flatten_dict(serialization.msgpack_restore(content), sep="/")


def not_finite(tree: Any) -> str:
    """What is wrong with a tree whose values are not all finite."""
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
        with np.load(only(folder), allow_pickle=False) as archive:
            images = archive["test_images" if "test_images" in archive else "images"]
            labels = archive["test_labels" if "test_labels" in archive else "labels"]
        expected = images.reshape(found.images.shape).astype(np.float32) / np.float32(255)
        if not (found.num_classes <= 100_000 and all(name.isprintable() for name in found.class_names)):
            return "its classes cannot be shown"
        return unlike(found.images, expected) or unlike(found.labels, labels.astype(found.labels.dtype))

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
            lambda folder: data.load(only(folder), split="test"),
            check,
            weight=6,
        ),
        Entry(
            "image files",
            images,
            lambda folder: pixels.read_square(only(folder), 8),
            lambda found, folder: "" if found.shape == (8, 8, 3) and found.dtype == np.uint8 else "it is no image",
            weight=8,
        ),
    )


def _model_entries() -> tuple[Entry, ...]:
    params = jax.tree.map(np.asarray, TREE)
    facts = {"model": "mine", "num_classes": 3, "mean": [0.5] * 3, "std": [0.25] * 3, "epochs": 2}
    prior = generators.Prior(generators.convolutional(output_shape=(8, 8, 3), num_latents=2, width=2), None)
    shapes = jax.eval_shape(prior.generator.init, jax.random.key(0))
    prior = prior._replace(params=jax.tree.map(lambda leaf: np.full(leaf.shape, 0.1, leaf.dtype), shapes))
    with tempfile.TemporaryDirectory() as temporary:
        checkpoint, generator = Path(temporary, "checkpoint"), Path(temporary, "generator")
        models.save_checkpoint(checkpoint, params, facts)
        generators.save_prior(generator, prior, options={"num_latents": 2, "width": 2}, facts={})
        contents = checkpoint.read_bytes(), generator.read_bytes()

    def load(folder: Path) -> tuple[dict[str, Any], Any]:
        return models.read_facts(only(folder)), models.load_checkpoint(only(folder), LIKE)

    def check(found: tuple[dict[str, Any], Any], folder: Path) -> str:
        mean, std = (np.float32(found[0].get(name, 1)) for name in ("mean", "std"))
        with np.errstate(all="ignore"):
            finite = all(np.all(np.isfinite(np.array([0, 1], np.float32) - each)) for each in np.ravel(mean))
            finite &= bool(np.all(np.isfinite(1 / std) & (std > 0)))
        return as_other_reader(found[1], folder) if finite else "normalized inputs are not finite"

    return (
        Entry("checkpoint", [{"x.safetensors": contents[0]}], load, check, weight=6),
        Entry(
            "generator",
            [{"x.safetensors": contents[1]}],
            lambda folder: generators.load_prior(only(folder)),
            lambda found, folder: not_finite(found.params),
            weight=3,
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
_AUDIT_TABLE = """table: wine
targets: 2
steps: 10
num_examples: 4
members: 2
defenses: [none, "top-k:keep=0.1"]
"""
_AUDIT_TEXT = """targets: 2
num_sequences: 1
candidates: 20
seed: 1
"""
CAPTURE = {
    "format": manifest.FORMAT, "kind": "weights", "round": 1, "framework": "flower 1.42", "input_shape": [32, 32, 3],
    "num_classes": 10, "normalization": {"mean": [0.5] * 3, "std": [0.25] * 3},
    "local": {"optimizer": "sgd", "learning_rate": 0.1, "epochs": 1, "batch_size": 32, "shuffled": True},
    "defense": "clip+gaussian:norm=1,scale=0.01", "aggregate": 1, "clients": {"7": {"num_examples": 32}, "8": {}},
}  # fmt: skip


def _text_entries() -> tuple[Entry, ...]:
    def audit(folder: Path) -> Any:
        path = only(folder)
        kind = {"audit.yaml": Audit, "table.yaml": AuditTable, "text.yaml": AuditText}[path.name]
        return with_file(kind(file=path), f"jaxinvert audit {path}")

    return (
        Entry("sweep, YAML", [{"x.yaml": _SWEEP.encode()}], lambda folder: sweeps.read_plan(only(folder)), weight=4),
        Entry(
            "audit, YAML",
            [
                {"audit.yaml": _AUDIT.encode()},
                {"table.yaml": _AUDIT_TABLE.encode()},
                {"text.yaml": _AUDIT_TEXT.encode()},
            ],
            audit,
            weight=6,
        ),
        Entry(
            "capture.json",
            [{"capture.json": json.dumps(CAPTURE).encode()}],
            lambda folder: manifest.read_manifest(only(folder)),
            weight=6,
        ),
    )
