"""Defenses against an attacker who ignores them and one who adapts: median PSNR over the same updates and starts.

Setting: one image per client, FedSGD, labels known, Inverting Gradients with one start; threat model C, in which the
server that set the training knows the defense. The adaptive attacker differs in the client that it simulates and in
how it compares updates (`jaxinvert list`). `gain_db` is the mean over images of the difference, with its 95 %
interval; the committed rows are older and hold the difference of the two medians, without an interval.
Strengths are not at matched utility, so rows compare attackers, not defenses. The counters of "sign" and "qsgd" were
chosen among a few on the first four of these photos with small-convnet; that of "top-k" was sharpened after matching
the transmitted support alone had lost to the naive attacker there in 200 steps (-0.7 dB at 10 %, -4.8 dB at 1 %).
The others are as first written.

Command:  python -m experiments.adaptive_attackers --json FILE.json
          python -m experiments.adaptive_attackers --model lenet --steps 600 --tv 1e-2 --json FILE.json
Smoke:    python -m experiments.adaptive_attackers --smoke
Measured: see experiments/details/adaptive-attackers.md
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import tyro

from experiments import harness
from jaxinvert import jobs
from jaxinvert.attacks import adaptive
from jaxinvert.audit import excess

DEFENSES: tuple[tuple[str, dict[str, float]], ...] = (
    ("top-k", {"keep": 0.1}),
    ("top-k", {"keep": 0.01}),
    ("top-k-per-tensor", {"keep": 0.1}),
    ("random-k", {"keep": 0.1}),
    ("percentile-privacy", {}),
    ("sign", {}),
    ("qsgd", {"levels": 16}),
    ("gaussian", {"scale": 1e-3}),
    ("laplace", {"scale": 1e-3}),
    ("percentile-noise", {"scale": 0.1}),
    ("clip", {"norm": 0.1}),
    ("dp-sgd", {"norm": 0.1, "multiplier": 1e-3}),
    ("soteria", {"share": 0.8}),
    ("outpost", {}),
    ("precode", {}),
    ("row-noise", {"scale": 1e-3}),
    ("row-noise", {"scale": 1e-5}),
    ("smallest-weights-zeroed", {"share": 0.5}),
    ("gaussian+top-k", {"scale": 1e-3, "keep": 0.1}),
)


@dataclass(frozen=True)
class Config:
    """Setting of the experiment.

    Attributes:
      data: data set by name, folder or npz.
      model: of the clients.
      targets: images, the first of the split "test".
      steps: of the attack.
      tv: weight of the total variation.
      defenses: only those whose names contain one of these, and the rows that the file has already.
      seed: of the networks, the defenses and the starts.
      smoke: a run of seconds on the embedded photos that only shows that everything works.
      json: file for the rows; rows that it holds with the same setting and counter are not run again.
    """

    data: str = "photos"
    model: str = "small-convnet"
    targets: int = 10
    steps: int = 300
    tv: float = 1e-3
    defenses: tuple[str, ...] = ()
    seed: int = 0
    smoke: bool = False
    json: Path | None = None


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs both attackers on every defense and prints the rows, after each all so far."""
    config = tyro.cli(Config, description=__doc__, args=arguments)
    if config.smoke:
        config = replace(config, model="mlp-8", targets=2, steps=2, defenses=("top-k-per", "smallest"))
    undefended = jobs.JobConfig.of(
        model=config.model,
        data=config.data,
        targets=config.targets,
        restarts=1,
        steps=config.steps,
        tv=config.tv,
        seed=config.seed,
    )
    rows, finished = [], harness.kept_rows(config.json)
    for name, numbers in [("none", {}), *DEFENSES]:
        naive = undefended.replace(defense=name, defense_settings=numbers)
        what = described(naive)
        known = next((row for row in finished if what.items() <= row.items()), None)
        chosen = name == "none" or not config.defenses or any(part in name for part in config.defenses)
        if not known and not chosen:
            continue
        rows.append(known or what | compare(naive))
        title = f"Naive and adaptive attackers, {config.model}, {Path(config.data).stem}"
        harness.publish(title, rows, json_file=config.json)


def described(naive: jobs.JobConfig) -> dict:
    """What determines a row."""
    model, data = naive.model.name, Path(naive.data.name).stem
    return {
        "defense": naive.defense.name,
        "numbers": " ".join(f"{name} {value:g}" for name, value in naive.defense.settings.items()) or "-",
        "counter": adaptive.counter_summary(naive.defense.chain) or "-",
        "setting": f"{model} {data} steps {naive.search.steps} tv {naive.attacker.tv:g} seed {naive.seed}",
        "images": naive.data.targets,
    }


def compare(naive: jobs.JobConfig) -> dict:
    """What the naive and the adaptive attacker get out of the same observations."""
    task = jobs.prepare(naive)
    naive_db = psnr_of(naive, task)
    if naive.defense.name == "none":
        nothing = dict.fromkeys(("adaptive_db", "gain_db", "gain_low_db", "gain_high_db"))
        return {"naive_db": float(np.median(naive_db)), **nothing}
    adaptive = naive.replace(adaptive=True)
    adaptive_db = psnr_of(adaptive, task._replace(program=jobs.Program(adaptive, task.model)))
    gain = excess(adaptive_db, naive_db)
    return {
        "naive_db": float(np.median(naive_db)),
        "adaptive_db": float(np.median(adaptive_db)),
        "gain_db": gain.mean,
        "gain_low_db": gain.low,
        "gain_high_db": gain.high,
    }


def psnr_of(config: jobs.JobConfig, task: jobs.Task) -> np.ndarray:
    """PSNR in dB of every image, `[T]`."""
    execution = jobs.execute(config, task.program, task.observations)
    if execution.interrupted:  # half a row is none
        raise KeyboardInterrupt
    summary = jobs.measure(config, task, execution).summary
    return np.array([image["psnr_db"] for image in summary["images"]])


if __name__ == "__main__":
    main()
