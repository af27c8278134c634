"""Spectral matching beside the published attacks: fewer steps for the same quality, and more quality in as many.

Setting: labels known, one restart, selected by attack loss. Inverting Gradients has the TV weight of its paper (of
our demo for the small convolutional network); spectral matching has its defaults everywhere, tuned on images
`train[2000:2100]` with these untrained networks, of seed 0 and others. All start from their own law of starts. For
every case Inverting Gradients runs for `steps`, spectral matching for shares of them, DLG (which finds labels
itself; iDLG for one example) for as many and GradInversion, each of whose steps moves eight seeds, for an eighth,
on the first clients only. `gain_db` is the mean over clients of the difference to the full run of Inverting
Gradients on the same images, with its 95 % interval; `seconds` are those of all clients, compilation
apart.

Command:  python -m experiments.train --data FILE.npz --split "train[:50%]" --model lenet --out runs/train/lenet
          python -m experiments.spectral --data FILE.npz --json FILE.json --figure FILE.png
Smoke:    python -m experiments.spectral --smoke
Expected: on LeNet at least the published quality in a tenth of the steps, and 5 dB more in as many; elsewhere the
          published quality in a quarter of the steps.
Measured: see experiments/details/spectral.md and docs/spectral.md
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import tyro
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from experiments import harness
from jaxinvert import jobs
from jaxinvert.audit.evidence import excess


class Case(NamedTuple):
    """Clients, and how long and with which prior the published attack runs on them.

    Attributes:
      client: fields of `jobs.JobConfig`, by flat names.
      steps: of the published attack.
      tv: its weight of the total variation.
      shares: of these steps, for spectral matching.
      shorter: shares for the published attack, too.
      rival_targets: clients that the other published attacks are run on; none where they take too long.
    """

    client: Mapping[str, Any]
    steps: int
    tv: float
    shares: tuple[float, ...] = (0.25, 1)
    shorter: tuple[float, ...] = ()
    rival_targets: int = 0


LENET_TRAINED = {"model": "lenet", "checkpoint": Path("runs/train/lenet/epoch-20.safetensors")}
FEDAVG = {"client": "fedavg", "local_lr": 1e-4, "local_epochs": 5}
SHARES = ((0.1, 0.25, 1), (0.25,))
"""Of the steps: for spectral matching, and beside the full run for the published attack."""

CASES = {
    "LeNet untrained": Case({"model": "lenet", "targets": 100}, 4800, 1e-2, (0.1, 0.2083, 1), (0.1, 0.2083), 4),
    "LeNet trained": Case({**LENET_TRAINED, "targets": 40}, 2400, 1e-2, (0.1, 0.25, 1), (0.25,), 10),
    "LeNet, 4 images": Case({"model": "lenet", "targets": 10, "num_examples": 4}, 2400, 1e-2, *SHARES, 2),
    "LeNet, 8 images": Case({"model": "lenet", "targets": 5, "num_examples": 8}, 2400, 1e-2, *SHARES),
    "LeNet, 16 images": Case({"model": "lenet", "targets": 3, "num_examples": 16}, 2400, 1e-2, *SHARES),
    "LeNet trained, 4 images": Case({**LENET_TRAINED, "targets": 6, "num_examples": 4}, 1600, 1e-2, *SHARES),
    "LeNet, FedAvg": Case({"model": "lenet", "targets": 8, "num_examples": 4, **FEDAVG}, 800, 1e-2, *SHARES),
    "small-convnet": Case({"model": "small-convnet", "targets": 10}, 500, 1e-3, *SHARES, 4),
    "small-convnet, 4 images": Case({"model": "small-convnet", "targets": 3, "num_examples": 4}, 500, 1e-3, *SHARES),
    "ConvNet-16": Case({"model": "convnet16", "targets": 4}, 1000, 1e-4, (0.25, 1), (0.25,)),
    "ConvNet-64": Case({"model": "convnet64", "targets": 4}, 1000, 1e-6),
    "ResNet20-4": Case({"model": "resnet20-4", "targets": 4}, 1200, 1e-2),
}
"""As large as two cores do in minutes each; ResNet20-4 and ConvNet-64 take a quarter of an hour or more."""

PUBLISHED, OURS = "inverting-gradients", "spectral"
RIVALS = {"idlg": 1, "dlg": 1, "see-through-gradients": 1 / 8}
"""Their share of the steps: what GradInversion spends on one step moves eight seeds."""
COLORS = {
    PUBLISHED: "#888888",
    OURS: "#b5482a",
    "idlg": "#3d6f9e",
    "dlg": "#3d6f9e",
    "see-through-gradients": "#5d8f4a",
}
KEYS = ("case", "attack", "steps", "seed", "data")
"""What tells rows apart."""
TITLE = "Spectral matching beside published attacks"


@dataclass(frozen=True)
class Config:
    """Which cases to run.

    Attributes:
      data: data set by name, folder or npz.
      cases: only those of these names; or whose names contain one of these, if one is no whole name.
      seeds: of networks and starts; every case runs once for each.
      targets: clients of every case; by default the case's own number.
      smoke: a run of seconds on the embedded photos that only shows that everything works.
      json: file for the rows; those that it holds are not run again.
      figure: picture of the PSNR against the time of a client, for all cases of the file.
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
    chosen = {name: CASES[name] for name in named(config.cases)}
    if not chosen:
        raise SystemExit(f"no case is named like {config.cases}; there are {list(CASES)}")
    if config.smoke:
        config = replace(config, data="photos", targets=2)
        chosen = {"MLP": Case({"model": "mlp-32"}, 8, 1e-2)}
    rows = harness.kept_rows(config.json)
    for name, case in chosen.items():
        for seed in config.seeds:
            done = {tuple(row[key] for key in KEYS) for row in rows}
            for attack, steps, targets in runs(case, config.targets):
                if (name, attack, steps, seed, Path(config.data).stem) in done:
                    continue
                print(f"{name}, seed {seed}: {attack}, {steps} steps", flush=True)
                fields = {**case.client, "targets": targets, "attack": attack, "steps": steps, "seed": seed}
                fields |= {"tv": case.tv} if attack == PUBLISHED else {}
                settings = jobs.JobConfig.of(data=config.data, restarts=1, **fields)
                rows.append(measured(settings, name, case.steps, rows))
                if config.json is not None:
                    harness.save(config.json, TITLE, rows)
    shown = [{key: row[key] for key in row if key not in ("psnr_db", "device", "jax")} for row in rows]
    harness.publish(TITLE, shown)
    if config.figure is not None:
        draw(config.figure, rows)


