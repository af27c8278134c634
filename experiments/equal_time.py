"""Convolutional networks at equal processor time: whitened matching beside spectral and the published loop.

Setting: FedSGD clients with random test images, labels known, one restart. Untrained, every client has a network of
its own; trained ones have the parameters of a checkpoint. Every attack has the same processor seconds for a client,
its schedule laid out over the steps that they allow, compilation apart. `gain` is the mean over clients of the
difference to `inverting-gradients` on the same update, with its 95 % interval. Its weights of the total variation are
those of `experiments.spectral`; the others have one for all networks. Whitened matching was designed on images
`train[3000:3004]`, four of them, on untrained networks.

Command:  python -m experiments.realism --data FILE.npz      (leaves the trained networks)
          python -m experiments.equal_time --data FILE.npz --json FILE.json
Smoke:    python -m experiments.equal_time --smoke
Measured: see experiments/details/equal-time.md
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import tyro

from experiments import harness, vit_batches
from jaxinvert import data


class Case(NamedTuple):
    """Clients of one kind.

    Attributes:
      model: the network by name.
      size: side of the images in pixels.
      batch_size: images of every client.
      clients: number of clients.
      seconds: processor seconds for one image.
      tv: the published loop's weight of the total variation.
      trained: whether the network has the parameters of a checkpoint.
    """

    model: str
    size: int
    batch_size: int
    clients: int
    seconds: float
    tv: float = 1e-2
    trained: bool = False


CASES = (
    Case("lenet", 32, 1, 32, 2.0),
    Case("small-convnet", 32, 1, 16, 3.0, 1e-3),
    Case("convnet16", 32, 1, 16, 10.0, 1e-4),
    Case("resnet20-1", 16, 1, 16, 5.0),
    Case("resnet20-1", 16, 1, 16, 5.0, 1e-2, True),
    Case("small-convnet", 16, 1, 16, 2.0, 1e-3, True),
    Case("lenet", 16, 1, 16, 2.0, 1e-2, True),
    Case("resnet20-4", 32, 1, 8, 40.0),
    Case("lenet", 32, 8, 4, 2.0),
    Case("small-convnet", 32, 8, 4, 4.0, 1e-3),
    Case("convnet64", 32, 1, 4, 60.0, 1e-6),
)
ATTACKS = ("inverting-gradients", "spectral", "whitened")


@dataclass(frozen=True)
class Config:
    """Setting of the experiment.

    Attributes:
      data: data set by name, folder or npz.
      cases: see `Case`.
      models: folder with the trained networks, as `experiments.realism` leaves them.
      seed: of networks, images and starts.
      smoke: a run of seconds on the embedded photos that only shows that everything works.
      json: file for the rows, written after each case; those that it holds are not run again.
    """

    data: str = "photos"
    cases: tuple[Case, ...] = CASES
    models: Path = Path("runs/realism")
    seed: int = 0
    smoke: bool = False
    json: Path | None = None


def main(arguments: Sequence[str] | None = None) -> None:
    """Attacks the clients of the cases that are missing in the file of rows, and prints all rows."""
    config = tyro.cli(Config, description=__doc__, args=arguments)
    if config.smoke:
        config = replace(config, data="photos", cases=(Case("mlp-16", 8, 1, 2, 0.0),))
    title = f"Equal processor time, {Path(config.data).stem}"
    rows = harness.kept_rows(config.json)
    done = {tuple(row[name] for name in (*Case._fields, "seed")) for row in rows}
    for case in config.cases:
        if (*case, config.seed) in done:
            continue
        print(case, flush=True)
        rows += [{**case._asdict(), **row} for row in measured(config, case)]
        if config.json is not None:
            harness.save(config.json, title, rows)
    harness.publish(title, rows, json_file=config.json)


def measured(config: Config, case: Case) -> list[dict]:
    """The rows of one case, one for each attack."""
    setting = vit_batches.Config(
        data=config.data,
        attacks=ATTACKS,
        tv=case.tv,
        seconds=case.seconds,
        null=False,
        trained=checkpoint(config, case),
        seed=config.seed,
    )
    clients = vit_batches.Case(case.model, case.trained, case.batch_size, case.clients)
    rows = vit_batches.measure(setting, data.load(config.data, split="test", size=case.size), clients)
    kept = ("attack", "steps", "mean_db", "min_db", "max_db", "above_20_db", "identified", "chance", "seed")
    gains = ("gain_db", "gain_low_db", "gain_high_db")
    return [{name: row[name] for name in (*kept, *gains)} for row in rows]


def checkpoint(config: Config, case: Case) -> Path:
    """The last parameters that `experiments.realism` trained for a network at this size."""
    folder = config.models / f"{Path(config.data).stem}-{case.size}-{config.seed}" / case.model
    kept = sorted(folder.glob("epoch-*.safetensors"), key=lambda file: int(file.stem.partition("-")[2]))
    if case.trained and not kept:
        raise SystemExit(f"there is no trained {case.model} in {folder}; experiments.realism trains it")
    return kept[-1] if kept else folder


if __name__ == "__main__":
    main()
