"""Which labels a client trained on: every rule of `jaxinvert.labels`, against batch size, label law and local steps.

Setting: untrained networks, or trained ones from checkpoints, normalized images, mean cross-entropy; FedSGD, and
FedAvg whose local steps each see all `B` examples. Half of the images are the clients', of the other half at most
1,000 are the attacker's public images, which only the rules called "-surrogate" read. A head with more classes than
the data has gets random labels.

Exact: share of batches whose multiset of labels is found, with Wilson's 95 % interval. Recall: share of examples
whose label is found (with multiplicity), with its 95 % interval. Class precision and recall: of the sets of classes.
Restorations per second: one rule, all gradients of a cell given, in one compiled program.

Logged by the authors of iLRG (Ma et al. 2023), share of exact batches, CIFAR-100, LeNet as PyTorch starts it:
1.0 at B = 128, 0.997 at 256, 0.960 at 512. Here:
`--models small-convnet --num-classes 100 --laws uniform --batch-sizes 128 256 512 --local-steps`.

Command:  python -m experiments.label_recovery --data FILE.npz --json FILE
Trained:  python -m experiments.label_recovery --data FILE.npz --split train[50%:] --checkpoints FILE... --json FILE
Smoke:    python -m experiments.label_recovery --smoke
"""

import functools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from matplotlib.figure import Figure

from experiments import harness
from jaxinvert import clients, data, labels, models
from jaxinvert.types import Array, Batch, LocalTraining, Observation, Params, RecoverLabels, Update

LABEL_LAWS = ("uniform", "dirichlet", "single")


@dataclass(frozen=True)
class Config:
    """Setting of the experiment.

    Attributes:
      data: data set by name, folder or npz.
      split: part of it that the clients and the attacker share; trained networks should not have seen it.
      models: untrained networks by name.
      checkpoints: trained networks instead, from `experiments.train`.
      num_classes: of the head; `None` for the data's.
      rules: by name, those of `jaxinvert list`.
      batch_sizes: examples of each client.
      laws: of the labels: "uniform", "dirichlet" (class shares Dirichlet(1/2), drawn for each client), "single".
      trials: clients in each cell, spread over two networks.
      local_steps: numbers of local steps beyond 1, for `fedavg_batch_size` and uniform labels only.
      fedavg_batch_size: examples of a FedAvg client.
      fedavg_trials: FedAvg clients in each cell.
      learning_rate: of local steps.
      seed: of the networks, the batches and the dummies.
      smoke: a run of seconds on the embedded photos that only shows that everything works.
      json: file for the rows.
      png: file for a plot of the FedSGD rows.
    """

    data: str = "photos"
    split: str = "train"
    models: tuple[str, ...] = ("small-convnet", "lenet")
    checkpoints: tuple[Path, ...] = ()
    num_classes: int | None = None
    rules: tuple[str, ...] = tuple(name for name, rule in labels.REGISTRY.items() if "classes" in rule.tasks)
    batch_sizes: tuple[int, ...] = (1, 8, 32, 128, 512)
    laws: tuple[str, ...] = LABEL_LAWS
    trials: int = 40
    local_steps: tuple[int, ...] = (5, 10)
    fedavg_batch_size: int = 32
    fedavg_trials: int = 10
    learning_rate: float = 0.01
    seed: int = 0
    smoke: bool = False
    json: Path | None = None
    png: Path | None = None


class Pool(NamedTuple):
    """The clients' images `[N, H, W, C]` with labels `[N]`, and the attacker's `[M, H, W, C]`."""

    images: np.ndarray
    labels: np.ndarray
    surrogate: np.ndarray


