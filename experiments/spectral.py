"""Spectral matching beside Inverting Gradients: fewer steps for the same quality, and more quality in as many.

Setting: labels known, one restart, selected by attack loss. Inverting Gradients has the TV weight of its paper
(of our demo for the small convolutional network); spectral matching has its defaults everywhere, tuned on images
`train[2000:2100]` with LeNet, the small network and one image on ResNet20-4. Both start from their own law of
starts. For every case the published attack runs for `steps`, spectral matching for shares of them; `gain_db` is the
mean over clients of the difference to the published attack's full run on the same images, with its bootstrap
interval (BCa).

Command:  python -m experiments.spectral --data FILE.npz --json FILE.json --figure FILE.png
Smoke:    python -m experiments.spectral --smoke
Expected: on LeNet at least the published quality in a tenth of the steps, and 5 dB more in as many; elsewhere the
          published quality in a quarter of the steps.
Measured: see experiments/README.md and docs/spectral.md
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import tyro
from matplotlib.figure import Figure

from experiments import harness
from jaxinvert import job
from jaxinvert.audit.evidence import excess


class Case(NamedTuple):
    """Clients, and how long and with which prior the published attack runs on them.

    Attributes:
      client: fields of `job.JobConfig`.
      steps: of the published attack.
      tv: its weight of the total variation.
      shares: of these steps, for spectral matching.
      shorter: shares for the published attack, too.
    """

    client: Mapping[str, Any]
    steps: int
    tv: float
    shares: tuple[float, ...] = (0.25, 1)
    shorter: tuple[float, ...] = ()


TRAINED = Path("runs/train/lenet/epoch-20.safetensors")
FEDAVG = {"client": "fedavg", "local_lr": 1e-4, "local_epochs": 5}

CASES = {
    "LeNet untrained": Case({"model": "lenet", "targets": 100}, 4800, 1e-2, (0.1, 0.2083, 1), (0.1, 0.2083)),
    "LeNet trained": Case({"model": "lenet", "checkpoint": TRAINED, "targets": 40}, 2400, 1e-2, (0.1, 0.25, 1)),
    "LeNet, 4 images": Case({"model": "lenet", "targets": 10, "num_examples": 4}, 2400, 1e-2, (0.1, 0.25, 1)),
    "LeNet, 8 images": Case({"model": "lenet", "targets": 5, "num_examples": 8}, 2400, 1e-2, (0.1, 0.25, 1)),
    "LeNet, 16 images": Case({"model": "lenet", "targets": 3, "num_examples": 16}, 2400, 1e-2, (0.25, 1)),
    "LeNet, FedAvg": Case({"model": "lenet", "targets": 10, "num_examples": 4, **FEDAVG}, 1000, 1e-2),
    "small-convnet": Case({"model": "small-convnet", "targets": 10}, 500, 1e-3),
    "small-convnet, 4 images": Case({"model": "small-convnet", "targets": 3, "num_examples": 4}, 500, 1e-3),
    "ConvNet-16": Case({"model": "convnet16", "targets": 6}, 1000, 1e-4),
    "ResNet20-4": Case({"model": "resnet20-4", "targets": 4}, 1200, 1e-2),
    "ConvNet-64": Case({"model": "convnet64", "targets": 4}, 1000, 1e-6),
}
"""As large as two cores do in minutes each; ResNet20-4 and ConvNet-64 take a quarter of an hour or more."""

PUBLISHED, OURS = "inverting-gradients", "spectral"
TITLE = "Spectral matching beside Inverting Gradients"


@dataclass(frozen=True)
class Config:
    """Which cases to run.

    Attributes:
      data: data set by name, folder or npz.
      cases: only those whose names contain one of these.
      seeds: of networks and starts; every case runs once for each.
      targets: clients of every case; by default the case's own number.
      smoke: a run of seconds on the embedded photos that only shows that everything works.
      json: file for the rows; those that it holds are not run again.
      figure: picture of the PSNR against steps, for all cases of the file.
    """

    data: str = "cifar10"
    cases: tuple[str, ...] = ()
    seeds: tuple[int, ...] = (0,)
    targets: int | None = None
    smoke: bool = False
    json: Path | None = None
    figure: Path | None = None


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the cases that are chosen, saving each row, and prints all."""
    config = tyro.cli(Config, description=__doc__, args=arguments)
    chosen = {name: case for name, case in CASES.items() if not config.cases or any(p in name for p in config.cases)}
    if not chosen:
        raise SystemExit(f"no case is named like {config.cases}; there are {list(CASES)}")
    if config.smoke:
        config = replace(config, data="photos", targets=2)
        chosen = {"MLP": Case({"model": "mlp-32"}, 8, 1e-2)}
    rows = [] if config.json is None or not config.json.exists() else json.loads(config.json.read_text())["rows"]
    for name, case in chosen.items():
        for seed in config.seeds:
            done = {(row["case"], row["attack"], row["steps"], row["seed"], row["data"]) for row in rows}
            for attack, steps in runs(case):
                if (name, attack, steps, seed, Path(config.data).stem) in done:
                    continue
                print(f"{name}, seed {seed}: {attack}, {steps} steps", flush=True)
                rows.append(measured(config, name, case, seed, attack, steps, rows))
                if config.json is not None:
                    harness.save(config.json, TITLE, rows)
    shown = [{key: row[key] for key in row if key not in ("psnr_db", "device", "jax")} for row in rows]
    harness.publish(TITLE, shown)
    if config.figure is not None:
        draw(config.figure, rows)


