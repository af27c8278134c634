"""GIAS against pixels at equal time, each above its own null control: the same attack on a random gradient.

Setting: batches of a client with an untrained LeNet, normalized images, FedSGD, labels known, one start. The
generators saw other images than those attacked. Every attack gets the time that GI-z with the first generator needs
for `--steps`: its rate is timed here, the shortest of several turns taken one after the other, and its schedule laid
out for the steps that it then has. PSNR after one-to-one matching; the iterate is chosen by attack loss. `gain_db` is
over Inverting Gradients as published, `over_pixels_db` over the best attack on pixels in the table, `above_null_db`
over the null control: means with 95 % intervals over batches (`audit.mean_interval`), none for a single batch.

With `--keep` the client sends the largest entries only, and every attack matches the entries that were sent. With
`--batch-norm` clients are in train mode; the attacker sees the running statistics that they send, or does not.

Command:  python -m experiments.train_generator --data FILE.npz --epochs 16 --out runs/generators/cifar10
          python -m experiments.gias --data FILE.npz --generator runs/generators/cifar10/generator.safetensors \
              --batch-sizes 1 2 4 8 16 32 --attacks GIAS spectral --json FILE.json --figure FILE.png
Smoke:    python -m experiments.gias --smoke
Published: see PUBLISHED_DB
Measured: see experiments/details/generative-priors.md
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from matplotlib.figure import Figure

from experiments import contenders, harness
from experiments.contenders import FIRST, PIXELS, PUBLISHED, Arena
from experiments.train_generator import save_grid
from jaxinvert import clients, data, defenses, metrics, models
from jaxinvert.attacks import Problem, likelihoods, objectives
from jaxinvert.audit import mean_interval
from jaxinvert.audit.controls import random_update
from jaxinvert.clients import running_statistics
from jaxinvert.metrics import perceptual
from jaxinvert.observation.observe import observe_targets
from jaxinvert.observation.threat_models import KNOWN_LABELS
from jaxinvert.priors import generators
from jaxinvert.search import Stepwise
from jaxinvert.types import Array, ArrayTree, Batch, Key, Observation, Params, Shape

TURNS, STEPS_PER_TURN = 6, 20
PUBLISHED_DB = {
    "Inverting Gradients": {1: 17.5, 2: 15.2, 4: 14.4, 8: 13.7, 16: 13.2, 32: 12.1},
    "GIAS": {1: 17.1, 2: 16.2, 4: 15.6, 8: 15.2, 16: 14.5, 32: 13.6},
}
"""Mean PSNR by batch size, of other clients' images and another network (Jeon et al. 2021, figure 4)."""
NONE_SENT, WITHHELD, GRANTED = "none", "withheld", "granted"
SETTING = ("model", "data", "split", "seed", "first_steps", "keep", "batch_size", "statistics", "images")
"""Fields that rows share that are compared with each other."""
SHOWN = ("attack", "generator", "batch_size", "statistics", "keep", "steps", "mean_psnr_db", "mean_ssim", "null_db")
SHOWN += ("gain_db", "over_pixels_db", "above_null_db", "seconds_run")
"""What the screen has room for."""


class Case(NamedTuple):
    """One comparison: clients of so many images, and whether the attacker sees statistics that they send."""

    batch_size: int
    statistics: str


