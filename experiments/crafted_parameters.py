"""How reliably `jaxinvert inspect` tells crafted parameters from honest ones.

The limits of the checks lie above the highest values of calibration networks. Other networks, of other seeds and
trained on other images, show the rates: honest ones, plain and odd, how many are called crafted; crafted ones, how
many are found, by the tensors alone and with the network, with exact 95 % intervals, and the one-sided 95 % bound
`at_most`. Checks that run a network are given 64 images that neither saw. `read`: of 16 images of a client, how many
the server reads off the update at 20 dB or more, on average.

`looked at` are honest networks on which an earlier version of the checks raised one false alarm: the check was mended
on them, so they show no rate. `honest` are others again, more of them and of more kinds.

Camouflaged imprints add noise of some length, relative to the direction of the bins, to every unit's weights: an
attacker who knows the check.

Command:  python -m experiments.crafted_parameters --data FILE.npz --json FILE.json
Smoke:    python -m experiments.crafted_parameters --smoke
"""

import functools
import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from scipy import stats

from experiments import crafting, harness
from experiments.honest_networks import Group, Honest, networks
from jaxinvert import audit, data, inspection, models
from jaxinvert.clients import fedsgd
from jaxinvert.types import Batch, Params

_READ_DB = 20.0
_NUM_PRIVATE = 16
_SMOKE = ("imprint, brightness", "trap weights", "fishing by class")
FEATURES = 32 * 32 * 3
TITLE = "Crafted parameters: found, and false alarms"

HONEST = (
    *(Group("mlp-64", 44, 60), Group("mlp", 22, 40, adam=True), Group("mlp-256-128", 22, 40)),
    *(Group("mlp-unbiased-64", 22, 60, adam=True), Group("mlp", 52, 0), Group("mlp-1024-512", 13, 0)),
    *(Group("wide-convnet-64", 13, 0), Group("small-convnet8", 13, 0), Group("lenet", 13, 0)),
    Group("vit-pre-norm", 13, 0),
)
"""Groups of honest networks for calibration, and, with other seeds and images, to be looked at."""

TESTED = (
    *(Group("mlp-64", 44, 60), Group("mlp", 44, 40, adam=True), Group("mlp-256-128", 22, 40)),
    *(Group("mlp-unbiased-64", 22, 60, adam=True), Group("mlp-128", 22, 60, adam=True)),
    *(Group("lenet", 11, 60), Group("vit-pre-norm-8-32-1", 11, 60, adam=True)),
    *(Group("mlp", 52, 0), Group("mlp-1024-512", 13, 0), Group("mlp-512", 26, 0), Group("mlp-unbiased-64", 13, 0)),
    *(Group("small-convnet8", 13, 0), Group("lenet", 13, 0), Group("wide-convnet-64", 13, 0)),
    Group("vit-plain-8-32-1", 13, 0),
)
"""Groups of honest networks whose false alarms are counted."""

PLANS: dict[str, tuple[tuple[Group, ...], int]] = {
    "calibration": (HONEST, 0),
    "looked at": (HONEST, 2),
    "honest": (TESTED, 12),
}
"""Parts of honest networks: their groups and their seed."""


@dataclass(frozen=True)
class Config:
    """Setting of the experiment.

    Attributes:
      data: data set by name, folder or npz; its training split, by halves, trains the two sets of honest networks.
      parts: which parts to run.
      scale: factor of the numbers of networks.
      seed: of everything random.
      smoke: a run of seconds on the embedded photos that only shows that everything works.
      json: file for the rows; rows that it holds are not measured again.
    """

    data: str = "cifar10"
    parts: tuple[str, ...] = (*PLANS, "crafted")
    scale: float = 1.0
    seed: int = 0
    smoke: bool = False
    json: Path | None = None


class Crafted(NamedTuple):
    """One crafted network, and how its server reads an imprint, `update -> [bins, D]` normalized inputs."""

    model: models.Model
    params: Params
    read: Callable[[Params], np.ndarray] | None = None


