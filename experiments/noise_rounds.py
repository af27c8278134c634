"""Noise against leakage, round by round: how much of it a client needs, and what it costs (Hatamizadeh et al. 2022).

Setting: a federated training for each sigma_0 of the noise N(0, (sigma_0 P95)^2) on every tensor that a client
sends; clients of one image send their gradient, the server averages those of a round and steps by Adam. After some
rounds, the same clients are attacked with that training's own parameters and noise: Inverting Gradients from a public
prior, the mean test image, labels known. RDLV is the gain in SSIM over that prior, for each client the largest over
its reconstructions and images, then the mean over clients. Published (chest X-rays, ResNet-18 whose running
statistics are sent and used): one image leaks with RDLV about 0.5 until sigma_0 = 25, where accuracy has fallen from
0.965 to about 0.92. Here network, data and attack are others: only the shape can be compared.

Command:  python -m experiments.noise_rounds --data FILE.npz --json FILE.json --png FILE.png
Smoke:    python -m experiments.noise_rounds --smoke
Measured: see experiments/details/noise-rounds.md
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro
from matplotlib.figure import Figure

from experiments import federated, harness
from experiments.batch_norm_leakage import leakage_of_client
from jaxinvert import defenses


@dataclass(frozen=True)
class Config:
    """Setting of the experiment.

    Attributes:
      setting: the training and the attack.
      noise: sigma_0 of the trainings.
      rounds: after which accuracy and leakage are measured; 0 is before training.
      smoke: a run of seconds on the embedded photos that only shows that everything works.
      json: file for the rows.
      png: file for a plot.
    """

    setting: Annotated[federated.Setting, tyro.conf.arg(name="")] = field(default_factory=federated.Setting)
    noise: tuple[float, ...] = (0.0, 0.1, 1.0, 10.0, 25.0)
    rounds: tuple[int, ...] = (0, 50, 200, 400)
    smoke: bool = False
    json: Path | None = None
    png: Path | None = None


def main(arguments: Sequence[str] | None = None) -> None:
    """Trains with every noise, attacks in every round, and prints a row for each."""
    config = tyro.cli(Config, description=__doc__, args=arguments)
    if config.smoke:
        config = replace(config, setting=replace(config.setting, **federated.SMOKE), noise=(1.0,), rounds=(0, 1))
    rows = measure(config)
    title = f"Noise against leakage by round, {config.setting.model}, {Path(config.setting.data).stem}"
    harness.publish(title, rows, json_file=config.json)
    if config.png is not None:
        plot(rows, config.png)


def measure(config: Config) -> list[dict]:
    """One row for each noise and round."""
    task = federated.prepare(config.setting)
    attack = federated.make_attack(config.setting, task, start_images=task.public)(defenses.percentile_noise)
    trainings = federated.train(config.setting, task, defenses.percentile_noise, config.noise, rounds=config.rounds)
    rows = []
    for scale, snapshots in zip(config.noise, trainings):
        for snapshot in snapshots:
            found = attack(snapshot.state.params, scale)
            rdlv = [leakage_of_client(*pair, task.public) for pair in zip(found, np.asarray(task.attacked.inputs))]
            rows.append(
                {
                    "noise": scale,
                    "round": snapshot.round,
                    "accuracy": snapshot.accuracy,
                    "loss": snapshot.loss,
                    "clients": len(found),
                    "rdlv": float(np.mean(rdlv)),
                    "rdlv_max": float(np.max(rdlv)),
                    **federated.leakage(task, found),
                }
            )
        print(f"done: noise {scale:g}", flush=True)
    return rows


def plot(rows: list[dict], file: Path) -> None:
    """Leakage against the round for every noise, and accuracy and leakage after the last round against the noise."""
    noises, rounds = ([*dict.fromkeys(row[name] for row in rows)] for name in ("noise", "round"))
    figure = Figure(figsize=(9.6, 3.7), layout="constrained")
    by_round, by_noise = figure.subplots(1, 2)
    shades = np.linspace(0.15, 0.85, len(noises))
    for scale, shade in zip(noises, shades):
        of_noise = [row for row in rows if row["noise"] == scale]
        by_round.plot(
            range(len(rounds)),
            [row["rdlv"] for row in of_noise],
            label=f"{scale:g}",
            color=(1 - shade, 0.35, shade),
            marker="o",
            markersize=4,
        )
    by_round.set_xticks(range(len(rounds)), [str(round_) for round_ in rounds])
    by_round.set_xlabel("rounds done", fontsize=9)
    by_round.set_ylabel("RDLV, mean over clients", fontsize=9)
    by_round.axhline(0, color="0.5", linestyle=":", linewidth=1)
    by_round.legend(title="sigma_0", fontsize=7, title_fontsize=8, frameon=False)

    at_the_end = [row for row in rows if row["round"] == rounds[-1]]
    ticks = range(len(noises))
    by_noise.plot(ticks, [row["accuracy"] for row in at_the_end], color="#0072B2", marker="o", markersize=4)
    by_noise.set_ylabel("test accuracy", color="#0072B2", fontsize=9)
    by_noise.set_xticks(ticks, [f"{scale:g}" for scale in noises])
    by_noise.set_xlabel(f"sigma_0, after {rounds[-1]} rounds", fontsize=9)
    leaking = by_noise.twinx()
    leaking.plot(ticks, [row["rdlv"] for row in at_the_end], color="#D55E00", marker="s", markersize=4)
    leaking.set_ylabel("RDLV", color="#D55E00", fontsize=9)
    for panel in (by_round, by_noise, leaking):
        panel.tick_params(labelsize=7)
    by_round.grid(alpha=0.2)
    by_noise.grid(alpha=0.2)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=150)


if __name__ == "__main__":
    main()
