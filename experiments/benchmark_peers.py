"""Speed, memory and time to the same quality, beside the same attack in PyTorch.

Every row is one client, attacked by Inverting Gradients three times: here; by a loop of PyTorch that is written from
the paper's equation (`peers/torch_loop.py`); and by the published package `breaching`, if its interpreter has it. All
get the same parameters, update, images, labels and starts. `parity` is the relative difference between the attack
losses at the first start, here and in the loop; `breaching parity` that of the losses without the prior, which
breaching pads. Above 1e-4 a row compares different things and is marked.

Each attack runs in a process of its own. They run in turn, several times, and rates are medians: attack steps x
restarts per second. PyTorch takes the restarts one after the other, with one thread or all, whichever is faster. A
sample during which other processes kept more than `max_foreign` of a processor busy is dropped and taken again; where
that never succeeds, the quietest samples are kept and `quiet` says no. `gemm share` is the share of this machine's
matrix-product peak, measured in turn (see `benchmark_throughput`); `torch gemm share` counts the same operations for
PyTorch. Memory is resident memory at its peak less that after the imports, in MiB: of steps alone (`steps MiB`), here
in a second process that finds its programs compiled, as a second start of the command line does, and of the first
process, which compiles (`all MiB`).

Where a row has `torch dB`, PyTorch attacked with the number of steps given, and the last columns are the seconds
until an attack here had the same PSNR, `-` if it never had: `same attack s` Inverting Gradients with the same start
and number of steps, `spectral s` spectral matching. Compilation takes `compile s` once and is not counted.

PyTorch comes from `--python`, an interpreter that has it, or from `--venv`, a folder where a virtual environment is
made with `pip install breaching` (which brings PyTorch; choose its build by pip's own settings).

Command:  python -m experiments.benchmark_peers --venv runs/peers --json FILE.json --figure FILE.png
Smoke:    python -m experiments.benchmark_peers --smoke
Measured: see experiments/README.md
"""

import dataclasses
import json
import statistics
import subprocess
import sys
import tempfile
import venv
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import tyro

from experiments import harness
from experiments.benchmark_throughput import gemm_peak
from experiments.peers import load, ours, serving
from jaxinvert import data, metrics