class Cell(NamedTuple):
    """Clients of one network, batch size and training: counts `[T, K]`, each rule's counts, and restorations/s."""

    truth: np.ndarray
    found: dict[str, np.ndarray]
    rates: dict[str, float]


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs every cell and prints a row for each rule in it."""
    config = tyro.cli(Config, description=__doc__, args=arguments)
    if config.smoke:
        config = replace(
            config,
            data="photos",
            models=("lenet",),
            rules=("bias-sign", "ilrg", "moments-surrogate"),
            batch_sizes=(4,),
            laws=("uniform", "single"),
            trials=4,
            local_steps=(2,),
            fedavg_batch_size=4,
            fedavg_trials=2,
        )
    networks: list[str | Path] = [*(config.checkpoints or config.models)]
    rows = [row for network in networks for row in measure(config, network)]
    harness.publish(f"Label recovery, {Path(config.data).stem}", rows, json_file=config.json)
    if config.png is not None:
        plot(rows, config.png)


def measure(config: Config, network: str | Path) -> list[dict]:
    """All rows of one network: two draws of an untrained one, or a checkpoint."""
    dataset = data.load(config.data, split=config.split)
    facts: dict[str, Any] = models.read_facts(network) if isinstance(network, Path) else {"model": network}
    num_classes = facts.get("num_classes") or config.num_classes or dataset.num_classes
    model = models.create(
        facts["model"], like=dataset, num_classes=num_classes, mean=facts.get("mean"), std=facts.get("std")
    )
    rng = np.random.default_rng(config.seed)
    order = rng.permutation(len(dataset.images))
    public, private = np.split(order, [len(order) // 2])
    pool = Pool(dataset.images[private], dataset.labels[private], dataset.images[public[:1000]])
    setting = labels.LabelProblem(model.apply, model.head, model.input_shape, jax.random.key(config.seed))
    rules = {name: labels.REGISTRY[name].factory(setting) for name in config.rules}
    programs = compiled(model, rules)
    keys = jax.random.split(jax.random.key(config.seed + 1), 2)
    if isinstance(network, Path):
        networks = [models.load_checkpoint(network, jax.eval_shape(model.init, keys[0]))]
    else:
        networks = [jax.jit(model.init)(key) for key in keys]
    named = functools.partial(summarize, model=model.name, epochs=facts.get("epochs", 0))

    rows = []
    for batch_size in config.batch_sizes:
        cells = []
        for params in networks:
            draws = [
                draw(rng, pool, law, batch_size, num_classes)
                for law in config.laws
                for _ in range(config.trials // len(networks))
            ]
            cells.append(fedsgd_cell(programs, params, pool, draws, num_classes))
        for i, law in enumerate(config.laws):
            share = config.trials // len(networks)
            merged = merge([pick(cell, slice(i * share, (i + 1) * share)) for cell in cells])
            rows += named(merged, local_steps=1, law=law, batch_size=batch_size)
    for num_steps in config.local_steps:
        size = config.fedavg_batch_size
        draws = [draw(rng, pool, "uniform", size, num_classes) for _ in range(config.fedavg_trials)]
        training = LocalTraining(config.learning_rate, num_steps)
        cell = fedavg_cell(model, rules, networks[0], pool, draws, training)
        rows += named(cell, local_steps=num_steps, law="uniform", batch_size=size)
    return rows


def draw(rng: np.random.Generator, pool: Pool, law: str, batch_size: int, num_classes: int) -> tuple[Any, Any]:
    """Indices into the pool and labels `[B]` of one client; examples may repeat."""
    shares = {
        "uniform": lambda: np.full(num_classes, 1 / num_classes),
        "dirichlet": lambda: rng.dirichlet(np.full(num_classes, 0.5)),
        "single": lambda: np.eye(num_classes)[rng.integers(num_classes)],
    }[law]()
    chosen = rng.choice(num_classes, batch_size, p=shares)
    of_class = [np.flatnonzero(pool.labels == label) for label in range(num_classes)]
    everything = np.arange(len(pool.labels))
    # A class without images of its own (a larger head, a small set) takes any image.
    indices = [rng.choice(of_class[label] if len(of_class[label]) else everything) for label in chosen]
    return np.array(indices), chosen.astype(np.int32)


class Programs(NamedTuple):
    """Compiled once for a network: head gradients, and one program for each rule."""

    head_gradients: Callable[..., Update]
    rules: dict[str, Callable[..., Array]]


def compiled(model: models.Model, rules: dict[str, RecoverLabels]) -> Programs:
    """Programs over all clients of a cell. Rules read the head's gradient only: nothing else is computed."""
    loss_fn = model.loss

    def head_gradients(params: Params, pixels: Array, indices: Array, chosen: Array) -> Update:
        def one(client: tuple[Array, Array]) -> Update:
            def of_head(head: Params) -> Array:
                return loss_fn({**params, "params": {**params["params"], "head": head}}, batch)

            batch = Batch(pixels[client[0]], client[1])
            return jax.grad(of_head)(params["params"]["head"])

        return jax.lax.map(one, (indices, chosen))

    def over_clients(rule: RecoverLabels) -> Callable[..., Array]:
        def one(params: Params, head: Update, num_examples: int, surrogate: Array) -> Array:
            update = jax.tree.map(jnp.zeros_like, params)
            update = {**update, "params": {**update["params"], "head": head}}
            # Closed over, not passed: with num_steps a Python 1 the rules leave the client's model out.
            training = LocalTraining(1.0, 1)
            return rule(Observation(params, update, None, num_examples, training, surrogate=surrogate))

        return jax.jit(jax.vmap(one, in_axes=(None, 0, None, None)))

    return Programs(jax.jit(head_gradients), {name: over_clients(rule) for name, rule in rules.items()})


