"""One picture for each attack on images: an embedded photograph, and what the attack makes of its client's update.

Setting: the first photographs of the test set (tiles for the largest batch), untrained networks, labels known to
attacks that read them. Each attack has a network and a client for which it was made, and few steps: a picture shows
what kind of result to expect, and ranks nothing, since longer searches find more (see the other experiments). Of
batches, the first two images are drawn. `recognizable` counts the images that are picked out of a line-up
(`metrics.recognition`). Attacks on records and on text have no pictures and are left out. Jobs are kept in `--out`: a
second run computes what is missing.

Command:  python -m experiments.gallery --pictures docs/attacks --json experiments/results/gallery.json
Smoke:    python -m experiments.gallery --smoke
"""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import tyro

from experiments import harness
from jaxinvert import report, sweeps
from jaxinvert.metrics import recognition
from jaxinvert.report import wording

SHOWN = 2
"""Images of a batch that are drawn."""


class Case(NamedTuple):
    """An attack, and what it is shown on: a network and other fields of `jobs.JobConfig`."""

    attack: str
    model: str
    fields: Mapping[str, Any] = MappingProxyType({})

    @property
    def job(self) -> dict[str, Any]:
        """All fields of the job that are not at their defaults."""
        return {"attack": self.attack, "model": self.model, "targets": 1, "restarts": 1, **self.fields}


OF_DLG = {"normalized": False, "steps": 1500}
"""The papers' networks read pixels as they are."""
FEDAVG = {"client": "fedavg", "local_lr": 0.01}
OF_DLM = {**FEDAVG, "normalized": False, "steps": 5000}
CASES = (
    Case("spectral", "lenet", {"steps": 480}),
    Case("inverting-gradients", "lenet", {"steps": 1000}),
    Case("dlg", "lenet", OF_DLG),
    Case("idlg", "lenet", OF_DLG),
    Case("see-through-gradients", "small-convnet16", {"steps": 400}),
    Case("batch-norm-leakage", "small-convnet-bn16", {"steps": 1000, "batch_norm": "train", "threat_model": "E"}),
    Case("general-deep-leakage", "small-convnet16", {"steps": 300, "num_examples": 4}),
    Case("dlm", "mlp-32", OF_DLM),
    Case("dlm-plus", "mlp-32", OF_DLM),
    Case("dlm-best-scale", "mlp-32", OF_DLM),
    Case(
        "surrogate-model",
        "small-convnet",
        {**FEDAVG, "local_epochs": 20, "num_examples": 4, "steps": 400, "tv": 1e-3},
    ),
    Case(
        "surrogate-curve",
        "small-convnet",
        {**FEDAVG, "local_epochs": 20, "num_examples": 4, "steps": 400, "tv": 1e-3},
    ),
    Case(
        "fedavg-epochs",
        "small-convnet",
        {**FEDAVG, "local_epochs": 2, "local_batch_size": 2, "num_examples": 4, "steps": 400, "tv": 1e-3},
    ),
    Case("fedleak", "small-convnet", {"steps": 400, "tv": 1e-3}),
    Case("gias-latents", "lenet", {"steps": 300}),
    Case("gias", "lenet", {"steps": 300}),
    Case("cocktail-party-features", "wide-convnet-512", {"steps": 300, "num_examples": 8}),
    Case("dense-layer", "mlp"),
    Case("dense-chain", "mlp-unbiased-512-256"),
    Case("rgap", "lenet"),
    Case("spear", "mlp-200", {"num_examples": 8}),
    Case("exact-batch", "mlp-512", {"num_examples": 8}),
    Case("cocktail-party", "mlp-512", {"num_examples": 32, "split": "train"}),
    Case("april", "vit-plain"),
    Case("patch-embedding", "vit-pre-norm"),
    Case("whitened", "vit-pre-norm", {"num_examples": 2, "steps": 400}),
)
"""Every registered attack; `auto` takes one of them."""


@dataclass(frozen=True)
class Config:
    """Which attacks to show.

    Attributes:
      attacks: only these; by default all.
      out: folder of the jobs; by default a temporary one.
      smoke: one closed form, in seconds.
      pictures: folder for the pictures, one for each attack.
      json: file for the rows.
    """

    attacks: tuple[str, ...] = ()
    out: Path | None = None
    smoke: bool = False
    pictures: Path | None = None
    json: Path | None = None


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the attacks, draws the pictures and prints the table."""
    config = tyro.cli(Config, description=__doc__, args=arguments)
    if config.smoke:
        config = replace(config, attacks=("dense-layer",))
    if unknown := set(config.attacks) - {case.attack for case in CASES}:
        raise SystemExit(f"attacks has {sorted(unknown)}; there are {[case.attack for case in CASES]}")
    with tempfile.TemporaryDirectory() as scratch:
        rows = [
            show(case, config.out or Path(scratch), config.pictures)
            for case in CASES
            if not config.attacks or case.attack in config.attacks
        ]
    harness.publish("One picture for each attack", rows, json_file=config.json)


def show(case: Case, out: Path, pictures: Path | None) -> dict[str, Any]:
    """Runs an attack on its client unless its job is in `out`, draws its picture, and returns its row."""
    plan = sweeps.make_plan([case.job])
    folder = out / plan.jobs[0].name
    print(f"{case.attack} through {case.model}", flush=True)
    for _ in sweeps.run(plan, folder):
        pass
    for failure in sweeps.failures_of(folder):
        raise SystemExit(f"{case.attack}: {failure['traceback']}")
    (record,) = sweeps.records_of(folder)
    images, truth, found = record.summary["images"], record.arrays["truth"], record.arrays["reconstruction"]
    decibels = [f"{wording.number(image['psnr_db'], 'psnr_db')} dB" for image in images[:SHOWN]]
    if pictures is not None:
        pictures.mkdir(parents=True, exist_ok=True)
        report.save_reconstructions_png(
            pictures / f"{case.attack}.png",
            truth=truth[:SHOWN],
            reconstruction=found[:SHOWN],
            captions=[f"{case.attack} · {caption}" for caption in decibels[:1]] + decibels[1:],
            columns=2,
            side=128,
        )
    return {
        "attack": case.attack,
        "model": case.model,
        "local_steps": case.fields.get("local_epochs", 1),
        "images": len(images),
        "steps": record.summary["num_steps"] or None,
        "first_psnr_db": images[0]["psnr_db"],
        "mean_psnr_db": record.summary["quality"]["psnr_db"]["mean"],
        "mean_ssim": record.summary["quality"]["ssim"]["mean"],
        "recognizable": int(recognition.line_up(found, truth).recognized.sum()),
    }


if __name__ == "__main__":
    main()
