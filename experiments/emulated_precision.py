"""What rounding on accelerators costs: matrix products and convolutions of an attack with rounded operands, on a CPU.

Unless told otherwise, a GPU rounds the operands of float32 products to 10 bits after the binary point (TF32) and a
TPU to 7 (bfloat16); sums are float32. Here the program of a whole attack step, with all its derivatives, is rewritten
so that the operands of every product are rounded first, and so is the client's. `client bits` and `attack bits` say
to how many; 23 is float32. Rows with 23 bits for the attack alone are a precise attack on clients that round. Sums in
another order, which a real device has too, are not emulated.

Expected: the fewer bits, the less detail is found, most where an update determines its image almost exactly. A
precise attack on clients that round gains nothing over one that rounds as they do.

Command:  python -m experiments.emulated_precision --json FILE.json
Smoke:    python -m experiments.emulated_precision --smoke
Measured: see experiments/details/precision.md
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jax import lax
from jax.extend import core

from experiments import harness
from jaxinvert import data, metrics, models, search
from jaxinvert.attacks import Problem, inverting_gradients
from jaxinvert.clients import fedsgd
from jaxinvert.observation.observe import observe_targets
from jaxinvert.types import Array, Attack, Batch

TITLE = "Attacks with rounded products"
FLOAT32_BITS = 23
BITS = ((23, 23), (10, 10), (7, 7), (10, 23), (7, 23))
"""Bits of client and attack."""


@dataclass(frozen=True)
class Network:
    """A network, and how it is attacked."""

    name: str
    tv: float
    steps: int


NETWORKS = (Network("small-convnet", 1e-6, 500), Network("lenet", 1e-4, 2000))


@dataclass(frozen=True)
class Config:
    """Setting of the experiment.

    Attributes:
      targets: images, one per client.
      smoke: a run of seconds that only shows that everything works.
      json: file for the rows.
    """

    targets: int = 4
    smoke: bool = False
    json: Path | None = None


def main(arguments: Sequence[str] | None = None) -> None:
    """Attacks every network with every pair of bits, and prints a row for each."""
    config = tyro.cli(Config, description=__doc__, args=arguments)
    networks = (Network("mlp", 1e-6, 2),) if config.smoke else NETWORKS
    rows: list[dict[str, Any]] = []
    for network in networks:
        rows += measure(network, num_targets=1 if config.smoke else config.targets, size=8 if config.smoke else 32)
        if config.json is not None:
            harness.save(config.json, TITLE, rows)
    harness.publish(TITLE, rows, json_file=config.json)


def measure(network: Network, *, num_targets: int, size: int) -> list[dict[str, Any]]:
    """One row for every pair of bits; the attack is compiled once."""
    victims = data.load("photos", split=f"test[:{num_targets}]", size=size)
    model = models.create(network.name, like=victims)
    client = fedsgd(model.loss)
    params = jax.jit(model.init)(jax.random.key(0))
    truth = Batch(jnp.asarray(victims.images)[:, None], jnp.asarray(victims.labels)[:, None])
    problem = Problem(client, model, num_examples=1)

    def make_attack(settings: dict[str, Array]) -> Attack:
        attack = inverting_gradients(problem, tv=network.tv, horizon=float(network.steps))
        return attack._replace(step=with_rounded_products(attack.step, settings["bits"]))

    @jax.jit
    def observed(bits: Array) -> Any:
        return observe_targets(with_rounded_products(client, bits), params, truth)

    attack, rows = search.Stepwise(make_attack), []
    for client_bits, attack_bits in BITS[:2] if network.steps < 10 else BITS:
        observations = observed(jnp.float32(client_bits))
        *_, last = attack(jax.random.key(1), observations, {"bits": attack_bits}, num_steps=network.steps)
        quality = metrics.evaluate(np.asarray(last.reconstruct().inputs)[:, 0], victims.images)
        psnr = np.asarray(quality.psnr_db)
        rows.append(
            {
                "network": network.name,
                "client_bits": client_bits,
                "attack_bits": attack_bits,
                "mean_psnr_db": float(psnr.mean()),
                "min_psnr_db": float(psnr.min()),
                "max_psnr_db": float(psnr.max()),
                "median_attack_loss": float(np.median(last.best_loss)),
                "steps": network.steps,
                "targets": num_targets,
                "tv": network.tv,
            }
        )
        print(f"done: {network.name}, {client_bits} and {attack_bits} bits", flush=True)
    return rows


def with_rounded_products(function: Callable, bits: Array) -> Callable:
    """`function` with the operands of every matrix product and convolution rounded.

    Derivatives inside of `function` are rounded, too; it is not for being differentiated itself.

    Args:
      function: traceable, of arrays.
      bits: `[]`, bits of the fraction that are kept, 1 ... 23; may be traced.
    """

    def rounded_function(*arguments: Any) -> Any:
        closed, result = jax.make_jaxpr(function, return_shape=True)(*arguments)
        found = _evaluate(closed, bits, *jax.tree.leaves(arguments))
        return jax.tree.unflatten(jax.tree.structure(result), found)

    return rounded_function


_PRODUCTS = {
    *("dot_general", "conv_general_dilated"),
    *("convolve", "convolve_input_transpose", "convolve_kernel_gradient"),  # those of `jaxinvert.nn`
}


def _evaluate(closed: Any, bits: Array, *arguments: Any) -> list[Any]:
    """Evaluates a closed jaxpr with rounded products, also in the jaxprs inside."""
    jaxpr = closed.jaxpr
    values: dict[Any, Any] = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*closed.consts, *arguments)))

    def read(variable: Any) -> Any:
        return variable.val if isinstance(variable, core.Literal) else values[variable]

    for equation in jaxpr.eqns:
        found = _evaluate_equation(equation, bits, [read(variable) for variable in equation.invars])
        values.update(zip(equation.outvars, found))
    return [read(variable) for variable in jaxpr.outvars]


def _evaluate_equation(equation: Any, bits: Array, operands: list[Any]) -> Sequence[Any]:
    name, params = equation.primitive.name, equation.params
    inner = partial(partial, _evaluate)
    if name in ("jit", "pjit", "closed_call"):
        return _evaluate(params.get("jaxpr") or params["call_jaxpr"], bits, *operands)
    if name == "custom_jvp_call":
        return _evaluate(params["call_jaxpr"], bits, *operands)
    if name == "cond":
        return lax.switch(operands[0], [inner(branch, bits) for branch in params["branches"]], *operands[1:])
    if name == "while":
        of_condition, of_body = params["cond_nconsts"], params["cond_nconsts"] + params["body_nconsts"]
        condition, body = inner(params["cond_jaxpr"], bits), inner(params["body_jaxpr"], bits)
        return lax.while_loop(
            lambda state: condition(*operands[:of_condition], *state)[0],
            lambda state: body(*operands[of_condition:of_body], *state),
            operands[of_body:],
        )
    if name == "scan":
        body, num_consts, num_carry = inner(params["jaxpr"], bits), params["num_consts"], params["num_carry"]

        def step(carry: list[Any], items: list[Any]) -> tuple[list[Any], list[Any]]:
            found = body(*operands[:num_consts], *carry, *items)
            return found[:num_carry], found[num_carry:]

        first, items = operands[num_consts : num_consts + num_carry], operands[num_consts + num_carry :]
        options = {option: params[option] for option in ("length", "reverse", "unroll")}
        carry, stacked = lax.scan(step, first, items, **options)
        return [*carry, *stacked]
    if any(hasattr(value, "eqns") or hasattr(value, "jaxpr") for value in params.values()):
        raise NotImplementedError(f"products inside {name} would not be rounded")
    if name in _PRODUCTS:
        operands = [rounded(operand, bits) for operand in operands]
    found = equation.primitive.bind(*operands, **params)
    return found if equation.primitive.multiple_results else [found]


def rounded(values: Array, bits: Array) -> Array:
    """Float32 values rounded to the nearest ones with fewer bits, ties to even.

    >>> [float(rounded(jnp.float32(1 + 2**-10 + 2**-12), jnp.float32(bits))) for bits in (23, 10)]
    [1.001220703125, 1.0009765625]
    """
    if values.dtype != jnp.float32:
        return values
    cut = (FLOAT32_BITS - jnp.asarray(bits, jnp.uint32)).astype(jnp.uint32)
    pattern, one = lax.bitcast_convert_type(values, jnp.uint32), jnp.uint32(1)
    half = jnp.where(cut > 0, (one << jnp.maximum(cut, one) - one) - one + ((pattern >> cut) & one), jnp.uint32(0))
    kept = ((pattern + half) >> cut) << cut
    return jnp.where(jnp.isfinite(values), lax.bitcast_convert_type(kept, jnp.float32), values)


if __name__ == "__main__":
    main()
