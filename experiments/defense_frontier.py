"""What a defense costs and what it hides: accuracy of the trained model against leakage of an update.

Setting: clients of one image each send their gradient, defended; the server averages those of a round and steps by
Adam. Accuracy is that on the test images after the last round. Leakage is what Inverting Gradients finds in defended
updates of the same clients for the same parameters, those of the training without defense before some rounds; labels
are known, one start. The attack knows of no defense: what it misses one that adapts may still find, so leakage is a
lower bound. Clients of one image that clip and add noise do what DP-SGD does.

Rows: "nothing sent" is who keeps the update, so that nothing is learned, and the attacker guesses the mean image.
The strength is, of gaussian, the standard deviation; of percentile noise, sigma_0 of N(0, (sigma_0 P95)^2); of
"clip, gaussian", the standard deviation after clipping to norm 1; of top-k, the share of entries that are sent; of
qsgd, the number of levels. `identified`: share of images that the reconstructions pick out among the other attacked
ones and all test images, by correlation (`audit.identified`; committed rows are older and took the nearest image).

Command:  python -m experiments.defense_frontier --data FILE.npz --json FILE.json --png FILE.png
Smoke:    python -m experiments.defense_frontier --smoke
Measured: see experiments/details/defenses.md
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import tyro
from matplotlib.figure import Figure

from experiments import federated, harness
from jaxinvert import defenses
from jaxinvert.federation import Snapshot
from jaxinvert.types import Defense, Scalar


class Family(NamedTuple):
    """A defense in several strengths, and its color in the plot."""

    make: federated.MakeDefense
    strengths: tuple[float, ...]
    color: str


def clipped_with_noise(scale: Scalar) -> Defense:
    """Norm 1, then normal noise."""
    return defenses.chain(defenses.clipped(1.0), defenses.gaussian_noise(scale))


FAMILIES = {
    "none": Family(lambda strength: defenses.identity, (0.0,), "#000000"),
    "gaussian": Family(defenses.gaussian_noise, (0.01, 0.1, 1.0), "#0072B2"),
    "percentile noise": Family(defenses.percentile_noise, (0.1, 1.0, 10.0), "#E69F00"),
    "clip, gaussian": Family(clipped_with_noise, (0.001, 0.01, 0.1), "#009E73"),
    "top-k": Family(defenses.top_k, (0.5, 0.1, 0.01), "#CC79A7"),
    "qsgd": Family(defenses.qsgd, (16.0, 4.0, 1.0), "#D55E00"),
    "sign": Family(lambda strength: defenses.sign, (0.0,), "#56B4E9"),
}


@dataclass(frozen=True)
class Config:
    """Setting of the experiment.

    Attributes:
      setting: the training and the attack.
      rounds: of the training.
      report_every: rounds between two points of the curves.
      attacked_rounds: after which of the reported rounds the clients are attacked.
      defenses: which of them beside none, by default all.
      smoke: a run of seconds on the embedded photos that only shows that everything works.
      json: file for the rows; accuracy and update norm by round go beside it, to one whose name ends in `_curves`.
      png: file for a plot.
    """

    setting: Annotated[federated.Setting, tyro.conf.arg(name="")] = field(default_factory=federated.Setting)
    rounds: int = 400
    report_every: int = 100
    attacked_rounds: tuple[int, ...] = (0, 100)
    defenses: tuple[str, ...] = tuple(FAMILIES)
    smoke: bool = False
    json: Path | None = None
    png: Path | None = None


def main(arguments: Sequence[str] | None = None) -> None:
    """Trains and attacks with every defense, and prints a row for each strength and attacked round."""
    config = tyro.cli(Config, description=__doc__, args=arguments)
    if config.smoke:
        config = replace(
            config,
            setting=replace(config.setting, **federated.SMOKE),
            rounds=2,
            report_every=2,
            attacked_rounds=(0,),
            defenses=("sign",),
        )
    rows, curves = measure(config)
    title = f"Accuracy against leakage, {config.setting.model}, {Path(config.setting.data).stem}"
    harness.publish(title, rows, json_file=config.json)
    curve_file = config.json and config.json.with_stem(f"{config.json.stem}_curves")
    harness.publish("Training with defenses", curves, json_file=curve_file)
    if config.png is not None:
        plot(rows, config.png)


def measure(config: Config) -> tuple[list[dict], list[dict]]:
    """Rows of accuracy and leakage, and curves of the trainings."""
    setting = config.setting
    task = federated.prepare(setting)
    attack_on = federated.make_attack(setting, task)
    rounds = sorted({*range(0, config.rounds + 1, config.report_every), config.rounds, *config.attacked_rounds})

    def row(defense: str, strength: float, last: Snapshot, round_: int, found: np.ndarray) -> dict[str, Any]:
        return {
            "defense": defense,
            "strength": strength,
            "rounds": last.round,
            "accuracy": last.accuracy,
            "loss": last.loss,
            "attacked_round": round_,
            "images": found.shape[0] * found.shape[1],
            **federated.leakage(task, found),
        }

    rows, curves, sent = [], [], {}
    for name in dict.fromkeys(("none", *config.defenses)):
        family = FAMILIES[name]
        begin = time.perf_counter()
        trainings = federated.train(setting, task, family.make, family.strengths, rounds=rounds)
        trained = time.perf_counter()
        if name == "none":
            sent = {s.round: s.state.params for s in trainings[0] if s.round in config.attacked_rounds}
            guess = np.broadcast_to(task.public, task.attacked.inputs.shape)
            rows += [row("nothing sent", 0.0, trainings[0][0], round_, guess) for round_ in sent]
        attack = attack_on(family.make)
        for strength, snapshots in zip(family.strengths, trainings):
            for round_, params in sent.items():
                rows.append(row(name, strength, snapshots[-1], round_, attack(params, strength)))
            curves += [
                {
                    "defense": name,
                    "strength": strength,
                    "round": snapshot.round,
                    "accuracy": snapshot.accuracy,
                    "loss": snapshot.loss,
                    "update_norm": snapshot.update_norm,
                }
                for snapshot in snapshots
            ]
        print(f"{name}: {trained - begin:.0f} s training, {time.perf_counter() - trained:.0f} s attacks", flush=True)
    return rows, curves


def plot(rows: list[dict], file: Path) -> None:
    """A panel for each attacked round, a line for each defense through its strengths; the best corner is top left."""
    rounds = list(dict.fromkeys(row["attacked_round"] for row in rows))
    figure = Figure(figsize=(4.4 * len(rounds) + 1.2, 3.9), layout="constrained")
    panels = figure.subplots(1, len(rounds), sharey=True, squeeze=False)[0]
    for panel, round_ in zip(panels, rounds):
        here = [row for row in rows if row["attacked_round"] == round_]
        for name, family in FAMILIES.items():
            points = [row for row in here if row["defense"] == name]
            if not points:
                continue
            leakage, accuracy = ([row[key] for row in points] for key in ("median_psnr_db", "accuracy"))
            panel.plot(leakage, accuracy, label=name, color=family.color, marker="o", markersize=4, linewidth=1.2)
            for row in points if len(points) > 1 else ():
                panel.annotate(
                    f"{row['strength']:g}",
                    (row["median_psnr_db"], row["accuracy"]),
                    xytext=(4, 4),
                    textcoords="offset points",
                    fontsize=7,
                    color=family.color,
                )
        (nothing,) = [row for row in here if row["defense"] == "nothing sent"]
        panel.axvline(nothing["median_psnr_db"], color="0.5", linestyle=":", linewidth=1, label="mean image")
        panel.axhline(nothing["accuracy"], color="0.5", linestyle="--", linewidth=1, label="untrained")
        panel.set_title(f"attacked before round {round_ + 1}", fontsize=9)
        panel.grid(alpha=0.2)
        panel.tick_params(labelsize=7)
    figure.supxlabel("leakage: median PSNR of the reconstructions [dB]", fontsize=9)
    figure.supylabel(f"test accuracy after {max(row['rounds'] for row in rows)} rounds", fontsize=9)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right upper", fontsize=8, frameon=False)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=150)


if __name__ == "__main__":
    main()
