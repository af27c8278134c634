"""Inverting Gradients on an untrained LeNet: the first row of the paper's table of single-image attacks.

Setting: DLG's LeNet with weights U(-0.5, 0.5), normalized CIFAR-10 images, one image per client, labels known,
4,800 signed Adam steps, TV 1e-2; PSNR on [0, 1]. Published (Geiping et al. 2020, mean over 100 images, one
restart): 18.00 +- 3.33 dB. Restarts are selected by attack loss.

Command:  python -m experiments.inverting_gradients_lenet --data cifar10 --json FILE
Smoke:    python -m experiments.inverting_gradients_lenet --smoke
Measured: see experiments/README.md
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import tyro

from experiments import harness
from jaxinvert import job

PUBLISHED_MEAN_DB, PUBLISHED_STD_DB = 18.00, 3.33


@dataclass(frozen=True)
class Config:
    """Setting of the experiment.

    Attributes:
      data: data set by name, folder or npz.
      num_images: targets.
      steps: optimizer steps.
      restarts: numbers of restarts, one row each.
      seed: of the network and the starts.
      smoke: a run of seconds on the embedded photos that only shows that everything works.
      json: file for the rows.
    """

    data: str = "cifar10"
    num_images: int = 20
    steps: int = 4800
    restarts: tuple[int, ...] = (1, 8)
    seed: int = 0
    smoke: bool = False
    json: Path | None = None


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the attack once for every number of restarts and prints a row each."""
    config = tyro.cli(Config, description=__doc__, args=arguments)
    if config.smoke:
        config = replace(config, data="photos", num_images=2, steps=10, restarts=(1, 2))
    rows = [measure(config, num_restarts) for num_restarts in config.restarts]
    title = f"Inverting Gradients, untrained LeNet, {config.num_images} images of {Path(config.data).stem}"
    harness.publish(title, rows, json_file=config.json)


def measure(config: Config, num_restarts: int) -> dict:
    """Attacks all images with `num_restarts` restarts each."""
    settings = job.JobConfig(
        attack="inverting-gradients",
        model="lenet",
        data=config.data,
        targets=config.num_images,
        restarts=num_restarts,
        steps=config.steps,
        seed=config.seed,
        tv=1e-2,
    )
    task = job.prepare(settings)
    execution = job.execute(settings, task.model, task.observations)
    summary = job.measure(settings, task, execution).summary
    psnr = np.array([image["psnr_db"] for image in summary["images"]])
    return {
        "restarts": num_restarts,
        "steps": config.steps,
        "mean_psnr_db": psnr.mean(),
        "std_psnr_db": psnr.std(),
        "median_psnr_db": np.median(psnr),
        "min_psnr_db": psnr.min(),
        "max_psnr_db": psnr.max(),
        "published_mean_psnr_db": PUBLISHED_MEAN_DB,
        "published_std_psnr_db": PUBLISHED_STD_DB,
        "gap_db": psnr.mean() - PUBLISHED_MEAN_DB,
        "steps_per_second": summary["steps_per_second"],
        "seconds_run": summary["seconds_run"],
    }


if __name__ == "__main__":
    main()
