"""Images of clients that train low-rank adapters (LoRA) of a Vision Transformer only, by search.

Setting: one embedded photo per client, 16 px, on a pre-norm Vision Transformer with patches of 4 px, untrained or
trained on the other embedded photos; labels are granted. In one round, `B` is zero and the gradient of `A`, too; with
two rounds, the attacker sees both, and in the second `A` moves. `equations` counts the non-zero entries of the last
update, for 768 unknown pixels per image. `other` is the mean PSNR of the same reconstructions with the photos of
other clients: the null control. `accuracy` is the network's on ten photos of ten scenes.

Command:  python -m experiments.adapters_images --json FILE.json
Smoke:    python -m experiments.adapters_images --smoke
"""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import tyro

from experiments import harness, train
from jaxinvert import jobs, metrics


class Row(NamedTuple):
    """One row: rank of the adapters, rounds that the attacker sees, epochs of training before.

    Of rank 0, clients train the network itself.
    """

    rank: int
    rounds: int
    epochs: int = 0


@dataclass(frozen=True)
class Config:
    """Setting of the experiment.

    Attributes:
      rows: rank, rounds and epochs.
      model: the network.
      size: side length of the images in pixels.
      attack: name of the attack.
      steps: of the search.
      targets: number of clients.
      seed: of the network and the starts.
      smoke: a run of seconds that only shows that everything works.
      json: file for the rows; rows that it holds with the same setting are not run again.
    """

    rows: tuple[Row, ...] = tuple(
        Row(*row, epochs) for epochs in (0, 60) for row in ((0, 1), (4, 1), (8, 1), (4, 2), (8, 2))
    )
    model: str = "vit-pre-norm-4-64-1"
    size: int = 16
    attack: str = "inverting-gradients"
    steps: int = 300
    targets: int = 4
    seed: int = 0
    smoke: bool = False
    json: Path | None = None


def main(arguments: Sequence[str] | None = None) -> None:
    """Attacks the clients of every row that the file does not hold, and prints the table."""
    config = tyro.cli(Config, description=__doc__, args=arguments)
    if config.smoke:
        config = replace(config, rows=(Row(2, 1, 1),), model="vit-pre-norm-4-16-1", size=8, steps=2, targets=2)
    with tempfile.TemporaryDirectory() as folder:
        harness.run_rows(
            f"Adapters of {config.model}, {config.attack}",
            config.rows,
            lambda row: measure(config, row, Path(folder)),
            setting=f"size={config.size} steps={config.steps} targets={config.targets} seed={config.seed}",
            json_file=config.json,
        )


def measure(config: Config, row: Row, folder: Path) -> dict[str, Any]:
    """One row: several clients; trained networks are kept in the folder."""
    checkpoint, accuracy = None, None
    if row.epochs:
        training = train.Config(
            model=config.model,
            size=config.size,
            epochs=row.epochs,
            batch_size=32,
            keep=(),
            out=folder,
            seed=config.seed,
        )
        accuracy = train.train(training)[-1]["test_accuracy"]
        checkpoint = folder / f"epoch-{row.epochs}.safetensors"
    job = jobs.JobConfig.of(
        model=config.model,
        size=config.size,
        checkpoint=checkpoint,
        attack=config.attack,
        steps=config.steps,
        targets=config.targets,
        restarts=1,
        tv=1e-3,
        seed=config.seed,
        lora_rank=row.rank or None,
        rounds=row.rounds,
        server_lr=1.0 if row.rounds > 1 else None,
    )
    task = jobs.prepare(job)
    found = jobs.execute(job, task.program, task.observations)
    summary = jobs.measure(job, task, found).summary
    psnr = np.array([image["psnr_db"] for image in summary["images"]])
    images, truth = np.asarray(found.reconstructions.inputs), np.asarray(task.truth.inputs)
    others = [
        float(np.mean(metrics.evaluate(one, other).psnr_db)) for one, other in zip(images, np.roll(truth, 1, axis=0))
    ]
    update = jax.tree.map(lambda leaf: leaf[0], task.observations.update)
    return {
        **row._asdict(),
        "accuracy": accuracy,
        "images": len(psnr),
        "steps": config.steps,
        "equations": sum(int(np.count_nonzero(leaf)) for leaf in jax.tree.leaves(jax.device_get(update))),
        "mean_db": float(psnr.mean()),
        "median_db": float(np.median(psnr)),
        "min_db": float(psnr.min()),
        "max_db": float(psnr.max()),
        "other_db": float(np.mean(others)),
    }


if __name__ == "__main__":
    main()
