"""DLG and iDLG on the untrained LeNet of the DLG paper, one image per client.

Setting: weights U(-0.5, 0.5), pixels in [0, 1] not normalized, L-BFGS with a zoom line search; labels are variables
(DLG) or read off the last layer (iDLG). The restart with the lowest attack loss wins. The papers print pictures and
losses rather than a table of PSNR; exact means 40 dB or more here, where no eye sees a difference.

Command:  python -m experiments.dlg_lenet --data FILE.npz --json FILE
Smoke:    python -m experiments.dlg_lenet --smoke
Measured: see experiments/details/dlg.md
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import tyro

from experiments import harness
from jaxinvert import jobs

EXACT_DB = 40.0


@dataclass(frozen=True)
class Config:
    """Setting of the experiment.

    Attributes:
      data: data set by name, folder or npz.
      num_images: targets.
      steps: L-BFGS steps.
      restarts: numbers of restarts, one row each.
      attacks: "dlg" and "idlg".
      seed: of the network and the starts.
      smoke: a run of seconds on the embedded photos that only shows that everything works.
      json: file for the rows.
    """

    data: str = "cifar10"
    num_images: int = 20
    steps: int = 4000
    restarts: tuple[int, ...] = (1,)
    attacks: tuple[str, ...] = ("dlg", "idlg")
    seed: int = 0
    smoke: bool = False
    json: Path | None = None


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs both attacks with every number of restarts and prints a row each."""
    config = tyro.cli(Config, description=__doc__, args=arguments)
    if config.smoke:
        config = replace(config, data="photos", num_images=1, steps=2, restarts=(1,), attacks=("idlg",))
    rows = [measure(config, attack, restarts) for attack in config.attacks for restarts in config.restarts]
    title = f"DLG, untrained LeNet, {config.num_images} images of {Path(config.data).stem}"
    harness.publish(title, rows, json_file=config.json)


def measure(config: Config, attack: str, num_restarts: int) -> dict:
    """Attacks all images with `num_restarts` restarts each."""
    settings = jobs.JobConfig.of(
        attack=attack,
        model="mlp-8" if config.smoke else "lenet",
        normalized=False,
        data=config.data,
        targets=config.num_images,
        restarts=num_restarts,
        steps=config.steps,
        seed=config.seed,
        chunk=1,  # lanes side by side would wait for the slowest line search at every step
    )
    task = jobs.prepare(settings)
    summary = jobs.measure(settings, task, jobs.execute(settings, task.program, task.observations)).summary
    psnr = np.array([image["psnr_db"] for image in summary["images"]])
    return {
        "attack": attack,
        "restarts": num_restarts,
        "steps": config.steps,
        "mean_psnr_db": psnr.mean(),
        "median_psnr_db": np.median(psnr),
        "share_exact": float(np.mean(psnr >= EXACT_DB)),
        "labels_exact": float(np.mean(summary["labels"]["exact"])),
        "steps_per_second": summary["steps_per_second"],
        "seconds_run": summary["seconds_run"],
    }


if __name__ == "__main__":
    main()