def runs(case: Case) -> list[tuple[str, int]]:
    """Attacks and steps of a case, the published full run first."""
    lengths = [(PUBLISHED, share) for share in (1, *case.shorter)] + [(OURS, share) for share in case.shares]
    return [(attack, round(case.steps * share)) for attack, share in lengths]


def measured(
    config: Config, name: str, case: Case, seed: int, attack: str, steps: int, rows: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """One attack on all clients of a case, beside the published one on the same images."""
    fields: dict[str, Any] = {**case.client, "attack": attack, "steps": steps, "restarts": 1, "seed": seed}
    fields |= {} if config.targets is None else {"targets": config.targets}
    fields |= {"tv": case.tv} if attack == PUBLISHED else {}
    settings = job.JobConfig(data=config.data, **fields)
    task = job.prepare(settings)
    execution = job.execute(settings, task.program, task.observations)
    if execution.interrupted:  # half a row is none
        raise KeyboardInterrupt
    images = job.measure(settings, task, execution).summary["images"]
    psnr = np.array([image["psnr_db"] for image in images]).reshape(settings.targets, -1).mean(axis=1)
    data = Path(config.data).stem
    full = [row for row in rows if (row["case"], row["seed"], row["data"]) == (name, seed, data)]
    reference = [row["psnr_db"] for row in full if row["attack"] == PUBLISHED and row["steps"] == case.steps]
    gain = excess(psnr, reference[0]) if reference and len(psnr) > 1 else None
    return {
        "case": name,
        "data": data,
        "seed": seed,
        "attack": attack,
        "steps": steps,
        "clients": settings.targets,
        "mean_psnr_db": float(psnr.mean()),
        "median_psnr_db": float(np.median(psnr)),
        "min_psnr_db": float(psnr.min()),
        "gain_db": None if gain is None else gain.mean,
        "gain_low_db": None if gain is None else gain.low,
        "gain_high_db": None if gain is None else gain.high,
        "seconds": execution.seconds_run,
        "psnr_db": psnr.tolist(),
        "device": job.device_name(),
        "jax": jax.__version__,
    }


def draw(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Draws mean PSNR against steps, one panel for each case."""
    names = list(dict.fromkeys(row["case"] for row in rows))
    across = min(4, len(names))
    down = -(-len(names) // across)
    figure = Figure(figsize=(3 * across, 2.6 * down), dpi=110, layout="constrained")
    panels = figure.subplots(down, across, squeeze=False).flat
    for panel, name in zip(panels, names):
        for attack, color in ((PUBLISHED, "#888888"), (OURS, "#b5482a")):
            points: dict[int, list[float]] = {}
            for row in rows:
                if (row["case"], row["attack"]) == (name, attack):
                    points.setdefault(row["steps"], []).append(row["mean_psnr_db"])
            steps = sorted(points)
            panel.plot(steps, [np.mean(points[n]) for n in steps], "o-", color=color, label=attack)
        panel.set(xscale="log", title=name, xlabel="steps", ylabel="mean PSNR, dB")
        panel.minorticks_off()
    for panel in list(panels):
        panel.set_visible(False)
    next(iter(figure.axes)).legend(fontsize=8, frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


if __name__ == "__main__":
    main()
