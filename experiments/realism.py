"""What realistic federated learning leaks: a map over networks, BatchNorm modes, batches, local steps and defenses.

Setting: each cell is an audit as `jaxinvert audit` runs it, of clients that no other client shares images with. The
attack is `auto`, a closed form where one is exact, else `spectral`. It knows labels, local rate and the order of
local batches, and adapts to the defense: an attacker better off than in most deployments. `gain_db` is the mean PSNR
over the strongest null control (a random update of the same norms, the mean image, the class mean, another client's
result), averaged over clients, with its 95 % interval; `identified` counts clients of whom an image is picked out
among the candidates of its class (of 500 candidates in all). The verdict is the audit's, with at most 1 % false
alarms per cell. `records` is how many examples a client's local training processed. Trained networks learned from the
split "train" (`experiments.train`), the clients' images are of "test".

Command:  python -m experiments.realism --data FILE.npz --json FILE.json --png FILE.png
Paper:    the same with --full, for an accelerator
Smoke:    python -m experiments.realism --smoke
Measured: see experiments/details/realism.md
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tyro
from matplotlib.figure import Figure

from experiments import harness, train
from jaxinvert import audit, jobs

TITLE = "What realistic federated learning leaks"


class Network(NamedTuple):
    """A line of the map: a network by name, whether it is trained, and the mode of its BatchNorm, if it has any."""

    name: str
    trained: bool = False
    mode: str = ""

    def __str__(self) -> str:
        """The line's label."""
        return " ".join(filter(None, (self.name, "trained" if self.trained else "untrained", self.mode)))


class Client(NamedTuple):
    """A column of the map: images of a client, passes over them, and images per local step (0 = all)."""

    images: int
    epochs: int = 1
    per_step: int = 0

    @property
    def steps(self) -> int:
        """Local steps."""
        return self.epochs * self.images // (self.per_step or self.images)

    @property
    def records(self) -> int:
        """Examples that the local training processes."""
        return self.epochs * self.images

    def __str__(self) -> str:
        """The column's label."""
        return _column(self.images, self.steps)

    def fields(self, rate: float) -> dict[str, Any]:
        """Flat fields of the job; one step is a gradient, more are FedAvg."""
        if self.steps == 1:
            return {"num_examples": self.images}
        local = {"local_epochs": self.epochs, "local_batch_size": self.per_step or None, "local_lr": rate}
        return {"num_examples": self.images, "client": "fedavg", **local}


class Size(NamedTuple):
    """The axes of the map, and how large its cells are."""

    networks: tuple[Network, ...]
    clients: tuple[Client, ...]
    defenses: tuple[str, ...]
    targets: int
    steps: int
    pixels: int
    epochs: int
    candidates: int = 500


def _both(name: str, mode: str = "") -> tuple[Network, Network]:
    return Network(name, mode=mode), Network(name, trained=True, mode=mode)


TWO_CORES = Size(
    (
        *_both("lenet"),
        *_both("small-convnet"),
        Network("resnet20-1", mode="train"),
        Network("resnet20-1", trained=True, mode="train"),
        Network("resnet20-1", trained=True, mode="eval"),
        *_both("vit-pre-norm-4-64-2"),
    ),
    (Client(1), Client(1, epochs=8), Client(8), Client(8, per_step=1), Client(32)),
    ("none", "percentile-noise:scale=0.1"),
    **{"targets": 8, "steps": 60, "pixels": 16, "epochs": 10},
)
FULL = Size(
    (
        *_both("lenet"),
        *_both("small-convnet"),
        *_both("convnet64", "train"),
        *_both("resnet20-4", "eval"),
        *_both("resnet20-4", "train"),
        *_both("vit-pre-norm-4-128-4"),
    ),
    (
        *(Client(images) for images in (1, 8, 64, 512)),
        *(Client(1, epochs=100), Client(8, epochs=8), Client(8, per_step=1), Client(64, per_step=8)),
        *(Client(64, epochs=10, per_step=8), Client(512, per_step=64), Client(512, epochs=10, per_step=64)),
    ),
    ("none", "percentile-noise:scale=0.1", "top-k:keep=0.1", "dp-sgd:multiplier=0.01"),
    **{"targets": 32, "steps": 2000, "pixels": 32, "epochs": 60},
)
SMOKE = Size((Network("mlp-16"),), (Client(1, epochs=2),), ("none", "top-k:keep=0.5"), 2, 2, 8, 1, 4)
LOCAL_RATE = 0.01
_DARKEST = 30.0
"""Gain in dB from which colors are the same; images of closed forms would leave the others white."""
_SHOWN = (
    *("network", "trained", "mode", "batch", "local_steps", "defense", "clients", "mean_psnr_db", "control_db"),
    *("gain_db", "gain_low_db", "gain_high_db", "identified", "identified_of", "verdict"),
)
"""Columns on the screen; the file has all."""


