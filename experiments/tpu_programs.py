"""Attack steps compiled ahead of time for a TPU v5e, on a machine without one: operations, memory, roofline.

`libtpu` compiles for a described device (`pip install 'jaxinvert[tpu]'`); nothing is run, and weights and images are
only shapes. A row is one optimizer step of `inverting-gradients` for all its restarts, or one registered attack on a
small network: one step, or the whole program of a closed form. `mflop` and `mib` are the operations and the traffic
that XLA counts for the compiled program; `temporary_mib` is the memory that it needs beside its arguments. The
roofline's time is the longer of operations / peak and traffic / bandwidth, with a v5e chip's 197 TFLOP/s for bfloat16
and 819 GB/s; a product of float32 operands at the highest precision takes six passes of bfloat16. It bounds the rate
of one chip from above; nothing was timed but the compiler. Of closed forms whose float64 solvers run on the host
(`on_host`) only that they compile is told. Rows that the file holds are not compiled again.

Command:  python -m experiments.tpu_programs --json FILE.json
Smoke:    python -m experiments.tpu_programs --smoke
Measured: see experiments/README.md
"""

import importlib.util
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp
import optax
import tyro
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding

from experiments import harness
from jaxinvert import clients, models
from jaxinvert.attacks import Problem, inverting_gradients, registry
from jaxinvert.observation.observe import observe
from jaxinvert.priors import generators
from jaxinvert.types import Attack, Batch, ClientUpdateFn, Observation

TITLE = "Attack steps compiled for a TPU v5e"
TOPOLOGY = "v5e:2x2"
IDENTITY = ("what", "images", "restarts", "precision")
PERCEPTRON = "mlp"
FIGURES = (
    "mflop",
    "mib",
    "flop_per_byte",
    "roofline_us",
    "bound_by",
    "per_second_at_most",
    "temporary_mib",
    "arguments_mib",
)
PEAK_FLOPS, BANDWIDTH = 197e12, 819e9
PASSES = {"highest": 6, "default": 1}


class Case(NamedTuple):
    """A step of `inverting-gradients`: its network, images of one client, restarts, precision, and local training."""

    model: str
    images: int = 1
    restarts: int = 1
    size: int = 32
    precision: str = "highest"
    local: bool = False

    @property
    def name(self) -> str:
        """What the row is called."""
        return f"{self.model}, FedAvg" if self.local else self.model


CASES = (
    Case("lenet"),
    Case("vit-pre-norm"),
    Case("vit-pre-norm", restarts=64),
    Case("lenet", images=4, local=True),
    Case("convnet64"),
    Case("convnet64", precision="default"),
    Case("convnet64", images=8),
    Case("resnet20-4"),
    Case("lenet", restarts=64),
    Case("resnet18", size=224),
)
ON = {
    "april": "vit-plain-4-64-1",
    "batch-norm-leakage": "small-convnet-bn4",
    "cocktail-party-features": "wide-convnet-16",
    "patch-embedding": "vit-plain-4-64-1",
    "rgap": "lenet",
}
"""Networks of attacks that do not go through a perceptron."""


@dataclass(frozen=True)
class Config:
    """What to compile.

    Attributes:
      only: only the rows whose names contain this.
      smoke: a run of seconds on one small network; without libtpu, for the device that is there.
      json: file for the rows.
    """

    only: str = ""
    smoke: bool = False
    json: Path | None = None


def main(arguments: Sequence[str] | None = None) -> None:
    """Compiles every row, saving each."""
    config = tyro.cli(Config, description=__doc__, args=arguments)
    if importlib.util.find_spec("libtpu") is not None:
        device = described().devices[0]
    elif config.smoke:
        device = jax.devices()[0]
        print(f"libtpu is not installed: this smoke run compiles for {device.device_kind} instead")
    else:
        raise SystemExit("libtpu is not installed: pip install 'jaxinvert[tpu]'")
    sharding = SingleDeviceSharding(device)
    todo: dict[tuple, Callable[..., dict[str, Any]]] = {
        (f"{name} on {ON.get(name, PERCEPTRON)}", 1, 1, "highest"): partial(of_attack, name)
        for name in (["dlg"] if config.smoke else registry.REGISTRY)
    }
    todo |= {
        (case.name, case.images, case.restarts, case.precision): partial(of_case, case)
        for case in (() if config.smoke else CASES)
    }
    rows = kept(config.json)
    for identity, compiled in todo.items():
        if config.only in identity[0] and identity not in rows:
            print("compiling", *identity, flush=True)
            rows[identity] = dict(zip(IDENTITY, identity)) | compiled(sharding)
            if config.json is not None:
                harness.save(config.json, TITLE, list(rows.values()))
    harness.publish(TITLE, list(rows.values()))


def kept(file: Path | None) -> dict[tuple, dict[str, Any]]:
    """The rows of an earlier run."""
    rows = harness.kept_rows(file)
    return {tuple(row[name] for name in IDENTITY): row for row in rows}


