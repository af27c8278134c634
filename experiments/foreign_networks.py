"""Networks of other libraries: gradients and second derivatives against the library's own, speed against Flax linen.

The small network is one architecture in every library: two strided convolutions with sigmoid and a dense layer. Two
more PyTorch networks, a residual one with BatchNorm (in eval and in train mode) and a vision transformer, have a
linen counterpart of the same layers. Errors are the largest of any tensor, relative to the norm of all: of the
gradient of the mean cross-entropy, and of the derivative in the images of its inner product with a random direction.
`step_ms` is the median time of a step of "Inverting Gradients" with one image, `linen_ms` that of the linen network,
measured in turn. A library that is not installed has no row.

Command:  python -m experiments.foreign_networks --json experiments/results/foreign_networks.json
Smoke:    python -m experiments.foreign_networks --smoke
"""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from experiments import foreign, harness
from jaxinvert import Batch, attacks, clients, models, search
from jaxinvert.attacks import Problem
from jaxinvert.observation.observe import observe
from jaxinvert.trees import tree_inner


@dataclass(frozen=True)
class Config:
    """What to measure.

    Attributes:
      only: names of rows; by default all whose library is installed.
      steps: of the attack, per timing.
      repeats: of every timing; medians are reported.
      smoke: a run of seconds with tiny settings that only shows that everything works.
      json: file for the rows; rows that it has are kept.
    """

    only: tuple[str, ...] = ()
    steps: int = 100
    repeats: int = 5
    smoke: bool = False
    json: Path | None = None


class Errors(NamedTuple):
    """Largest relative errors of the gradient and of its derivative in the images."""

    gradient: float
    second: float


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures every network and prints a row each."""
    config = tyro.cli(Config, description=__doc__, args=arguments)
    rows = harness.kept_rows(config.json)
    names = config.only or (("NNX",) if config.smoke else tuple(foreign.NETWORKS))
    for name in names:
        if any(row["network"] == name for row in rows):
            continue
        try:
            network = foreign.NETWORKS[name](8 if config.smoke else 32)
        except ValueError as error:  # the library is not installed
            print(f"left out: {name}: {error}")
            continue
        rows.append(measure(config, name, network))
        if config.json is not None:
            harness.save(config.json, TITLE, rows)
    harness.publish(TITLE, rows, json_file=config.json)


TITLE = "Networks of other libraries"


def measure(config: Config, name: str, network: foreign.Network) -> dict[str, Any]:
    """The row of one network."""
    errors = errors_of(network)
    timed = {"step_ms": network.model, "linen_ms": network.linen}
    found: dict[str, list[float]] = {what: [] for what in timed}
    runs = {what: attack_of(model, 1 if config.smoke else config.steps) for what, model in timed.items()}
    for _ in range(1 if config.smoke else config.repeats):
        for what, run in runs.items():
            begin = time.perf_counter()
            run()
            found[what].append(1e3 * (time.perf_counter() - begin) / (1 if config.smoke else config.steps))
    times = {what: statistics.median(values) for what, values in found.items()}
    return {
        "network": name,
        "gradient_error": errors.gradient,
        "second_error": errors.second,
        **times,
        "ratio": times["linen_ms"] / times["step_ms"],
    }


def attack_of(model: models.Model, num_steps: int) -> Callable[[], Any]:
    """A compiled attack on one image, called once."""
    client = clients.fedsgd(model.loss)
    batch = Batch(jax.random.uniform(jax.random.key(0), (1, *model.input_shape)), jnp.array([1]))
    seen = jax.jit(partial(observe, client))(jax.jit(model.init)(jax.random.key(1)), batch)
    attack = attacks.inverting_gradients(Problem(client, model, num_examples=1))
    solve = jax.jit(search.run(attack, num_steps=num_steps))

    def run() -> Any:
        return jax.block_until_ready(solve(jax.random.key(2), seen).inputs)

    run()
    return run


def errors_of(network: foreign.Network) -> Errors:
    """Errors of the imported network against its library, on a batch of three."""
    model = network.model
    images = np.random.default_rng(0).uniform(size=(3, *model.input_shape)).astype(np.float32)
    labels = np.array([1, 2, 7])
    params, client = jax.jit(model.init)(jax.random.key(0)), clients.fedsgd(model.loss)
    gradient, direction, second = network.reference(images, labels)
    along = models.from_named(model, direction, may_lack=True)

    def inner(images: jax.Array) -> jax.Array:
        return tree_inner(client(params, Batch(images, jnp.asarray(labels))), along)

    found = models.to_named(model, jax.jit(client)(params, Batch(jnp.asarray(images), jnp.asarray(labels))))
    ours = np.asarray(jax.jit(jax.grad(inner))(jnp.asarray(images)))
    size = np.sqrt(sum(np.sum(np.square(value)) for value in gradient.values()))
    worst = max(np.linalg.norm(found[name] - value) for name, value in gradient.items())
    return Errors(float(worst / size), float(np.linalg.norm(ours - second) / np.linalg.norm(second)))


if __name__ == "__main__":
    main()