@dataclass(frozen=True)
class Config:
    """Setting of the experiment.

    Attributes:
      data: data set by name, folder or npz.
      split: whose images are attacked.
      size: side of the images in pixels; by default the data set's own.
      generator: trained on others; several compare; by default the one that comes with jaxinvert.
      model: of the clients.
      batch_norm: clients with BatchNorm in train mode: all is done with their statistics withheld, then granted.
      batch_sizes: `B`, a table for each.
      images: attacked for each, rounded to whole batches.
      keep: share of the update that is sent, the largest entries; by default all.
      steps: of the first attack.
      attacks: only those whose names contain one of these, the first, and Inverting Gradients as published.
      seed: of the network and the starts.
      lpips: whether rows also have the LPIPS, for images of 31 pixels and more (`pip install '.[lpips]'`).
      smoke: a run of seconds on the embedded photos that only shows that everything works.
      json: file for the rows; those that it holds are not run again. Pictures go beside it.
      figure: picture of the PSNR against the batch size, for all rows of the file.
    """

    data: str = "photos"
    split: str = "test"
    size: int | None = None
    generator: tuple[Path, ...] = ()
    model: str = "lenet"
    batch_norm: bool = False
    batch_sizes: tuple[int, ...] = (4,)
    images: int = 48
    keep: float = 1.0
    steps: int = 600
    attacks: tuple[str, ...] = ()
    seed: int = 0
    lpips: bool = False
    smoke: bool = False
    json: Path | None = None
    figure: Path | None = None


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs all attacks for all batch sizes, saving each row, and prints all."""
    config = tyro.cli(Config, description=__doc__, args=arguments)
    if config.lpips:
        perceptual.check_available()
    parts = config.attacks or ("",)
    names = [name for name in contenders.NAMES if name in (FIRST, PUBLISHED) or any(part in name for part in parts)]
    if config.smoke:
        config = replace(config, model="mlp-8", size=16, batch_sizes=(1,), images=2, steps=2)
        names = [FIRST, PUBLISHED]
    title = f"GIAS and pixels at equal time, {config.model}, {Path(config.data).stem}"
    rows = harness.kept_rows(config.json)
    for batch_size in config.batch_sizes:
        for statistics in (WITHHELD, GRANTED) if config.batch_norm else (NONE_SENT,):
            for row in compare(config, Case(batch_size, statistics), names, rows):
                rows = with_gains(sorted([*rows, row], key=lambda one: one["batch_size"]))
                if config.json is not None:
                    harness.save(config.json, title, rows)
    harness.publish(title, [{name: row[name] for name in SHOWN} for row in rows])
    if config.figure is not None:
        draw(config.figure, rows)


def compare(config: Config, case: Case, names: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> Iterator[dict]:
    """A row for each attack that `rows` lack, on the same updates; a grid of first images if they lack all."""
    truth, observations, arena = clients_and_attacker(config, case)
    own = (config.model, Path(config.data).stem, config.split, config.seed, config.steps, config.keep)
    setting = dict(zip(SETTING, (*own, *case, int(np.prod(truth.inputs.shape[:2]))), strict=True))
    finished = {(row["attack"], row["generator"]): row for row in rows if setting.items() <= row.items()}
    makers = contenders.entered(arena, priors_by_name(config, truth.inputs.shape[2:]), names)
    missing = [contender for contender in makers if contender not in finished]
    if not missing:
        return
    searches = {contender: Stepwise(makers[contender]()) for contender in missing}
    key = jax.random.key(config.seed + 1)
    seconds = seconds_per_step(searches, key, observations, num_turns=2 if config.smoke else TURNS)
    first = next(iter(makers))
    budget = finished[first]["seconds_fastest"] if first in finished else config.steps * seconds[first]

    nothing, shown = random_update(jax.random.key(config.seed + 2), observations), [np.asarray(truth.inputs)]
    for contender in missing:
        num_steps = config.steps if config.smoke else max(1, round(budget / seconds[contender]))
        print(f"{case}: {', '.join(contender)}, {num_steps} steps", flush=True)
        found, seconds_run = search_all(searches[contender], key, observations, num_steps=num_steps)
        null, _ = search_all(searches[contender], key, nothing, num_steps=num_steps)
        quality = [metrics.evaluate(one, true) for one, true in zip(found, truth.inputs)]
        psnr = np.array([one.psnr_db for one in quality])
        null_psnr = np.array([metrics.evaluate(one, true).psnr_db for one, true in zip(null, truth.inputs)])
        shown.append(np.stack([one[q.permutation] for one, q in zip(found, quality)]))
        flat = [np.asarray(images).reshape(-1, *images.shape[2:]) for images in (shown[-1], truth.inputs)]
        yield {
            **dict(zip(("attack", "generator"), contender)),
            **setting,
            "steps": num_steps,
            "seconds_fastest": num_steps * seconds[contender],
            "seconds_run": seconds_run,
            "mean_psnr_db": float(psnr.mean()),
            "mean_ssim": float(np.mean([one.ssim for one in quality])),
            "mean_lpips": float(perceptual.lpips(*flat).mean()) if config.lpips else None,
            "null_db": float(null_psnr.mean()),
            **interval("above_null", psnr - null_psnr),
            "psnr_db": psnr.tolist(),
            "null_psnr_db": null_psnr.tolist(),
            "device": harness.device_name(),
            "jax": jax.__version__,
        }
    if config.json is not None and not finished:
        grid = np.concatenate([np.asarray(images).reshape(-1, *images.shape[2:])[:8] for images in shown])
        which = str(case.batch_size) + (f"_{case.statistics}" if config.batch_norm else "")
        save_grid(config.json.with_name(f"{config.json.stem}_{which}.png"), grid)


def with_gains(rows: Sequence[Mapping[str, Any]]) -> list[dict]:
    """Rows with their gains over the published attack and the best on pixels, of those in the same setting."""

    def setting(row: Mapping[str, Any]) -> tuple:
        return tuple(row[name] for name in SETTING)

    completed = []
    for row in rows:
        pixels = [one for one in rows if setting(one) == setting(row) and one["attack"] in PIXELS]
        best = max(pixels, key=lambda one: one["mean_psnr_db"], default=None)
        reference = next((one for one in pixels if one["attack"] == PUBLISHED), None)
        gaps = [None if other is None else gap_db(row, other) for other in (reference, best)]
        completed.append({**row, **interval("gain", gaps[0]), **interval("over_pixels", gaps[1])})
    return completed


def gap_db(row: Mapping[str, Any], other: Mapping[str, Any]) -> np.ndarray:
    """`[T, B]`, what a row has over another, image by image."""
    return np.array(row["psnr_db"]) - np.array(other["psnr_db"])


def priors_by_name(config: Config, input_shape: Shape) -> dict[str, generators.Prior]:
    """The attacker's generators, by the names of their networks."""
    if config.smoke:
        network = generators.convolutional(output_shape=input_shape, num_latents=4, width=8)
        return {network.name: contenders.untrained(network, jax.random.key(config.seed))}
    priors = [generators.load_prior(file, input_shape=input_shape) for file in config.generator or (None,)]
    named = {prior.generator.name: prior for prior in priors}
    if len(named) < len(priors):
        raise SystemExit(f"rows are named by networks, and two generators are of the same: {config.generator}")
    return named