Craft = Callable[[Honest, np.random.Generator], Crafted]
"""Crafts a network."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures the rows that are not in the file yet, and prints all with their sums."""
    config = tyro.cli(Config, description=__doc__, args=arguments)
    if config.smoke:
        config = replace(config, data="photos", scale=0.01, parts=("honest", "crafted"))
    splits = ("private", "public", "test") if config.smoke else ("train[:50%]", "train[50%:]", "test")
    first, second, unseen = (data.load(config.data, split=split) for split in splits)
    seen_by_both = np.resize(unseen.images[:64], (64, *unseen.images.shape[1:]))
    probes = inspection.with_labels_in_turn(jnp.asarray(seen_by_both), first.num_classes)
    private = Batch(jnp.asarray(unseen.images[-_NUM_PRIVATE:]), jnp.asarray(unseen.labels[-_NUM_PRIVATE:]))
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    if config.json is not None and config.json.exists():
        kept = json.loads(config.json.read_text(encoding="utf-8"))["rows"]
        rows = {(row["part"], row["networks"]): row for row in kept if row["networks"] != "all"}
    for part in config.parts:
        for name, made in _plan(config, part, {"calibration": first}.get(part, second)):
            if (part, name) not in rows:
                rows[part, name] = measured(part, name, made(), probes, private)
                print(f"done: {part}, {name}: {judged(rows[part, name])['found']} found", flush=True)
                if config.json is not None:
                    harness.save(config.json, TITLE, with_sums([*rows.values()]))
    finished = with_sums([*rows.values()])
    shown = [name for name in finished[0] if name != "values" and not name.startswith("found_by")]
    harness.publish(TITLE, [{name: row[name] for name in shown} for row in finished])
    if config.json is not None:
        harness.save(config.json, TITLE, finished)


def _plan(
    config: Config, part: str, dataset: data.Dataset
) -> Iterator[tuple[str, Callable[[], Iterator[Honest | Crafted]]]]:
    """The rows of a part: their names, and how their networks are made."""
    if part != "crafted":
        groups, seed = PLANS[part]
        for group in groups[: 1 if config.smoke else None]:
            sized = group._replace(count=max(1, round(group.count * config.scale)))
            sized = sized._replace(steps=min(sized.steps, 2)) if config.smoke else sized
            how = f"trained, {'Adam' if group.adam else 'SGD'}" if group.steps else "untrained"
            yield f"{group.model}, {how}", functools.partial(networks, sized, dataset, seed=config.seed + seed)
        return
    bases = functools.cache(functools.partial(_bases, dataset, seed=config.seed + 5, short=config.smoke))
    for name, craft in attacks(dataset).items():
        if config.smoke and name not in _SMOKE:
            continue
        count = max(1, round((40 if name.startswith("imprint,") else 20) * config.scale))
        yield name, functools.partial(_crafted, craft, bases, count, seed=config.seed + 5)


def _crafted(craft: Craft, bases: Callable[[], list[Honest]], count: int, *, seed: int) -> Iterator[Crafted]:
    """Crafted networks of a kind: the bases in turn."""
    rng = np.random.default_rng(seed)
    for number in range(count):
        yield craft(bases()[number % len(bases())], rng)


def _bases(dataset: data.Dataset, *, seed: int, short: bool) -> list[Honest]:
    """The networks that servers craft: every other one trained."""
    untrained = [*networks(Group("mlp-64", 1, 0) if short else Group("mlp", 20, 0), dataset, seed=seed)]
    trained = [] if short else [*networks(Group("mlp", 20, 60), dataset, seed=seed)]
    return [one for pair in itertools.zip_longest(untrained, trained) for one in pair if one is not None]


def attacks(public: data.Dataset) -> dict[str, Craft]:
    """All attacks by name; those that begin with "imprint," are published ones, with as many bins as pay."""

    def imprint(bins: Sequence[int] = (16, 64, 256), **options: Any) -> Craft:
        def craft(base: Honest, rng: np.random.Generator) -> Crafted:
            layer = "params/dense_0"
            count = min(int(rng.choice(bins)), len(base.params["params"]["dense_0"]["bias"]))
            features = np.asarray(base.model.normalized(jnp.asarray(public.images[:1000]))).reshape(-1, FEATURES)
            crafted = crafting.imprint(base.params, layer, features, rng, bins=count, **options)
            return Crafted(base.model, crafted, functools.partial(crafting.read_bins, layer=layer, bins=count))

        return craft

    def module(base: Honest, rng: np.random.Generator) -> Crafted:
        name, bins = str(rng.choice(["lenet", "vit-pre-norm-8-64-1", "small-convnet8"])), 64
        behind = _behind(name, bins, base.model.mean, base.model.std)
        params = behind.init(jax.random.key(int(rng.integers(2**31))))
        features = np.asarray(behind.normalized(jnp.asarray(public.images[:1000]))).reshape(-1, FEATURES)
        layer = "params/imprint_in"
        crafted = crafting.imprint(params, layer, features, rng, bins=bins, direction="mean", scaled=False)
        return Crafted(behind, crafted, functools.partial(crafting.read_bins, layer=layer, bins=bins))

    def trap(mirrored: bool) -> Craft:
        def craft(base: Honest, rng: np.random.Generator) -> Crafted:
            factor = float(rng.uniform(0.9, 0.98))
            return Crafted(
                base.model, crafting.trap(base.params, ["params/dense_0"], rng, factor=factor, mirrored=mirrored)
            )

        return craft

    def fish(boost: float | None) -> Craft:
        def craft(base: Honest, rng: np.random.Generator) -> Crafted:
            target = int(rng.integers(public.num_classes))
            return Crafted(base.model, crafting.fish_class(base.params, base.model.head, target, boost=boost))

        return craft

    def feature(base: Honest, rng: np.random.Generator) -> Crafted:
        target, number = int(rng.integers(public.num_classes)), int(rng.integers(64))
        return Crafted(base.model, crafting.fish_feature(base.params, base.model.head, target, number, 0.1))

    return {
        "imprint, brightness": imprint(),
        "imprint, a wave, units scaled": imprint(direction="cosine", scaled=True),
        "imprint, random direction": imprint(direction="random"),
        "imprint, a module in front": module,
        "imprint, 16 of 256 units": imprint((16,)),
        "camouflaged imprint, noise 0.03": imprint((64,), noise=0.03),
        "camouflaged imprint, noise 0.3": imprint((64,), noise=0.3),
        "camouflaged imprint, noise 1": imprint((64,), noise=1.0),
        "camouflaged imprint, noise 3": imprint((64,), noise=3.0),
        "camouflaged imprint, noise 10": imprint((64,), noise=10.0),
        "camouflaged imprint, 16 bins, noise 1": imprint((16,), noise=1.0),
        "4 bins": imprint((4,)),
        "trap weights": trap(mirrored=True),
        "camouflaged trap weights, halves drawn apart": trap(mirrored=False),
        "fishing by class": fish(None),
        "fishing by feature": feature,
        "one class times 20": fish(20.0),
        "one class times 5": fish(5.0),
    }


