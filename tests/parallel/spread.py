"""Searches on several devices, which `test_devices` runs in processes of their own.

    python -m tests.parallel.spread FOLDER [PORT PROCESS NUM_PROCESSES]

writes `FOLDER/PROCESS.npz`, arrays under the names `plan/case/what`.
"""

import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxinvert import clients, search
from jaxinvert.attacks import Problem, inverting_gradients, objectives
from jaxinvert.attacks.matching import gradient_matching
from jaxinvert.observation.observe import observe_targets
from jaxinvert.priors.parametrizations import pixels
from jaxinvert.types import Batch, Observation
from tests.conftest import SHAPE, apply, init, model_of
from tests.search.test_search import Quadratic

NUM_TARGETS, NUM_RESTARTS, NUM_WALKS = 3, 3, 9  # 9 lanes: devices do not divide them
MODEL = model_of(apply, init)
CLIENT = clients.fedsgd(MODEL.loss)


def walk(settings):
    """Moves by the noise of its steps' keys alone: every number is a random draw."""
    del settings
    return Quadratic(rate=0.0, noise=1.0).attack()


def signed(settings):
    return inverting_gradients(Problem(CLIENT, MODEL, 1), **settings)


def smooth(settings):
    return gradient_matching(
        CLIENT,
        objective=objectives.squared_l2,
        optimizer=optax.adam(settings["rate"]),
        parametrization=pixels(SHAPE),
    )


def observed():
    batches = Batch(jax.random.uniform(jax.random.key(9), (NUM_TARGETS, *SHAPE)), jnp.arange(NUM_TARGETS)[:, None])
    return observe_targets(CLIENT, jax.jit(init)(jax.random.key(0)), batches)


def walkers():
    return Observation(params=jnp.zeros(2), update=jnp.arange(1.0, 1 + 2 * NUM_WALKS).reshape(-1, 2) / NUM_WALKS)


def all_results(devices):
    """Every case on these devices, by name: its start, its end, and its end once more; several processes run two."""
    cases = {
        "walk": (walk, walkers(), {}, 1, 5),
        "signed": (signed, observed(), {"tv": 1e-4}, NUM_RESTARTS, 15),
        "smooth": (smooth, observed(), {"rate": 0.05}, NUM_RESTARTS, 100),
    }
    if jax.process_count() > 1:
        del cases["signed"]
    results = {}
    for case, (make_attack, observations, settings, num_restarts, num_steps) in cases.items():
        stepwise = search.Stepwise(make_attack, num_restarts=num_restarts, devices=devices)
        for when, steps in {"start": 0, "end": num_steps, "again": num_steps}.items():
            results |= {
                f"{case}/{when}/{what}": result
                for what, result in one_search(stepwise, observations, settings, steps).items()
            }
        results[f"{case}/num_traces"] = stepwise.num_traces
        results[f"{case}/chunk_size"] = stepwise.lanes_side_by_side(observations)
    return results


def one_search(stepwise, observations, settings, num_steps):
    """Only the first process passes the right key; `parts` is how many devices hold a part of the same array."""
    key = jax.random.key(1 + jax.process_index())
    (progress,) = stepwise(key, observations, settings, num_steps=num_steps, report_every=100)
    split = [array for array in jax.live_arrays() if not array.is_fully_replicated]
    found = progress.reconstruct()
    return {
        "best_loss": progress.best_loss,
        "inputs": found.inputs,
        "restart_losses": found.info["restart_losses"],
        "parts": max((len(array.sharding.device_set) for array in split), default=1),
    }


def reports_at_different_speed():
    """The steps at which a search reports that decides so itself, in a process that is slower than others."""
    steps = []
    for progress in search.Stepwise(walk, devices=jax.devices())(jax.random.key(0), walkers(), {}, num_steps=200):
        steps.append(progress.step)
        time.sleep(0.5 * jax.process_index())
    return steps


def main(folder, port=None, process="0", num_processes="1"):
    if port:
        jax.distributed.initialize(f"localhost:{port}", num_processes=int(num_processes), process_id=int(process))
    plans = {"all": jax.devices()} if port else {"one": None, "all": jax.devices()}
    arrays = {
        f"{plan}/{name}": np.asarray(result)
        for plan, devices in plans.items()
        for name, result in all_results(devices).items()
    }
    if port:
        arrays["steps"] = np.array(reports_at_different_speed())
    np.savez(Path(folder) / f"{process}.npz", **arrays)


if __name__ == "__main__":
    main(*sys.argv[1:])
