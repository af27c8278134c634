"""Where the time of one attack step goes, by kind of operation, and what this package's convolutions change.

A row is one program, the compiled step of Inverting Gradients on a photo. Its columns are milliseconds per step by
kind of operation, as XLA's profiler times them; operations run side by side on several cores, so that the kinds may
add up to more than `step ms`. A kind is what an operation or fusion contains: a convolution, a matrix product
(`dot`), a reduction, else elementwise work and copies. `slow` counts the convolutions that XLA:CPU computes by loops
of its own: grouped ones, those whose window is as large as an image, and those in another order of axes than
`[N, ..., C]`.

`plain` is the same network on `jax.lax.conv_general_dilated`; both are timed in turn in this process, and `ratio` is
that of their medians. A network without convolutions has no other program.

Command:  python -m experiments.profile_steps --json FILE.json
Smoke:    python -m experiments.profile_steps --smoke
Measured: see experiments/README.md
"""

import gzip
import json
import re
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import tyro

from experiments import harness
from experiments.peers import mobile
from jaxinvert import attacks, clients, data, models
from jaxinvert.attacks import Problem
from jaxinvert.observation.observe import observe
from jaxinvert.types import Batch

TITLE = "Attack steps by kind of operation"
KINDS = ("convolution", "dot", "reduce", "elementwise")
NETWORKS: dict[str, tuple[str, int]] = {
    "depthwise": ("mobile", 32),
    "ViT": ("vit-pre-norm-4-128-4", 32),
    "ResNet-18": ("resnet18", 224),
    "ResNet20-4": ("resnet20-4", 32),
    "ConvNet-64": ("convnet64", 32),
}
"""Name -> network in the registry (or the depthwise one), side of the images in pixels."""


@dataclass(frozen=True)
class Config:
    """Setting of the experiment.

    Attributes:
      networks: names of `NETWORKS`.
      repeats: of the pair of programs in turn; medians are reported.
      seconds: measured time per program and repeat.
      plain: whether to measure the plain program too.
      smoke: a run of seconds that only shows that everything works.
      json: file for the rows.
    """

    networks: tuple[str, ...] = ("depthwise", "ViT", "ResNet-18")
    repeats: int = 5
    seconds: float = 1.0
    plain: bool = True
    smoke: bool = False
    json: Path | None = None


class Step(NamedTuple):
    """One compiled attack step: call it, and its text."""

    run: Callable[[], Any]
    text: str


def main(arguments: Sequence[str] | None = None) -> None:
    """Profiles every network, with and without this package's convolutions."""
    config = tyro.cli(Config, description=__doc__, args=arguments)
    if config.smoke:
        config = replace(config, networks=("perceptron",), repeats=1, seconds=0.0)
    rows: list[dict[str, Any]] = []
    for name in config.networks:
        rows += measure(config, name)
        if config.json is not None:
            harness.save(config.json, TITLE, rows)
    harness.publish(TITLE, rows, json_file=config.json)


def measure(config: Config, name: str) -> list[dict[str, Any]]:
    """One row for each program of a network."""
    network, side = ("mlp", 32) if config.smoke else NETWORKS[name]
    steps = {"ours": compiled(network, side, {})}
    if config.plain and not network.startswith(("vit", "mlp")):
        steps["plain"] = compiled(network, side, {"conv_general_dilated": jax.lax.conv_general_dilated})
    times: dict[str, list[float]] = {program: [] for program in steps}
    for step in steps.values():
        step.run()
    for _ in range(config.repeats):
        for program, step in steps.items():
            times[program].append(seconds_of(step.run, config.seconds))
    medians = {program: statistics.median(found) for program, found in times.items()}
    rows = []
    for program, step in steps.items():
        spent = by_kind(step, num_steps=max(1, min(20, int(config.seconds / medians[program]))))
        rows.append(
            {
                "network": name,
                "program": program,
                "step_ms": 1e3 * medians[program],
                "ratio": medians["plain"] / medians[program] if "plain" in medians else None,
                **{f"{kind}_ms": spent.get(kind, 0.0) for kind in KINDS},
                "slow": len(slow_convolutions(step.text)),
                "slowest": spent["slowest"],
                "slowest_ms": spent["slowest_ms"],
            }
        )
    return rows