@functools.cache
def _behind(name: str, bins: int, mean: tuple[float, ...], std: tuple[float, ...]) -> models.Model:
    """A network of the zoo behind an imprint module, the same object every time: it is compiled once."""
    return crafting.behind_imprint(models.create(name, mean=mean, std=std), bins)


def measured(part: str, name: str, made: Iterator[Honest | Crafted], probes: Batch, private: Batch) -> dict[str, Any]:
    """One row: the largest value of every check for each of these networks, and what servers read."""
    values: list[dict[str, float]] = []
    reads = []
    respond = functools.cache(lambda model: jax.jit(functools.partial(inspection.responses, model)))
    for one in made:
        result = inspection.judge(one.params, one.model.head, jax.device_get(respond(one.model)(one.params, probes)))
        values.append({measure.check: round(measure.value, 4) for measure in result.measures})
        if isinstance(one, Crafted) and one.read is not None:
            update = fedsgd(one.model.loss)(one.params, private)
            reads.append(num_read(one.model, one.read(jax.device_get(update)), private))
    return {"part": part, "networks": name, "values": values, "read": float(np.mean(reads)) if reads else None}


def judged(row: dict[str, Any]) -> dict[str, Any]:
    """The row with what the limits make of its values: how many are called crafted, and by which checks."""
    limits = {check: one.limit for check, one in inspection.CHECKS.items()}
    called = [{check for check, value in of.items() if value >= limits[check]} for of in row["values"]]
    found, total = sum(map(bool, called)), len(called)
    rate = audit.rate(found, total, chance=0.0)
    names = [*inspection.CHECKS]
    return {
        "part": row["part"],
        "networks": row["networks"],
        "count": total,
        "found": found,
        "share": found / total,
        "low": rate.low,
        "high": rate.high,
        "at_most": float(stats.beta.ppf(0.95, found + 1, total - found)) if found < total else 1.0,
        "by_tensors": sum(bool(checks - set(inspection.NEED_NETWORK)) for checks in called),
        "read": row["read"],
        **{f"highest_{name}": max((of[name] for of in row["values"] if name in of), default=None) for name in names},
        **{f"found_by_{name}": sum(name in checks for checks in called) for name in names},
        "values": row["values"],
    }


def num_read(model: models.Model, rows: np.ndarray, private: Batch) -> int:
    """How many private images are among the rows, at 20 dB or more."""
    pixels = rows.reshape(-1, *model.input_shape) * np.array(model.std) + np.array(model.mean)
    errors = [
        np.square(np.clip(pixels, 0, 1) - image).mean(axis=(1, 2, 3)).min() for image in np.asarray(private.inputs)
    ]
    return int(np.sum(np.array(errors) <= 10 ** (-_READ_DB / 10)))


def with_sums(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows, with those of all honest networks of a part together, and of all published imprints."""
    sums = []
    for part, begins in (*((honest, "") for honest in PLANS), ("crafted", "imprint,")):
        these = [row for row in rows if row["part"] == part and row["networks"].startswith(begins)]
        if these:
            values = [of for row in these for of in row["values"]]
            sums.append({"part": part, "networks": "all", "values": values, "read": None})
    return [*map(judged, rows), *({**judged(row), "values": []} for row in sums)]


if __name__ == "__main__":
    main()
