"""Sweeps attacks against defenses and plots the result from the sweep's Parquet file.

    python examples/defense_sweep.py

Writes `runs/defense_sweep/summary.parquet` (one row per image), `report.html` and `defense_sweep.png`. A second run
computes only what is missing.
"""

import argparse
import itertools
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pyarrow.parquet

from jaxinvert import sweeps

ATTACKS = ("dense-layer", "inverting-gradients")
DEFENSES = {
    "none": {"defense": "none"},
    "top-k, 10 %": {"defense": "top-k", "defense_settings": {"keep": 0.1}},
    "top-k, 1 %": {"defense": "top-k", "defense_settings": {"keep": 0.01}},
    "noise, 0.01": {"defense": "gaussian", "defense_settings": {"scale": 0.01}},
    "noise, 0.1": {"defense": "gaussian", "defense_settings": {"scale": 0.1}},
}


def main() -> None:
    """Runs the example."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/defense_sweep"))
    parser.add_argument("--steps", type=int, default=200, help="steps of the attacks")
    parser.add_argument("--targets", type=int, default=2, help="clients of one image each")
    parser.add_argument("--defenses", nargs="+", choices=DEFENSES, default=tuple(DEFENSES))
    options = parser.parse_args()

    common = {
        "model": "mlp",
        "split": "private",
        "targets": options.targets,
        "restarts": 1,
        "steps": options.steps,
    }
    labels = list(itertools.product(ATTACKS, options.defenses))
    plan = sweeps.make_plan([{**common, "attack": attack, **DEFENSES[name]} for attack, name in labels])
    for finished in sweeps.run(plan, options.out):
        print(f"{finished.done} of {finished.total} jobs", flush=True)
    sweeps.summarize(options.out)

    # Everything below reads the file only: one row for each image, named by its job.
    rows = pyarrow.parquet.read_table(options.out / "summary.parquet").to_pylist()
    names = dict(zip((job.name for job in plan.jobs), labels))
    means = {
        label: float(np.mean([row["psnr_db"] for row in rows if names[row["job"]] == label])) for label in labels
    }
    draw(means, options.defenses, options.out / "defense_sweep.png")
    for (attack, defense), mean in means.items():
        print(f"{attack:20} {defense:12} {mean:5.1f} dB")


def draw(means: dict[tuple[str, str], float], defenses: list[str], file: Path) -> None:
    """Draws one group of bars for each defense, one bar for each attack."""
    figure, axes = plt.subplots(figsize=(8, 3.5), layout="constrained")
    places = np.arange(len(defenses))
    for number, attack in enumerate(ATTACKS):
        heights = [means[attack, defense] for defense in defenses]
        axes.bar(places + (number - 0.5) * 0.4, heights, width=0.36, label=attack)
    axes.set_xticks(places, defenses)
    axes.set_ylabel("mean PSNR in dB")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(file, dpi=150)


if __name__ == "__main__":
    main()
