"""Attacks on clients one after the other, for records and text; finished clients are kept in the audit's folder."""

import hashlib
import json
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxinvert import jobs
from jaxinvert.audit import controls
from jaxinvert.audit.discrete import DiscreteGround, DiscreteScores, score_discrete
from jaxinvert.audit.kept import Store
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


class Clients(NamedTuple):
    """The clients of one job and the attack on each of them.

    Attributes:
      config: the job.
      fields: all its fields, with `targets`, the number of clients; they name the stored results.
      key: PRNG key of the attack.
      solve: the attack on one client, compiled.
      observation: the observation of the client with this number.
      rows: reconstructions `[T, ...]` as rows of fields, `[T, B, F]`.
      labels: `[T, B]` labels that the attack used, if any.
      assumptions: what the attacker knows, in words.
    """

    config: Any
    fields: Mapping[str, Any]
    key: Key
    solve: SolveFn
    observation: Callable[[int], Observation]
    rows: Callable[[np.ndarray], np.ndarray]
    labels: np.ndarray | None
    assumptions: dict[str, Any]


def attack_and_score_clients(
    clients: Clients,
    guessed: Mapping[str, np.ndarray],
    ground: DiscreteGround,
    store: Store | None,
    on_progress: Show,
) -> tuple[Any, dict[str, Any], DiscreteScores, dict[str, DiscreteScores]]:
    """Runs the attack of a job and its controls, and returns an entry of `found` in `judged`.

    Args:
      clients: the clients and the attack.
      guessed: `[T, B, F]` by name, the controls that need no update.
      ground: truth and candidates.
      store: keeps the results.
      on_progress: called before every client.
    """

    def noise(client: int) -> Observation:
        stream = jobs.stream(clients.config.seed, jobs.Stream.NULL_UPDATES)
        return random_update(jax.random.fold_in(stream, client), clients.observation(client))

    options = (clients.fields, clients.key, clients.solve)
    reached = attack_clients("attack", *options, clients.observation, store, on_progress)
    on_noise = attack_clients("random update", *options, noise, store, on_progress)
    found = clients.rows(reached.inputs)
    shown = {**guessed, "random update": clients.rows(on_noise.inputs)}
    if clients.fields["targets"] > 1:
        shown["other client"] = controls.other_client(found)
    summary = {
        "assumptions": clients.assumptions,
        "attack_loss": reached.attack_loss,
        "choice": None,
        "config": dict(clients.fields),
        "versions": jobs.versions(),
        "device": jobs.device_name(),
        "seconds": reached.seconds,
    }
    scores = {name: score_discrete(one, clients.labels, ground) for name, one in shown.items()}
    return clients.config, summary, score_discrete(found, clients.labels, ground), scores


def attack_clients(
    what: str,
    fields: Mapping[str, Any],
    key: Key,
    solve: SolveFn,
    observations: Callable[[int], Observation],
    store: Store | None,
    on_progress: Show,
) -> Finished:
    """Attacks the clients one after the other, or loads the stored results.

    Args:
      what: name of the attack, shown to people and used in file names.
      fields: all fields of the job, with `targets`, the number of clients; they name the stored results.
      key: PRNG key of the attack.
      solve: the attack on one client, compiled.
      observations: the observation of the client with this number.
      store: keeps the results.
      on_progress: called before every client.
    """
    num_clients, job, results = fields["targets"], job_of(fields), []
    for client, own_key in enumerate(jax.random.split(key, num_clients)):
        part = part_of(what, client)
        kept = None if store is None else store.load(job, part, needed=("inputs", "attack_loss", "seconds"))
        if kept is None:
            on_progress(f"{what}, client {client + 1} of {num_clients}", None)
            begin = time.perf_counter()
            found = jax.device_get(solve(own_key, observations(client)))
            seconds = np.float64(time.perf_counter() - begin)
            kept = {"inputs": found.inputs, "attack_loss": found.attack_loss, "seconds": seconds}
            if store is not None:
                store.save(job, part, kept)
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


def part_of(what: str, client: int) -> str:
    """The name under which the result of an attack on a client is kept."""
    return f"{what} {client}"


def job_of(fields: Mapping[str, Any]) -> str:
    """A hash of everything that determines the results."""
    content = {"format": _FORMAT, "versions": jobs.versions(), "fields": dict(fields)}
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:24]