def fedsgd_cell(programs: Programs, params: Params, pool: Pool, draws: list, num_classes: int) -> Cell:
    """One network's FedSGD clients; every rule is run twice, the second time for the clock."""
    images, chosen, truth = stack(draws, num_classes)
    gradients = programs.head_gradients(params, pool.images, images, chosen)
    found, rates = {}, {}
    for name, run in programs.rules.items():
        found[name] = np.asarray(run(params, gradients, chosen.shape[1], pool.surrogate))
        start = time.perf_counter()
        run(params, gradients, chosen.shape[1], pool.surrogate).block_until_ready()
        rates[name] = len(draws) / (time.perf_counter() - start)
    return Cell(truth, found, rates)


def fedavg_cell(
    model: models.Model,
    rules: dict[str, RecoverLabels],
    params: Params,
    pool: Pool,
    draws: list,
    training: LocalTraining,
) -> Cell:
    """One network's FedAvg clients."""
    images, chosen, truth = stack(draws, model.num_classes)
    client_update = clients.fedavg(
        model.loss,
        optimizer=optax.sgd(training.learning_rate),
        num_epochs=int(training.num_steps),
    )

    @jax.jit
    def updates(params: Params, pixels: Array, indices: Array, chosen: Array) -> Update:
        return jax.lax.map(
            lambda client: client_update(params, Batch(pixels[client[0]], client[1])), (indices, chosen)
        )

    def over_clients(rule: RecoverLabels) -> Callable[..., Array]:
        def one(params: Params, update: Update, surrogate: Array) -> Array:
            return rule(Observation(params, update, None, chosen.shape[1], training, surrogate=surrogate))

        return jax.jit(lambda params, sent, surrogate: jax.lax.map(lambda u: one(params, u, surrogate), sent))

    sent = updates(params, pool.images, images, chosen)
    found = {name: np.asarray(over_clients(rule)(params, sent, pool.surrogate)) for name, rule in rules.items()}
    return Cell(truth, found, {})