def described() -> Any:
    """Four chips of a TPU v5e, as libtpu describes them; asks no server about the machine."""
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    return topologies.get_topology_desc(platform="tpu", topology_name=TOPOLOGY)


def of_case(case: Case, sharding: SingleDeviceSharding) -> dict[str, Any]:
    """Figures of one network."""
    model = models.create(case.model, input_shape=(case.size, case.size, 3), num_classes=10)
    client = clients.fedsgd(model.loss)
    if case.local:
        client = clients.fedavg(model.loss, optimizer=optax.sgd(0.01), batch_size=1)
    problem = Problem(client, model, case.images)
    with jax.default_matmul_precision(case.precision):
        attack = inverting_gradients(problem)
        return measured(attack, observed(client, model, case.images), sharding, case.restarts, case.precision)


def of_attack(name: str, sharding: SingleDeviceSharding) -> dict[str, Any]:
    """Figures of one registered attack, on a small network and one image."""
    entry = registry.REGISTRY[name]
    sends = "batch_stats" in entry.needs
    mode: dict[str, Any] = {"batch_norm": "train"} if sends else {}
    model = models.create(ON.get(name, PERCEPTRON), input_shape=(16, 16, 3), num_classes=10, **mode)
    client = clients.fedsgd(model.loss)
    problem = Problem(client, model, 1)
    if entry.traits.generates:
        generator = generators.convolutional(output_shape=model.input_shape, num_latents=32, width=32)
        problem = problem._replace(prior=generators.Prior(generator, jax.jit(generator.init)(jax.random.key(0))))
    observation = observed(client, model, 1)
    if sends:
        problem = problem._replace(sent_statistics=lambda params, batch: model.batch_statistics(params, batch.inputs))
        observation = observation._replace(batch_stats=sent_with(observation))
    hyperparameters = {key: jnp.float32(value) for key, value in entry.hyperparameters.items()}
    return measured(entry.build(problem, hyperparameters, 10.0), observation, sharding)


def sent_with(observation: Observation) -> Any:
    """The shapes of the running statistics that clients send."""
    params: Any = observation.params
    return params["batch_stats"]


def observed(client: ClientUpdateFn, model: models.Model, images: int) -> Observation:
    """The shapes of what a server sees of one client."""
    params = jax.eval_shape(model.init, jax.random.key(0))
    batch = jax.eval_shape(lambda: Batch(jnp.zeros((images, *model.input_shape)), jnp.zeros(images, jnp.int32)))
    return jax.eval_shape(partial(observe, client), params, batch)


def measured(
    attack: Attack | Any,
    observation: Observation,
    sharding: SingleDeviceSharding,
    restarts: int = 1,
    precision: str = "highest",
) -> dict[str, Any]:
    """Compiles one step of all restarts, or the whole program of a closed form, and reads what XLA counted."""
    on_host = []

    def zeros(function: Any, outputs: Any, *operands: Any, vmap_method: str) -> Any:
        """Stands for a call of the host, which only a machine with a TPU can compile."""
        on_host.append(function)
        return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), outputs)

    keys = jax.eval_shape(partial(jax.random.split, num=restarts), jax.random.key(0))
    if isinstance(attack, Attack):
        states = jax.eval_shape(jax.vmap(attack.init, in_axes=(0, None)), keys, observation)
        program, arguments = jax.vmap(attack.step, in_axes=(0, 0, None)), (keys, states, observation)
    else:
        program, arguments = jax.vmap(attack, in_axes=(0, None)), (keys, observation)
    begin = time.perf_counter()
    with mock.patch.object(jax, "pure_callback", zeros):
        lowered = jax.jit(program, in_shardings=sharding, out_shardings=sharding).lower(*arguments)
    compiled = lowered.compile()
    seconds_compile = time.perf_counter() - begin
    figures: dict[str, Any] = dict.fromkeys(FIGURES) if on_host else counted(compiled, restarts, precision)
    return {**figures, "on_host": bool(on_host), "seconds_compile": seconds_compile}


def counted(compiled: Any, restarts: int, precision: str) -> dict[str, Any]:
    """What XLA counts for a compiled program, and its roofline."""
    cost, memory = compiled.cost_analysis(), compiled.memory_analysis()
    flops, moved = cost.get("flops", 0.0), cost.get("bytes accessed", 0.0)
    by_compute, by_memory = flops * PASSES[precision] / PEAK_FLOPS, moved / BANDWIDTH
    found = (
        flops / 1e6,
        moved / 2**20,
        flops / moved,
        1e6 * max(by_compute, by_memory),
        "compute" if by_compute > by_memory else "memory",
        restarts / max(by_compute, by_memory),
        memory.temp_size_in_bytes / 2**20,
        memory.argument_size_in_bytes / 2**20,
    )
    return dict(zip(FIGURES, found))


if __name__ == "__main__":
    main()