@dataclass(frozen=True)
class Config:
    """Which map.

    Attributes:
      data: data set by name, folder or npz.
      full: the map for an accelerator instead of the one for two cores.
      networks: only lines whose labels contain one of these.
      seed: of networks, clients and starts.
      models: folder of the trained networks, which are trained where they are missing.
      smoke: a run of seconds that only shows that everything works.
      json: file for the rows; cells that it holds are not run again.
      png: file for the heat map.
    """

    data: str = "photos"
    full: bool = False
    networks: tuple[str, ...] = ()
    seed: int = 0
    models: Path = Path("runs/realism")
    smoke: bool = False
    json: Path | None = None
    png: Path | None = None


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the cells that are missing, saving each, and draws the map."""
    config = tyro.cli(Config, description=__doc__, args=arguments)
    size = SMOKE if config.smoke else FULL if config.full else TWO_CORES
    named = config.networks or ("",)
    chosen = [network for network in size.networks if any(part in str(network) for part in named)]
    rows = harness.kept_rows(config.json)
    cells = list(itertools.product(size.clients, chosen))
    for number, (client, network) in enumerate(cells):
        described = {
            **{"network": network.name, "trained": network.trained, "mode": network.mode or None},
            **{"batch": client.images, "local_steps": client.steps, "records": client.records},
            **{"steps": size.steps, "pixels": size.pixels, "data": Path(config.data).stem, "seed": config.seed},
        }
        if any(described.items() <= row.items() for row in rows):
            continue
        print(f"cell {number + 1} of {len(cells)}: {network}, {client!s}".replace("\n", ", "), flush=True)
        found = measured(config, size, network, client)
        rows += [{**described, "defense": defense, **row} for defense, row in found.items()]
        if config.json is not None:
            harness.save(config.json, TITLE, rows)
    harness.publish(TITLE, [{name: row[name] for name in _SHOWN} for row in rows])
    if config.png is not None:
        plot(rows, config.png)


def measured(config: Config, size: Size, network: Network, client: Client) -> Mapping[str, dict[str, Any]]:
    """The audit of one network and client under all defenses: rows by defense."""
    job = jobs.JobConfig.of(
        **{"data": config.data, "model": network.name, "size": size.pixels, "targets": size.targets},
        **{"attack": "auto", "steps": size.steps, "restarts": 1, "seed": config.seed},
        **({"batch_norm": network.mode} if network.mode else {}),
        **({"checkpoint": trained(config, size, network.name)} if network.trained else {}),
        **client.fields(LOCAL_RATE),
    )
    scenarios = [
        scenario._replace(attackers=dict([list(scenario.attackers.items())[-1]]))  # the adaptive one where it exists
        for scenario in audit.settings_for(job, size.defenses)
    ]
    audited = audit.audit(scenarios, num_candidates=size.candidates)
    return {defense: in_figures(one) for defense, one in zip(size.defenses, audited, strict=True)}


def in_figures(one: audit.Audited) -> dict[str, Any]:
    """What the map keeps of an audited scenario."""
    attacked = one.attackers[one.worst]
    identified, gain = attacked.identified, attacked.excess
    return {
        "attacker": one.worst,
        "clients": len(attacked.scores.psnr_db),
        "mean_psnr_db": float(np.mean(attacked.scores.psnr_db)),
        "control": attacked.strongest,
        "control_db": float(np.mean(attacked.controls[attacked.strongest].psnr_db)),
        "gain_db": gain.mean,
        "gain_low_db": gain.low,
        "gain_high_db": gain.high,
        "identified": identified.count,
        "identified_of": identified.total,
        "identified_low": identified.low,
        "identified_high": identified.high,
        "chance": identified.chance,
        "verdict": one.verdict.level,
    }


def trained(config: Config, size: Size, network: str) -> Path:
    """The checkpoint of a network after its training, which runs where it is missing."""
    folder = config.models / f"{Path(config.data).stem}-{size.pixels}-{config.seed}" / network
    setting = train.Config(
        **{"data": config.data, "size": size.pixels, "model": network, "epochs": size.epochs},
        **{"seed": config.seed, "keep": (), "out": folder},
    )
    last = folder / f"epoch-{size.epochs}.safetensors"
    if not last.exists():
        print(f"training {network}", flush=True)
        print(f"accuracy on the test split: {train.train(setting)[-1]['test_accuracy']:.1%}", flush=True)
    return last


def plot(rows: Sequence[Mapping[str, Any]], file: Path) -> None:
    """A panel for each defense, a line for each network, a column for each kind of client; in color the gain.

    A cell says the gain in dB, how many clients were identified, and the verdict, if it is one.
    """
    networks = sorted({Network(row["network"], row["trained"], row["mode"] or "") for row in rows})
    clients = sorted({(row["batch"], row["local_steps"]) for row in rows})
    defenses = list(dict.fromkeys(row["defense"] for row in rows))
    size = (1.9 + 0.85 * len(clients) * len(defenses), 1.5 + 0.42 * len(networks))
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(1, len(defenses), sharey=True, squeeze=False)[0]
    most = min(max(row["gain_db"] for row in rows), _DARKEST)
    for axes, defense in zip(panels, defenses, strict=True):
        gains = np.full((len(networks), len(clients)), np.nan)
        for row in (row for row in rows if row["defense"] == defense):
            y = networks.index(Network(row["network"], row["trained"], row["mode"] or ""))
            x = clients.index((row["batch"], row["local_steps"]))
            gains[y, x] = row["gain_db"]
            told = "" if row["verdict"] == "none" else f" {row['verdict']}"
            axes.text(
                *(x, y, f"{row['gain_db']:+.1f}\n{row['identified']}/{row['identified_of']}{told}"),
                **{"ha": "center", "va": "center", "fontsize": 7},
                color="white" if row["gain_db"] > 0.6 * most else "black",
            )
        image = axes.imshow(gains, cmap="Oranges", vmin=0, vmax=most, aspect="auto")
        axes.set_xticks(range(len(clients)), [_column(*client) for client in clients], fontsize=7)
        axes.set_yticks(range(len(networks)), [*map(str, networks)], fontsize=7)
        axes.set_title("no defense" if defense == "none" else defense, fontsize=8)
    figure.colorbar(image, label="PSNR over the strongest control [dB]")
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=150)


def _column(images: int, steps: int) -> str:
    return f"{images} image{'s' * (images > 1)}\n{steps} step{'s' * (steps > 1)}"


if __name__ == "__main__":
    main()
