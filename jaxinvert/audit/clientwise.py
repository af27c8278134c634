"""Attacks on clients one after the other, for records and text; finished clients are kept in the audit's folder."""

import hashlib
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxinvert import files, jobs
from jaxinvert.audit import controls
from jaxinvert.audit.running import Show
from jaxinvert.types import Key, Observation, SolveFn

_FORMAT = 1


class Finished(NamedTuple):
    """The results of one attack on all clients.

    Attributes:
      inputs: `[T, ...]` reconstructions.
      attack_loss: `[T]`.
      seconds: time for all clients, including compilation.
    """

    inputs: np.ndarray
    attack_loss: np.ndarray
    seconds: float


def attack_clients(
    what: str,
    fields: Mapping[str, Any],
    key: Key,
    solve: SolveFn,
    observations: Callable[[int], Observation],
    folder: Path | None,
    on_progress: Show,
) -> Finished:
    """Attacks the clients one after the other, or loads the stored results.

    Args:
      what: name of the attack, shown to people and used in file names.
      fields: all fields of the job, with `targets`, the number of clients; they name the stored results.
      key: PRNG key of the attack.
      solve: the attack on one client, compiled.
      observations: the observation of the client with this number.
      folder: stores the results.
      on_progress: called before every client.
    """
    num_clients, job, results = fields["targets"], _name(fields), []
    for client, own_key in enumerate(jax.random.split(key, num_clients)):
        name = f"{job}-{what.replace(' ', '-')}-{client}.npz"
        file = None if folder is None else folder / "attacks" / name
        kept = None if file is None else _load(file)
        if kept is None:
            on_progress(f"{what}, client {client + 1} of {num_clients}", None)
            begin = time.perf_counter()
            found = jax.device_get(solve(own_key, observations(client)))
            seconds = np.float64(time.perf_counter() - begin)
            kept = {"inputs": found.inputs, "attack_loss": found.attack_loss, "seconds": seconds}
            if file is not None:
                files.save_arrays(file, kept)
        results.append(kept)
    return Finished(
        np.stack([result["inputs"] for result in results]),
        np.stack([result["attack_loss"] for result in results]),
        float(sum(result["seconds"] for result in results)),
    )


def random_update(key: Key, observation: Observation) -> Observation:
    """The observation of one client with a random update, see `controls.random_update`."""
    lifted = observation._replace(update=jax.tree.map(lambda leaf: leaf[None], observation.update))
    noise = controls.random_update(key, lifted)
    return noise._replace(update=jax.tree.map(lambda leaf: leaf[0], noise.update))


def _name(fields: Mapping[str, Any]) -> str:
    """A hash of everything that determines the results."""
    content = {"format": _FORMAT, "versions": jobs.versions(), "fields": dict(fields)}
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:24]


def _load(file: Path) -> dict[str, np.ndarray] | None:
    """The stored result of one client; `None` if there is none, or the file is damaged."""
    try:
        arrays = files.load_arrays(file)
    except (FileNotFoundError, ValueError):
        return None
    return arrays if {"inputs", "attack_loss", "seconds"} <= arrays.keys() else None
