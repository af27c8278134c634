"""The main job in a minute: clients train on photographs, the server sees one gradient each and gets the photos back.

Three clients' networks side by side, on the same embedded photographs: a small convolutional network and DLG's
LeNet, both inverted by spectral matching, and a perceptron, whose gradient gives the image away in closed form.
Writes a folder per network and `overview.png`.

Command:  make demo
Smoke:    python -m experiments.demo --smoke --out /tmp/demo
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro
from matplotlib.figure import Figure

from jaxinvert import cli, jobs
from jaxinvert.report import wording


@dataclass(frozen=True)
class Config:
    """Setting of the demo.

    Attributes:
      out: folder for the pictures.
      targets: photographs.
      smoke: a run of seconds that only shows that everything works.
    """

    out: Path = Path("demo")
    targets: int = 6
    smoke: bool = False


JOBS = {
    "small convolutional network": jobs.JobConfig.of(attack="spectral", model="small-convnet", restarts=1, steps=400),
    "LeNet": jobs.JobConfig.of(attack="spectral", model="lenet", restarts=2, steps=1500),
    "perceptron, closed form": jobs.JobConfig.of(attack="dense-layer", model="mlp"),
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the three jobs and draws them together."""
    config = tyro.cli(Config, description=__doc__, args=arguments)
    outcomes = {}
    for title, settings in list(JOBS.items())[1 if config.smoke else 0 :]:
        settings = settings.replace(targets=config.targets)
        if config.smoke:
            settings = settings.replace(targets=2, restarts=1, steps=5, size=12)
        folder = config.out / settings.model.name
        command_line = cli.command_line(settings, folder)
        outcomes[title], interrupted = cli.invert_and_write(settings, folder, command_line=command_line)
        if interrupted:
            print("interrupted: what was reconstructed so far is written, the rest is left out")
            break
    draw(config.out / "overview.png", outcomes)
    print(f"\nLook at {config.out / 'overview.png'}, then at {config.out / 'small-convnet' / 'report.html'}")


def draw(path: Path, outcomes: dict[str, jobs.Outcome]) -> None:
    """Draws one row of originals, then a row of reconstructions per network, each with its PSNR."""
    first = next(iter(outcomes.values()))
    num_images = len(first.truth)
    figure = Figure(figsize=(1.35 * num_images + 1.7, 1.55 * (len(outcomes) + 1)), dpi=110, layout="constrained")
    axes = figure.subplots(len(outcomes) + 1, num_images, squeeze=False)
    names = [image["class_name"] for image in first.summary["images"]]
    _row(axes[0], "what the clients\ntrained on", first.truth, names)
    for row, (title, outcome) in zip(axes[1:], outcomes.items()):
        captions = [f"{wording.number(image['psnr_db'], 'psnr_db')} dB" for image in outcome.summary["images"]]
        median = wording.number(outcome.summary["quality"]["psnr_db"]["median"], "psnr_db")
        _row(row, f"{title}\nmedian {median} dB", outcome.reconstruction, captions)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def _row(axes: np.ndarray, title: str, images: np.ndarray, captions: Sequence[str]) -> None:
    for axis, image, caption in zip(axes, images, captions):
        axis.imshow(image, interpolation="nearest")
        axis.set(xticks=[], yticks=[])
        axis.set_xlabel(caption, fontsize=9)
        for spine in axis.spines.values():
            spine.set_visible(False)
    axes[0].set_ylabel(title, rotation=0, ha="right", va="center", fontsize=9.5)


if __name__ == "__main__":
    sys.exit(main())
