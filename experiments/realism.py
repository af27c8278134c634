"""What realistic federated learning leaks: a map over network, BatchNorm mode, batch, local steps and defense.

Setting: every cell is one job of `jobs.JobConfig`: clients train on their images, the attacker knows labels and
adapts to the defense. `gain_db` is the mean PSNR over images of a client minus that of the null, the same program on
a random update of the same norms, averaged over clients with its 95 % interval. A cell leaks if its interval is above
0. In all cells the attacker sees updates of the same clients, and takes the same number of steps.

Command:  python -m experiments.realism --json FILE.json --png FILE.png
Paper:    the same with --full, for an accelerator
Smoke:    python -m experiments.realism --smoke
Expected: single images of untrained networks leak most, batches, local steps and noise take most of it away.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import tyro
from matplotlib.figure import Figure

from experiments import harness
from jaxinvert import jobs
from jaxinvert.audit.controls import random_update
from jaxinvert.audit.evidence import excess

TITLE = "What realistic federated learning leaks"


class Size(NamedTuple):
    """The axes of the map, and how large its cells are."""

    networks: tuple[str, ...]
    batches: tuple[int, ...]
    epochs: tuple[int, ...]
    targets: int
    steps: int
    pixels: int


SMALL = ("lenet", "small-convnet", "small-convnet-bn16 eval", "small-convnet-bn16 train")
TWO_CORES = Size(SMALL, (1, 4), (1, 5), 4, 100, 16)
FULL = Size((*SMALL, "convnet64", "resnet20-4 train", "vit"), (1, 8, 64, 512), (1, 10, 100), 16, 2000, 32)
SMOKE = Size(("mlp-16",), (1,), (1,), 2, 2, 8)
DEFENSES: dict[str, dict[str, Any]] = {
    "none": {},
    "gaussian": {"defense": "gaussian", "defense_settings": {"scale": 1e-2}, "adaptive": True},
}


@dataclass(frozen=True)
class Config:
    """Which map.

    Attributes:
      data: data set by name, folder or npz.
      full: the map for an accelerator instead of the one for two cores.
      seed: of networks, clients and starts.
      smoke: a run of seconds that only shows that everything works.
      json: file for the rows; cells that it holds are not run again.
      png: file for the heat map.
    """

    data: str = "photos"
    full: bool = False
    seed: int = 0
    smoke: bool = False
    json: Path | None = None
    png: Path | None = None


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the cells that are missing, saving each, and draws the map."""
    config = tyro.cli(Config, description=__doc__, args=arguments)
    size = SMOKE if config.smoke else FULL if config.full else TWO_CORES
    rows = harness.kept_rows(config.json)
    names, setting = ("steps", "data", "seed"), (size.steps, Path(config.data).stem, config.seed)
    done = {tuple(row[name] for name in ("network", "batch", "epochs", "defense", *names)) for row in rows}
    defenses = ("none",) if config.smoke else tuple(DEFENSES)
    for cell in itertools.product(size.networks, size.batches, size.epochs, defenses):
        if (*cell, *setting) in done:
            continue
        rows.append(measured(config, size, *cell))
        print(f"{', '.join(map(str, cell))}: {rows[-1]['gain_db']:.1f} dB over the null", flush=True)
        if config.json is not None:
            harness.save(config.json, TITLE, rows)
    harness.publish(TITLE, rows, json_file=config.json)
    if config.png is not None:
        plot(rows, config.png)


def measured(config: Config, size: Size, network: str, batch: int, epochs: int, defense: str) -> dict[str, Any]:
    """One cell: the attack and its null on the same clients."""
    model, _, mode = network.partition(" ")
    local = {"client": "fedavg", "local_epochs": epochs, "local_lr": 0.01} if epochs > 1 else {}
    job = jobs.JobConfig.of(
        **{"data": config.data, "model": model, "size": size.pixels, "num_examples": batch, "targets": size.targets},
        **{"attack": "spectral", "steps": size.steps, "restarts": 1, "seed": config.seed},
        **({"batch_norm": mode} if mode else {}),
        **local,
        **DEFENSES[defense],
    )
    task = jobs.prepare(job)
    null = random_update(jax.random.key(config.seed + 1), task.observations)
    attack, control = (by_client(job, task, seen) for seen in (task.observations, null))
    gain = excess(attack, control)
    return {
        "network": network,
        "batch": batch,
        "epochs": epochs,
        "defense": defense,
        "clients": len(attack),
        "steps": size.steps,
        "data": Path(config.data).stem,
        "seed": config.seed,
        "mean_psnr_db": float(attack.mean()),
        "null_db": float(control.mean()),
        "gain_db": gain.mean,
        "gain_low_db": gain.low,
        "gain_high_db": gain.high,
        "verdict": "leaks" if gain.low is not None and gain.low > 0 else "nothing shown",
    }


def by_client(job: jobs.JobConfig, task: jobs.Task, seen: Any) -> np.ndarray:
    """`[T]` mean PSNR in dB of the images of every client."""
    done = jobs.execute(job, task.program, seen)
    psnr = [image["psnr_db"] for image in jobs.measure(job, task, done).summary["images"]]
    return np.array(psnr).reshape(job.data.targets, -1).mean(axis=1)


def plot(rows: list[dict[str, Any]], file: Path) -> None:
    """A row for each network and defense, a column for each batch and number of epochs; in color the gain."""
    lines = list(dict.fromkeys((row["network"], row["defense"]) for row in rows))
    columns = list(dict.fromkeys((row["batch"], row["epochs"]) for row in rows))
    gains = np.full((len(lines), len(columns)), np.nan)
    figure = Figure(figsize=(1.5 + 1.3 * len(columns), 1.2 + 0.42 * len(lines)), layout="constrained")
    axes = figure.subplots()
    for row in rows:
        y, x = lines.index((row["network"], row["defense"])), columns.index((row["batch"], row["epochs"]))
        gains[y, x] = row["gain_db"]
        mark = "" if row["verdict"] == "leaks" else " *"
        axes.text(x, y, f"{row['gain_db']:.1f}{mark}", ha="center", va="center", fontsize=7)
    image = axes.imshow(gains, cmap="Oranges", vmin=0, aspect="auto")
    axes.set_xticks(
        range(len(columns)), [f"{batch} images\n{epochs} epochs" for batch, epochs in columns], fontsize=7
    )
    axes.set_yticks(range(len(lines)), [f"{network}, {defense}" for network, defense in lines], fontsize=7)
    figure.colorbar(image, label="PSNR over the null [dB]; * interval holds 0")
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=150)


if __name__ == "__main__":
    main()