def stack(draws: list, num_classes: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Indices `[T, B]`, labels `[T, B]` and counts `[T, K]` of all clients."""
    indices, chosen = (np.stack(part) for part in zip(*draws))
    return indices, chosen, np.stack([np.bincount(row, minlength=num_classes) for row in chosen])


def pick(cell: Cell, clients: slice) -> Cell:
    """Some clients of a cell."""
    return Cell(cell.truth[clients], {name: counts[clients] for name, counts in cell.found.items()}, cell.rates)


def merge(cells: list[Cell]) -> Cell:
    """The clients of several networks; of the measured rates the highest."""
    return Cell(
        np.concatenate([cell.truth for cell in cells]),
        {name: np.concatenate([cell.found[name] for cell in cells]) for name in cells[0].found},
        {name: max(cell.rates[name] for cell in cells) for name in cells[0].rates},
    )


def summarize(cell: Cell, *, model: str, epochs: int, local_steps: int, law: str, batch_size: int) -> list[dict]:
    """One row for each rule."""
    rows = []
    for name, found in cell.found.items():
        exact = np.all(found == cell.truth, axis=1)
        recalled = np.minimum(found, cell.truth).sum(axis=1) / batch_size
        both = ((found > 0) & (cell.truth > 0)).sum(axis=1)
        low, high = wilson(int(exact.sum()), len(exact))
        rows.append(
            {
                "model": model,
                "epochs": epochs,
                "classes": cell.truth.shape[1],
                "local_steps": local_steps,
                "law": law,
                "batch": batch_size,
                "rule": name,
                "trials": len(exact),
                "exact": float(exact.mean()),
                "exact_low": low,
                "exact_high": high,
                "recall": float(recalled.mean()),
                "recall_plus_minus": float(1.96 * recalled.std() / np.sqrt(len(recalled))),
                "class_precision": float(np.mean(both / (found > 0).sum(axis=1))),
                "class_recall": float(np.mean(both / (cell.truth > 0).sum(axis=1))),
                "restorations_per_second": cell.rates.get(name),
            }
        )
    return rows


def plot(rows: list[dict], file: Path) -> None:
    """Exact rates with 95 % intervals against batch size: a panel for each network and law, a line for each rule."""
    fedsgd = [row for row in rows if row["local_steps"] == 1]
    networks = list(dict.fromkeys((row["model"], row["epochs"]) for row in fedsgd))
    laws = list(dict.fromkeys(row["law"] for row in fedsgd))
    figure = Figure(figsize=(3.2 * len(laws) + 1.8, 2.6 * len(networks)), layout="constrained")
    panels = figure.subplots(len(networks), len(laws), sharex=True, sharey=True, squeeze=False)
    for (model, epochs), row_of_panels in zip(networks, panels):
        for law, panel in zip(laws, row_of_panels):
            here = [row for row in fedsgd if (row["model"], row["epochs"], row["law"]) == (model, epochs, law)]
            for rule in Config().rules:
                rates = sorted((row["batch"], row["exact"], row["exact_low"], row["exact_high"]) for row in here
                               if row["rule"] == rule)  # fmt: skip
                sizes, exact, low, high = zip(*rates)
                style = PLOT_STYLES.get(rule, {"color": "0.75", "linewidth": 0.9})
                panel.plot(sizes, exact, label=rule, marker="o", markersize=2.5, **style)
                if rule in PLOT_STYLES:
                    panel.fill_between(sizes, low, high, color=style["color"], alpha=0.1, linewidth=0)
            panel.set_xscale("log", base=2)
            panel.set_xticks(sizes, [str(size) for size in sizes])
            panel.set_title(f"{model}, {f'{epochs} epochs' if epochs else 'untrained'}, {law} labels", fontsize=8)
            panel.grid(alpha=0.2)
            panel.tick_params(labelsize=7)
    figure.supxlabel("examples in the batch", fontsize=8)
    figure.supylabel("share of batches with exact labels", fontsize=8)
    figure.legend(*panels[0][0].get_legend_handles_labels(), loc="outside right upper", fontsize=7, frameon=False)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=150)


PLOT_STYLES: dict[str, dict[str, Any]] = {
    "moments-surrogate": {"color": "#0072B2", "linewidth": 2.2},
    "moments": {"color": "#0072B2", "linewidth": 1.6, "linestyle": "--"},
    "zero-shot-surrogate": {"color": "#E69F00", "linewidth": 1.8},
    "zero-shot": {"color": "#E69F00", "linewidth": 1.4, "linestyle": "--"},
    "ilrg": {"color": "#009E73", "linewidth": 1.6},
    "llg": {"color": "#CC79A7", "linewidth": 1.4},
}
"""The rules that are worth following through the panels; the others are thin and grey."""


def wilson(successes: int, trials: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson's 95 % interval for a rate (Wilson 1927)."""
    rate = successes / trials
    center = (rate + z**2 / (2 * trials)) / (1 + z**2 / trials)
    half = z / (1 + z**2 / trials) * np.sqrt(rate * (1 - rate) / trials + z**2 / (4 * trials**2))
    return float(max(0.0, center - half)), float(min(1.0, center + half))


if __name__ == "__main__":
    main()
