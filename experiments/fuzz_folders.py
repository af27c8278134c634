"""What `fuzz` reads: folders of which one file is mutated: sweeps, audits, captured rounds, prepared sets.

What has checksums is repaired after most mutations, as whoever forges such a file writes it.
"""

import functools
import hashlib
import io
import json
import random
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import serialization

from experiments.fuzz_entries import CAPTURE, LIKE, TREE, Entry, Files, not_finite, npz_bytes, only, unlike
from jaxinvert import data, files, jobs, report, sweeps
from jaxinvert.audit import kept
from jaxinvert.cli.audit import Audit
from jaxinvert.cli.auditing import show_finished
from jaxinvert.cli.captured import capture_of, with_round
from jaxinvert.cli.console import Terminal
from jaxinvert.data.prepared import PHOTOS_DIR
from jaxinvert.jobs import state
from jaxinvert.observation import captures
from jaxinvert.search import Resumable

_JOB = "0" * 24


def folder_entries() -> tuple[Entry, ...]:
    """All entries of folders."""
    content = _sweep()
    return (
        Entry("sweep's folder, records", [content], _read_sweep, weight=4, repaired=_sealed(_with_record_checksums)),
        Entry("sweep's folder, page", [content], _show_sweep, weight=1.5, repaired=_sealed(_with_record_checksums)),
        *_kept_entries(),
        _finished_entry(),
        _round_entry(),
        _prepared_entry(),
    )


def _sealed(repair: Callable[[Files], Files]) -> Callable[[Files, random.Random], Files]:
    """Puts checksums right, three times of four, where the content still has the form for it."""

    def repaired(content: Files, rng: random.Random) -> Files:
        if rng.random() < 0.25:
            return content
        try:
            return repair(content)
        except Exception:  # whatever a damaged file raises
            return content

    return repaired


def _sweep() -> Files:
    """A folder of two recorded jobs and a failed one."""
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
    return _with_record_checksums(content)


def _with_record_checksums(content: Files) -> Files:
    repaired = dict(content)
    for name in content:
        arrays = content.get(name.replace(".json", ".npz"))
        if not name.startswith("records/") or not name.endswith(".json") or arrays is None:
            continue
        record = json.loads(content[name])
        record.pop("sha256", None)
        record["arrays_sha256"] = hashlib.sha256(arrays).hexdigest()
        text = json.dumps(record, sort_keys=True)
        record["sha256"] = hashlib.sha256(text.encode()).hexdigest()
        repaired[name] = json.dumps(record).encode()
    return repaired


def _read_sweep(folder: Path) -> list[dict[str, Any]]:
    """What `jaxinvert report` and a resumed sweep read: plan, records, failures."""
    rows, read = sweeps.summarize(folder), sweeps.read_plan_file(folder)
    report.sweep_table(rows, read["varied"])
    list(sweeps.records_of(folder))
    sweeps.failures_of(folder)
    return rows


def _show_sweep(folder: Path) -> None:
    """What `jaxinvert report` does."""
    rows, read = sweeps.summarize(folder), sweeps.read_plan_file(folder)
    report.sweep_table(rows, read["varied"])
    report.save_sweep_html(
        folder / "report.html", rows=rows, varied=read["varied"], records=sweeps.records_of(folder),
        failures=sweeps.failures_of(folder), jobs=read["jobs"], title=folder.name, command="",
    )  # fmt: skip