def compiled(network: str, side: int, options: dict[str, Any]) -> Step:
    """The step of Inverting Gradients on one photo, as a program of its own."""
    photos = data.load("photos", split="test[:1]", size=side)
    shape = (side, side, 3)
    if network == "mobile":
        model = mobile.mobile(input_shape=shape, mean=photos.mean, std=photos.std, **options)
    else:
        model = models.create(network, like=photos, **options)
    client = clients.fedsgd(model.loss)
    params = jax.jit(model.init)(jax.random.key(0))
    batch = Batch(jnp.asarray(photos.images), jnp.asarray(photos.labels))
    seen = jax.jit(partial(observe, client))(params, batch)
    attack, key = attacks.inverting_gradients(Problem(client, model, num_examples=1)), jax.random.key(1)
    state = jax.jit(attack.init)(key, seen)
    program = jax.jit(attack.step).lower(key, state, seen).compile()
    return Step(lambda: jax.block_until_ready(program(key, state, seen)), program.as_text() or "")


def seconds_of(run: Callable[[], Any], seconds: float) -> float:
    """Median wall time of a call."""
    found: list[float] = []
    while not found or sum(found) < seconds:
        begin = time.perf_counter()
        run()
        found.append(time.perf_counter() - begin)
    return statistics.median(found)


def by_kind(step: Step, *, num_steps: int) -> dict[str, Any]:
    """Milliseconds per step by kind of operation, and the slowest operation with its milliseconds."""
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            for _ in range(num_steps):
                step.run()
        (file,) = Path(folder).rglob("*.trace.json.gz")
        events = json.loads(gzip.decompress(file.read_bytes()))["traceEvents"]
    spent: Counter[str] = Counter()
    for event in events:
        if "hlo_op" in event.get("args", {}) and not event["name"].startswith("end: "):
            spent[event["args"]["hlo_op"]] += event["dur"] / 1e3 / num_steps
    kinds: Counter[str] = Counter()
    contents = operations(step.text)
    for name in [name for name in spent if _CONTAINER.search(contents.get(name, "").partition("\n")[0])]:
        del spent[name]  # the operations inside are listed, too
    for name, milliseconds in spent.items():
        kinds[kind_of(contents.get(name, name))] += milliseconds
    slowest, milliseconds = spent.most_common(1)[0] if spent else ("-", 0.0)
    return {**kinds, "slowest": slowest, "slowest_ms": milliseconds}


def operations(text: str) -> dict[str, str]:
    """Every operation of a compiled program, by name, with the text of all computations that it calls."""
    computations: dict[str, list[str]] = {}
    lines: dict[str, str] = {}
    inside = ""
    for line in text.splitlines():
        if head := re.match(r"(?:ENTRY )?%?([\w.\-]+) \(.*\{$", line):
            inside = head[1]
            computations[inside] = []
        elif operation := re.match(r"\s+(?:ROOT )?%?([\w.\-]+) = ", line):
            computations.setdefault(inside, []).append(line)
            lines[operation[1]] = line

    def whole(line: str, depth: int = 0) -> str:
        called = re.findall(r"(?:calls|to_apply|body|condition)=%?([\w.\-]+)", line) if depth < 4 else []
        return "\n".join([line, *(whole(part, depth + 1) for name in called for part in computations.get(name, []))])

    return {name: whole(line) for name, line in lines.items()}


_CONTAINER = re.compile(r" (conditional|while|call)\(")


def kind_of(text: str) -> str:
    """The kind of an operation with this text: the first of `KINDS` that it contains."""
    if " convolution(" in text:
        return "convolution"
    if " dot(" in text:
        return "dot"
    return "reduce" if re.search(r" (reduce|reduce-window)\(", text) else "elementwise"


def slow_convolutions(text: str) -> list[str]:
    """The convolutions of a compiled program that XLA:CPU computes by loops of its own."""
    return [line.strip() for line in text.splitlines() if " convolution(" in line and _is_slow(line)]


def _is_slow(line: str) -> bool:
    if re.search(r"(feature|batch)_group_count=(?!1\b)", line):
        return True
    if not re.search(r"dim_labels=b(\d*)f_(\d*)io->b(\d*)f", line):
        return True
    taps = re.search(r"window=\{size=([\dx]+)", line)
    return taps is not None and max(map(int, taps[1].split("x"))) > _LARGEST_KERNEL


_LARGEST_KERNEL = 11
"""Taps along an axis of kernels in use; a larger window is an image, that is, the gradient of a kernel."""


if __name__ == "__main__":
    main()