def named(wanted: Sequence[str]) -> list[str]:
    """The cases of these names, or that have one of these in their names; all if none is wanted."""
    whole = [name for name in CASES if name in wanted]
    return whole if len(whole) == len(set(wanted)) > 0 else [n for n in CASES if any(p in n for p in wanted or [""])]


def runs(case: Case, targets: int | None = None) -> list[tuple[str, int, int]]:
    """Attacks, steps and clients of a case, the published full run first."""
    clients: int = targets or case.client["targets"]
    single = case.client.get("num_examples", 1) == 1
    rivals = [(name, share) for name, share in RIVALS.items() if name != ("dlg" if single else "idlg")]
    lengths = [(PUBLISHED, share, clients) for share in (1, *case.shorter)]
    lengths += [(OURS, share, clients) for share in case.shares]
    lengths += [(name, share, min(clients, case.rival_targets)) for name, share in rivals if case.rival_targets]
    return [(attack, round(case.steps * share), count) for attack, share, count in lengths]


def measured(
    settings: jobs.JobConfig, name: str, full_steps: int, rows: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """One attack on clients of a case, beside the published one's full run on the same images."""
    task = jobs.prepare(settings)
    execution = jobs.execute(settings, task.program, task.observations)
    if execution.interrupted:  # half a row is none
        raise KeyboardInterrupt
    images = jobs.measure(settings, task, execution).summary["images"]
    psnr = np.array([image["psnr_db"] for image in images]).reshape(settings.data.targets, -1).mean(axis=1)
    data = Path(settings.data.name).stem
    same = [row for row in rows if (row["case"], row["seed"], row["data"]) == (name, settings.seed, data)]
    reference = [row["psnr_db"] for row in same if (row["attack"], row["steps"]) == (PUBLISHED, full_steps)]
    gain = excess(psnr, reference[0][: len(psnr)]) if reference and len(psnr) > 1 else None
    return {
        "case": name,
        "data": data,
        "seed": settings.seed,
        "attack": settings.attacker.attack,
        "steps": settings.search.steps,
        "clients": settings.data.targets,
        "mean_psnr_db": float(psnr.mean()),
        "median_psnr_db": float(np.median(psnr)),
        "min_psnr_db": float(psnr.min()),
        "gain_db": None if gain is None else gain.mean,
        "gain_low_db": None if gain is None else gain.low,
        "gain_high_db": None if gain is None else gain.high,
        "seconds": execution.seconds_start + execution.seconds_run,
        "psnr_db": psnr.tolist(),
        "device": jobs.device_name(),
        "jax": jax.__version__,
    }


def draw(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Draws the mean PSNR against the seconds that a client takes, one panel for each case and data set."""
    panels_of = list(dict.fromkeys((row["case"], row["data"]) for row in rows))
    across = min(4, len(panels_of))
    down = -(-len(panels_of) // across)
    figure = Figure(figsize=(3 * across, 2.6 * down + 0.4), dpi=110, layout="constrained")
    panels = figure.subplots(down, across, squeeze=False).flat
    names = {}
    for (case, data), panel in zip(panels_of, panels):
        for attack, color in COLORS.items():
            points: dict[int, list[tuple[float, float]]] = {}
            for row in rows:
                if (row["case"], row["data"], row["attack"]) == (case, data, attack):
                    points.setdefault(row["steps"], []).append((row["seconds"] / row["clients"], row["mean_psnr_db"]))
            if points:
                seconds, psnr = np.array([np.mean(points[n], axis=0) for n in sorted(points)]).T
                names[attack.replace("idlg", "dlg")] = panel.plot(seconds, psnr, "o-", color=color)[0]
        panel.set(xscale="log", title=f"{case}\n{data}", xlabel="seconds per client", ylabel="mean PSNR, dB")
        panel.title.set_fontsize(9)
        panel.xaxis.set_major_locator(LogLocator(subs=(1, 3)))
        panel.xaxis.set_major_formatter("{x:g}")
        panel.xaxis.set_minor_formatter(NullFormatter())
    for panel in list(panels):
        panel.set_visible(False)
    figure.legend(names.values(), names.keys(), loc="outside lower center", ncols=len(names), frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


if __name__ == "__main__":
    main()