def clients_and_attacker(config: Config, case: Case) -> tuple[Batch, Observation, Arena]:
    """Private batches `[T, B, ...]`, what the server sees of them, and what the attacker knows."""
    batch_size = case.batch_size
    num_targets = max(1, config.images // batch_size)
    dataset = data.load(config.data, split=config.split, size=config.size)
    wanted = num_targets * batch_size
    if len(dataset.images) < wanted:
        raise SystemExit(
            f"{config.data} split {config.split!r} has {len(dataset.images)} images, {wanted} are needed"
        )
    batches = Batch(
        jnp.asarray(dataset.images[:wanted]).reshape(num_targets, batch_size, *dataset.images.shape[1:]),
        jnp.asarray(dataset.labels[:wanted]).reshape(num_targets, batch_size),
    )
    architecture: dict[str, Any] = {"batch_norm": "train"} if config.batch_norm else {}
    model = models.create(config.model, like=dataset, **architecture)

    def sent_statistics(params: Params, batch: Batch) -> ArrayTree:
        measured = jax.tree.map(lambda leaf: leaf[None], model.batch_statistics(params, batch.inputs))
        return running_statistics.advance(params["batch_stats"], measured, momentum=models.BATCH_NORM_MOMENTUM)

    sends = case.statistics != NONE_SENT
    client_update = clients.fedsgd(model.loss)
    observations = observe_targets(
        client_update,
        jax.jit(model.init)(jax.random.key(config.seed)),
        batches,
        threat_model=KNOWN_LABELS._replace(batch_stats=case.statistics == GRANTED),
        defense=None if config.keep == 1 else defenses.top_k(config.keep),
        key=jax.random.key(config.seed + 3),
        running_statistics=sent_statistics if sends else None,
    )
    problem = Problem(
        client_update,
        model,
        batch_size,
        sent_statistics=sent_statistics if sends else None,
        objective=objectives.cosine if config.keep == 1 else likelihoods.transmitted(objectives.cosine),
    )
    return batches, observations, Arena(problem, jax.random.key(config.seed + 4))


def seconds_per_step(
    searches: Mapping[tuple[str, str], Stepwise], key: Key, observations: Observation, *, num_turns: int
) -> dict[tuple[str, str], float]:
    """Of a step on all targets; the fastest of several turns, so that what else the machine does counts little."""
    fastest = dict.fromkeys(searches, float("inf"))
    for turn in range(num_turns):
        for name, search in searches.items():
            begin = time.perf_counter()
            for progress in search(
                key, observations, 1000.0, num_steps=2 * STEPS_PER_TURN, report_every=STEPS_PER_TURN
            ):
                begin = time.perf_counter() if progress.step == STEPS_PER_TURN else begin
            if turn:  # the first compiled
                fastest[name] = min(fastest[name], (time.perf_counter() - begin) / STEPS_PER_TURN)
    return fastest


def search_all(search: Stepwise, key: Key, observations: Observation, *, num_steps: int) -> tuple[np.ndarray, float]:
    """What an attack finds, `[T, B, H, W, C]`, and the wall time that it took."""
    for progress in search(key, observations, float(num_steps), num_steps=num_steps):
        last = progress
    return np.asarray(last.reconstruct().inputs), last.seconds


def interval(name: str, gaps: np.ndarray | Array | None) -> dict[str, float | None]:
    """Mean of `[T, B]` gaps in dB with its 95 % interval over batches; nothing is known of none."""
    if gaps is None:
        return dict.fromkeys((f"{name}_db", f"{name}_low_db", f"{name}_high_db"))
    of_batches = np.asarray(gaps).mean(axis=1)
    low = high = None
    if len(of_batches) > 1:
        low, high = map(float, mean_interval(of_batches))
    return {f"{name}_db": float(of_batches.mean()), f"{name}_low_db": low, f"{name}_high_db": high}


def draw(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Draws mean PSNR against the batch size, with intervals over batches, above the published figures."""
    sizes = sorted({row["batch_size"] for row in rows})

    def of_attacks(names: Sequence[str]) -> list[Mapping[str, Any] | None]:
        """For every batch size the best row of these attacks."""
        candidates = [[row for row in rows if row["batch_size"] == b and row["attack"] in names] for b in sizes]
        return [max(some, key=lambda row: row["mean_psnr_db"], default=None) for some in candidates]

    figure = Figure(figsize=(6, 3.8), dpi=110, layout="constrained")
    axes = figure.subplots()
    for name, names, color in (
        ("GI-z", ("GI-z",), "#b5482a"),
        ("GIAS", ("GIAS",), "#d99a2b"),
        ("pixels, best", PIXELS, "#2a6fb5"),
        ("pixels, published", (PUBLISHED,), "#888888"),
    ):
        chosen = [row for row in of_attacks(names) if row is not None]
        ends = [interval("psnr", np.array(row["psnr_db"])) for row in chosen]
        means = np.array([end["psnr_db"] for end in ends], float)
        low, high = (np.array([end[side] for end in ends], float) for side in ("psnr_low_db", "psnr_high_db"))
        drawn_sizes = [row["batch_size"] for row in chosen]
        axes.errorbar(drawn_sizes, means, [means - low, high - means], fmt="o-", color=color, capsize=2, label=name)
    highest_null = [max(row["null_db"] for row in rows if row["batch_size"] == b) for b in sizes]
    axes.plot(sizes, highest_null, "k:", label="null, the highest")
    for (name, published), style in zip(PUBLISHED_DB.items(), ("x--", "+--")):
        axes.plot(list(published), list(published.values()), style, color="#bbbbbb", label=f"{name} in the paper")
    axes.set(xscale="log", xlabel="images in a batch", ylabel="mean PSNR, dB", xticks=sizes, xticklabels=sizes)
    axes.minorticks_off()
    axes.legend(fontsize=8, frameon=False, ncols=2)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


if __name__ == "__main__":
    main()
