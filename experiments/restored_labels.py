"""What unknown labels cost: the same attack with labels known, restored from the update, and optimized jointly.

Setting: an untrained network, or a trained one at several epochs; clients of FedSGD, and of FedAvg with five local
steps over all their examples; server of threat model C. Every row attacks the same updates from the same starts;
restored labels are ascending, as those of every client are here. Exact: targets whose multiset of labels was found;
PSNR is the mean over all images, and the loss against known labels is given for targets with exact labels.

Command:  python -m experiments.restored_labels --data FILE.npz --json FILE.json
Smoke:    python -m experiments.restored_labels --smoke
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import tyro

from experiments import harness
from jaxinvert import jobs, models

CLIENTS: tuple[Literal["fedsgd", "fedavg"], ...] = ("fedsgd", "fedavg")


@dataclass(frozen=True)
class Config:
    """Setting of the experiment.

    Attributes:
      data: data set by name, folder or npz.
      model: network by name.
      checkpoints: trained parameters of it, from `experiments.train`; by default fresh ones.
      targets: clients.
      num_examples: of each client.
      local_epochs: of the FedAvg clients.
      local_lr: their learning rate.
      restarts: starts of each attack.
      steps: of the attack.
      tv: weight of the total variation.
      seed: of the network and the starts.
      smoke: a run of seconds on the embedded photos that only shows that everything works.
      json: file for the rows.
    """

    data: str = "photos"
    model: str = "small-convnet"
    checkpoints: tuple[Path, ...] = ()
    targets: int = 5
    num_examples: int = 2
    local_epochs: int = 5
    local_lr: float = 0.01
    restarts: int = 1
    steps: int = 300
    tv: float = 1e-3
    seed: int = 0
    smoke: bool = False
    json: Path | None = None


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs every client with every way to the labels and prints a row each."""
    config = tyro.cli(Config, description=__doc__, args=arguments)
    if config.smoke:
        config = replace(config, data="photos", model="mlp", targets=1, restarts=1, steps=5, local_epochs=2)
    rows = [
        row
        for checkpoint in config.checkpoints or [None]
        for client in (CLIENTS[1:] if config.smoke else CLIENTS)
        for row in compare(config, checkpoint, client)
    ]
    harness.publish(f"Restored labels, {config.model}, {Path(config.data).stem}", rows, json_file=config.json)


def compare(config: Config, checkpoint: Path | None, client: Literal["fedsgd", "fedavg"]) -> list[dict]:
    """One kind of client, three ways to its labels."""
    rows, known_psnr = [], np.array([])
    epochs = 0 if checkpoint is None else models.read_facts(checkpoint)["epochs"]
    for labels in ("known", "restored", "joint"):
        settings = jobs.JobConfig.of(
            model=config.model,
            checkpoint=checkpoint,
            data=config.data,
            targets=config.targets,
            num_examples=config.num_examples,
            client=client,
            **({"local_epochs": config.local_epochs, "local_lr": config.local_lr} if client == "fedavg" else {}),
            labels=labels,
            restarts=config.restarts,
            steps=config.steps,
            tv=config.tv,
            seed=config.seed,
        )
        task = jobs.prepare(settings)
        summary = jobs.measure(settings, task, jobs.execute(settings, task.program, task.observations)).summary
        psnr = np.array([image["psnr_db"] for image in summary["images"]]).reshape(config.targets, -1)
        found = summary["labels"]
        exact = np.ones(config.targets, bool) if found is None else np.asarray(found["exact"])
        if found is None:
            known_psnr = psnr
        rows.append(
            {
                "epochs": epochs,
                "client": client,
                "local_steps": settings.local_training.num_steps,
                "labels": labels,
                "rule": settings.chosen_label_rule if labels == "restored" else "-",
                "targets": config.targets,
                "exact": int(exact.sum()),
                "recall": None if found is None else found["recall"],
                "mean_psnr_db": psnr.mean(),
                "loss_db_where_exact": float((known_psnr - psnr)[exact].mean()) if exact.any() else None,
            }
        )
    return rows


if __name__ == "__main__":
    main()