TITLE = "Inverting Gradients beside PyTorch"
PEER = "breaching==0.1.2"
_PARITY = 1e-4
_KEEP_ALL = {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0", "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1"}
_SHOWN = (
    *("case", "steps_per_second", "torch_steps_per_second", "ratio", "breaching_ratio", "same_problem", "gemm_share"),
    *("steps_mib", "torch_steps_mib", "torch_db", "torch_seconds", "same_attack_seconds", "spectral_seconds"),
    *("quality_ratio", "quiet"),
)
"""Columns on the screen; the file has all."""


@dataclass(frozen=True)
class Case:
    """One row.

    Attributes:
      name: of the row.
      model: network by name.
      images: in the client's batch.
      restarts: of the attack.
      size: side of the images, in pixels.
      tv: weight of the total variation.
      local_steps: full-batch steps of the client; 0 is one gradient.
      local_rate: learning rate of these steps.
      horizon: number of steps that the learning rate is planned for, and that the peer takes to its final quality.
      quality: whether the time to the peer's final quality is measured.
      spectral_steps: of spectral matching.
      device: of PyTorch, by its name there.
    """

    name: str
    model: str
    images: int = 1
    restarts: int = 1
    size: int = 32
    tv: float = 1e-2
    local_steps: int = 0
    local_rate: float = 1e-2
    horizon: int = 4800
    quality: bool = False
    spectral_steps: int = 1000
    device: str = "cpu"


CASES = (
    Case("LeNet", "lenet", quality=True),
    Case("LeNet, 8 restarts", "lenet", restarts=8),
    Case("small-convnet", "small-convnet", tv=1e-6, horizon=1000, quality=True, spectral_steps=300),
    Case("ConvNet-64", "convnet64", tv=1e-6),
    Case("ConvNet-64, 8 images", "convnet64", images=8, tv=1e-6),
    Case("ResNet20-4", "resnet20-4", horizon=240, quality=True, spectral_steps=240),
    Case("ResNet-18, 224 px", "resnet18", size=224),
    Case("ViT", "vit-pre-norm-4-128-4"),
    Case("depthwise", "mobile"),
    Case("FedAvg, 4 images x 4 steps", "convnet64", images=4, tv=1e-6, local_steps=4),
)
_SMOKE = Case("perceptron", "mlp", size=32, horizon=4)


@dataclass(frozen=True)
class Config:
    """Setting of the experiment.

    Attributes:
      rows: only those rows whose names contain one of these.
      python: an interpreter that has PyTorch, and breaching if it is to be measured.
      venv: folder of a virtual environment with both, made if it is not there.
      breaching: whether to measure the package beside the loop.
      seconds: measured time per sample.
      repeats: samples of each attack.
      max_foreign: processors that others may keep busy during a sample.
      smoke: a run of seconds without PyTorch that only shows that everything works.
      json: file for the rows; rows that it holds, of as many samples of as many seconds, are not measured again.
      figure: file for the chart.
    """

    rows: tuple[str, ...] = ()
    python: Path | None = None
    venv: Path | None = None
    breaching: bool = True
    seconds: float = 3.0
    repeats: int = 4
    max_foreign: float = 0.15
    smoke: bool = False
    json: Path | None = None
    figure: Path | None = None


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures every case that has no row yet and prints all rows."""
    config = tyro.cli(Config, description=__doc__, args=arguments)
    cases = [case for case in CASES if not config.rows or any(part in case.name for part in config.rows)]
    python = None
    if config.smoke:
        config, cases = dataclasses.replace(config, seconds=0.01, repeats=1, max_foreign=float("inf")), [_SMOKE]
    else:
        python = interpreter(config)
    if not cases:
        raise SystemExit(f"no row is named like {config.rows}; there are {[case.name for case in CASES]}")
    rows = {row["case"]: row for row in harness.kept_rows(config.json)}
    for number, case in enumerate(cases):
        if is_measured(rows.get(case.name), config):
            continue
        print(f"row {number + 1} of {len(cases)}: {case.name}", flush=True)
        rows[case.name] = measure(config, case, python)
        if config.json is not None:
            harness.save(config.json, TITLE, list(rows.values()))
    if config.figure is not None:
        draw(list(rows.values()), config.figure)
    harness.publish(TITLE, [{name: row[name] for name in _SHOWN} for row in rows.values()])


def is_measured(row: dict[str, Any] | None, config: Config) -> bool:
    """Whether a kept row has as many samples, each as long, as this run would take."""
    if row is None:
        return False
    return (row.get("samples"), row.get("seconds_per_sample")) == (config.repeats, config.seconds)


def interpreter(config: Config) -> Path:
    """The interpreter with PyTorch; makes the virtual environment if it is not there.

    Raises:
      SystemExit: if neither is given, or the interpreter has no PyTorch.
    """
    python = config.python
    if python is None and config.venv is not None:
        python = config.venv / ("Scripts" if sys.platform == "win32" else "bin") / "python"
        if not python.exists():
            print(f"making {config.venv} with {PEER}", flush=True)
            venv.create(config.venv, with_pip=True)
            subprocess.run([python, "-m", "pip", "install", "--quiet", PEER], check=True)
    if python is None:
        raise SystemExit(
            "no PyTorch to compare with: give --venv FOLDER, where it is installed, or --python INTERPRETER, which "
            "has it; or --smoke, which does without"
        )
    if subprocess.run([python, "-c", "import numpy, torch"], capture_output=True, check=False).returncode:
        raise SystemExit(f"{python} cannot import numpy and torch: give another --python, or --venv FOLDER")
    return python


@dataclass
class Samples:
    """Seconds per step of one attack, those taken in quiet and those that were not."""

    take: Callable[[], float]
    quiet: list[tuple[float, float]] = field(default_factory=list)
    loud: list[tuple[float, float]] = field(default_factory=list)

    def add(self, seconds: float, foreign: float, config: Config) -> None:
        """Keeps a sample with the processors that were busy for others."""
        (self.quiet if foreign <= config.max_foreign else self.loud).append((seconds, foreign))

    def kept(self, repeats: int) -> list[tuple[float, float]]:
        """As many as wanted, quiet ones first, then those with the least foreign load."""
        return [*self.quiet, *sorted(self.loud, key=lambda sample: sample[1])][:repeats]


def measure(config: Config, case: Case, python: Path | None) -> dict[str, Any]:
    """The row of one case."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "case.json").write_text(json.dumps(dataclasses.asdict(case)), encoding="utf-8")
        workers: dict[str, Any] = {}
        try:
            if python is None:
                workers["ours"] = serving.InThisProcess(ours.Ours(folder).commands())
                first = first_start(workers["ours"])
            else:
                start = partial(
                    serving.Process,
                    [sys.executable, "-m", "experiments.peers.ours"],
                    folder,
                    environment={**_KEEP_ALL, "JAX_COMPILATION_CACHE_DIR": str(folder / "programs")},
                )
                workers["ours"] = start()
                first = first_start(workers["ours"])
                workers.pop("ours").close()
                workers["ours"] = start()
                command = [str(python), "-m", "experiments.peers.torch_loop"]
                workers["loop"] = serving.Process(command, folder)
                if config.breaching and workers["loop"].ask("facts")["breaching"]:
                    workers["breaching"] = serving.Process(command, folder)
            return _row(config, case, workers, folder, first)
        finally:
            for worker in workers.values():
                worker.close()


def first_start(worker: Any) -> dict[str, Any]:
    """What only the process knows that compiles: its peak memory, and the facts of its programs."""
    memory = worker.ask("memory")
    return {"all_mib": memory["peak"] - memory["baseline"], **worker.ask("facts")}


def _row(config: Config, case: Case, workers: dict[str, Any], folder: Path, facts: dict[str, Any]) -> dict[str, Any]:
    parity = {}
    for peer in workers.keys() - {"ours"}:
        first, of_prior = workers[peer].ask("first", peer=peer, restart=0), facts["first_losses"][0]
        if peer == "breaching":  # its loss has no prior here: against the loop's cosine
            of_prior = first["cosine"]
        parity[peer] = abs(first["loss"] - of_prior) / abs(of_prior)
    samples, peaks = sample(config, case, workers)
    seconds = {name: [taken for taken, _ in found.kept(config.repeats)] for name, found in samples.items()}
    rates = {name: 1 / statistics.median(found) for name, found in seconds.items()}
    memory = {name: worker.ask("memory") for name, worker in workers.items()}
    steps_mib = {name: found["peak"] - found["baseline"] for name, found in memory.items()}
    gemm = statistics.median(peaks)
    foreign = [share for found in samples.values() for _, share in found.kept(config.repeats)]

    of_torch = workers["loop"].ask("facts") if "loop" in workers else {}

    def ratio(peer: str) -> float | None:
        return rates["ours"] / rates[peer] if peer in rates else None

    return {
        "case": case.name,
        "images": case.images,
        "restarts": case.restarts,
        "steps_per_second": rates["ours"],
        "torch_steps_per_second": rates.get("loop"),
        "ratio": ratio("loop"),
        "breaching_steps_per_second": rates.get("breaching"),
        "breaching_ratio": ratio("breaching"),
        "parity": parity.get("loop"),
        "breaching_parity": parity.get("breaching"),
        "same_problem": None if not parity else "yes" if max(parity.values()) <= _PARITY else "no",
        "gflop_per_step": facts["flops"] / 1e9,
        "gemm_gflop_per_second": gemm / 1e9,
        "gemm_share": rates["ours"] * facts["flops"] / gemm,
        "torch_gemm_share": rates["loop"] * facts["flops"] / gemm if "loop" in rates else None,
        "steps_mib": steps_mib["ours"],
        "torch_steps_mib": steps_mib.get("loop"),
        "breaching_steps_mib": steps_mib.get("breaching"),
        "all_mib": facts["all_mib"],
        "program_mib": facts["program_mib"],
        "seconds_compile": facts["seconds_compile"],
        "samples": config.repeats,
        "seconds_per_sample": config.seconds,
        "dropped": sum(len(found.loud) for found in samples.values()),
        "foreign": max(foreign),
        "quiet": "yes" if max(foreign) <= config.max_foreign else "no",
        **quality(case, workers, folder),
        "torch": of_torch.get("torch"),
        "torch_threads": of_torch.get("threads"),
    }


def sample(config: Config, case: Case, workers: dict[str, Any]) -> tuple[dict[str, Samples], list[float]]:
    """Takes samples of every attack in turn until all have enough quiet ones; also of the matrix product's peak."""

    def of_ours(num_steps: int) -> float:
        return workers["ours"].ask("steps", num_steps=num_steps)["seconds"] / case.restarts

    def of_peer(peer: str, num_steps: int) -> float:
        restart = next(turns) % case.restarts
        return workers[peer].ask("steps", peer=peer, num_steps=num_steps, restart=restart)["seconds"]

    turns = iter(range(10**9))
    runs: dict[str, Callable[[int], float]] = {
        name: of_ours if name == "ours" else partial(of_peer, name) for name in workers
    }
    samples = {}
    for name, run in runs.items():
        lanes = case.restarts if name == "ours" else 1
        run(1)  # warms up
        if name != "ours":
            _choose_threads(workers[name], run, config.seconds)
        pace = run(1)
        pace = run(max(1, int(config.seconds / (4 * pace * lanes)))) * lanes
        samples[name] = Samples(partial(run, max(1, int(config.seconds / pace))))
        workers[name].ask("forget")
    pids, peaks = [worker.pid for worker in workers.values()], []
    for _ in range(3 * config.repeats):
        peaks.append(gemm_peak(size=256 if config.smoke else 2048, repeats=3))
        for found in samples.values():
            if len(found.quiet) < config.repeats:
                found.add(*load.beside(found.take, pids), config)
        if all(len(found.quiet) >= config.repeats for found in samples.values()):
            break
    return samples, peaks


def _choose_threads(worker: Any, run: Callable[[int], float], seconds: float) -> None:
    """Lets PyTorch use one thread or all, whichever is faster: small networks lose time to threads."""
    times = {}
    for count in {1, worker.ask("facts")["threads"]}:
        worker.ask("threads", count=count)
        times[count] = run(max(1, int(seconds / (4 * run(1)))))
    worker.ask("threads", count=min(times, key=lambda count: times[count]))


def quality(case: Case, workers: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Seconds of the loop to its final quality, and until the attacks here have it."""
    names = ("torch_steps", "torch_db", "torch_seconds", "same_attack_seconds", "same_attack_db")
    row: dict[str, Any] = dict.fromkeys((*names, "spectral_seconds", "spectral_db", "quality_ratio"))
    row["to_quality"] = "yes" if case.quality else "no"
    if not case.quality or "loop" not in workers:
        return row
    taken = workers["loop"].ask("solve", peer="loop", num_steps=case.horizon)["seconds"]
    truth = data.load("photos", split=f"test[:{case.images}]", size=case.size).images
    found = jnp.asarray(np.load(folder / "found.npy", allow_pickle=False))
    psnr_db = float(np.mean(metrics.evaluate(found, jnp.asarray(truth)).psnr_db))
    row |= {"torch_steps": case.horizon, "torch_db": psnr_db, "torch_seconds": taken}
    for name, attack, num_steps in (
        ("same_attack", "inverting-gradients", case.horizon),
        ("spectral", "spectral", case.spectral_steps),
    ):
        answer = workers["ours"].ask("reach", attack=attack, psnr_db=psnr_db, num_steps=num_steps)
        row |= {f"{name}_seconds": answer["seconds"], f"{name}_db": answer["psnr_db"]}
    reached = [row[name] for name in ("same_attack_seconds", "spectral_seconds") if row[name] is not None]
    return row | {"quality_ratio": min(reached) / taken if reached else None}


def draw(rows: Sequence[dict[str, Any]], file: Path) -> None:
    """Bars of the rates relative to PyTorch's loop."""
    compared = [row for row in rows if row["ratio"] is not None]
    figure, axes = plt.subplots(figsize=(8, 0.4 * len(compared) + 1.4), layout="constrained")
    for i, row in enumerate(compared):
        axes.barh(i, row["ratio"], color="tab:blue", label="this library" if i == 0 else None)
        if row["breaching_ratio"] is not None:
            relative = row["ratio"] / row["breaching_ratio"]
            axes.barh(i, relative, height=0.3, color="tab:orange", label="breaching" if i == 0 else None)
        axes.text(row["ratio"], i, f" {row['ratio']:.1f}x", va="center")
    axes.axvline(1, color="black", linewidth=1, label="loop of PyTorch")
    axes.set(
        yticks=range(len(compared)), yticklabels=[row["case"] for row in compared], xlabel="steps per second, ratio"
    )
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.margins(x=0.15)
    figure.legend(loc="outside lower center", ncols=3)
    figure.savefig(file, dpi=150)
    plt.close(figure)


if __name__ == "__main__":
    main()