def _kept_entries() -> tuple[Entry, ...]:
    """What an interrupted search and a finished attack leave to the next run."""
    lanes = {"variables": jnp.ones((2, 2, 3)), "key": jax.random.split(jax.random.key(0), 2)}
    form: Any = jax.eval_shape(lambda: lanes)
    store = kept.Store(Path())
    attack = {
        "inputs": np.ones((1, 1, 2, 2, 3), np.float32), "attack_loss": np.ones(1, np.float32),
        "info/rank": np.ones(1, np.int32), "history/step": np.arange(3), "num_steps": 3, "seconds_compile": 1.5,
        "seconds_run": 2.5, "choice": "dlg",
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as temporary:
        place = state.Place(Path(temporary), _JOB)
        losses = np.ones((2, 2, 1), np.float32)
        state.keep(place, state.Kept(Resumable(3, 1.5, lanes), np.array([1, 3]), losses))  # type: ignore[arg-type]
        file = Path(temporary, "attack.npz")
        files.save_checked(file, attack, f"{_JOB} {store.role('attack')}")
        contents = place.file.read_bytes(), file.read_bytes()

    def search(folder: Path) -> Any:
        if (found := state.find(state.Place(folder, _JOB), form)) is None:
            raise ValueError("the search starts anew")
        return found

    def right_search(found: state.Kept, folder: Path) -> str:
        del folder
        steps, losses = found.steps, found.best_loss
        right = (
            steps.ndim == 1 and losses.ndim == 3 and len(steps) == len(losses) and steps[-1] == found.resumable.step
        )
        return "" if right else "its history has another form"

    def finished(folder: Path) -> Any:
        def compute() -> jobs.Execution:
            raise ValueError("the attack is computed again")

        return kept.kept_or_done(kept.Store(folder), _JOB, "attack", compute)

    def right_attack(found: jobs.Execution, folder: Path) -> str:
        with np.load(only(folder / "attacks"), allow_pickle=False) as archive:
            return unlike(found.reconstructions.inputs, archive["inputs"])

    def repair(identity: str) -> Callable[[Files, random.Random], Files]:
        return _sealed(functools.partial(_with_content_checksum, identity=identity))

    identity = state.Place(Path(), _JOB).identity
    return (
        Entry("kept search", [{f"{_JOB}.npz": contents[0]}], search, right_search, 3, repair(identity)),
        Entry(
            "kept attack", [{f"attacks/{_JOB}-attack.npz": contents[1]}], finished, right_attack, 3,
            repair(f"{_JOB} {store.role('attack')}"),
        ),
    )  # fmt: skip


def _with_content_checksum(content: Files, *, identity: str) -> Files:
    ((name, data),) = content.items()
    with np.load(io.BytesIO(data), allow_pickle=False) as archive:
        arrays = {key: archive[key] for key in archive.files if key != "sha256"}
    with tempfile.TemporaryDirectory() as temporary:
        file = Path(temporary, "x.npz")
        files.save_checked(file, arrays, identity)
        return {name: file.read_bytes()}


def _finished_entry() -> Entry:
    """A finished audit, whose verdicts are shown again."""
    interval = {"mean": 1.5, "low": 0.5, "high": 2.5}
    attacker = {
        "identified": {"count": 3, "total": 9}, "excess_psnr_db": interval,
        "attack": {"psnr_db": {"median": 20.0, "max": 25.0}},
    }  # fmt: skip
    verdict = {"level": "leak", "headline": "Updates leak images.", "certainty": "It is certain."}
    setting = {"name": "none", "worst": "naive", "verdict": verdict, "attackers": {"naive": attacker}}
    explained = {"naive": {"share": [0.5, 0.25], "share_of_random_updates": [0.0, 0.1]}}
    records = {"settings": [setting], "command": "jaxinvert audit"}, {"explained": explained, "command": ""}

    def repair(content: Files) -> Files:
        record = json.loads(content["audit.json"])
        record.pop("identity", None)
        parts = ["name", record, hashlib.sha256(content["report.html"]).hexdigest()]
        seal = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
        return {**content, "audit.json": json.dumps({**record, "identity": seal}).encode()}

    def load(folder: Path) -> None:
        console = Terminal()
        console.file = io.StringIO()
        if not show_finished(console, folder, "name"):
            raise ValueError("the audit is repeated")

    seeds = [repair({"audit.json": json.dumps(one).encode(), "report.html": b"<p>"}) for one in records]
    return Entry("finished audit", seeds, load, weight=2, repaired=_sealed(repair))


def _round_entry() -> Entry:
    """A captured round of two clients, one of them with its true examples."""
    facts = {**CAPTURE, "input_shape": [2, 2, 3], "num_classes": 2, "clients": {"7": {"num_examples": 2}, "8": {}}}
    tensors: Mapping[str, Any] = TREE["params"]
    after = jax.tree.map(lambda leaf: leaf + np.float32(0.25), TREE)
    truth = {"inputs": np.linspace(0, 1, 24, dtype=np.float32).reshape(2, 2, 2, 3), "labels": np.array([0, 1])}
    content = {
        "capture.json": json.dumps(facts).encode(),
        "params.npz": npz_bytes(tensors),
        "client-7.npz": npz_bytes(after["params"]),
        "client-8.msgpack": serialization.to_bytes(after),
        "truth-7.npz": npz_bytes(truth),
    }

    def load(folder: Path) -> Any:
        command = with_round(Audit(capture=folder), f"jaxinvert audit --capture {folder}")
        if (capture := capture_of(command)) is None:
            raise AssertionError("a folder was given")
        params = captures.load_tree(capture.params, LIKE, what="parameters")
        updates = [
            captures.as_update(captures.load_tree(path, LIKE), params, kind=capture.kind) for path in capture.updates
        ]
        return updates, [captures.load_batch(path, (2, 2, 3), 2) for path in capture.truths]

    def check(found: Any, folder: Path) -> str:
        del folder
        in_range = all(0 <= batch.inputs.min() <= batch.inputs.max() <= 1 for batch in found[1])
        return not_finite(found[0]) or ("" if in_range else "its examples are no pixels")

    return Entry("captured round", [content], load, check, weight=3)


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

    return Entry("prepared data set", [content], load, check, weight=2)
