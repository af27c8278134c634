"""How long an audit of records or text takes, from the attack on one client of each setting.

TabLeak is measured with a few steps, beside its starts without steps; DAGER has no steps. The measured programs are
compiled, so a forecast takes about as long as the audit's compilations. What the audit's folder keeps takes no time.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from jaxinvert.attacks.optimization.tableak import tableak
from jaxinvert.audit.clientwise import job_of, part_of
from jaxinvert.audit.forecast import Part
from jaxinvert.audit.kept import Store
from jaxinvert.audit.results import Scenario
from jaxinvert.audit.tabular import clients_of as clients_with_records
from jaxinvert.audit.tabular import prior_of, rows_of_clients, starts_of
from jaxinvert.audit.text import clients_of as clients_with_text
from jaxinvert.data.tabular import load_table
from jaxinvert.jobs import records
from jaxinvert.jobs.records import RecordsConfig
from jaxinvert.jobs.text import TextConfig
from jaxinvert.types import Key, Observation, SolveFn

_MEASURED_STEPS = 20
_MEASURED_RUNS = 2
_ATTACKS = ("attack", "random update")


def forecast_table(settings: Sequence[Scenario[RecordsConfig]], *, folder: Path | None = None) -> Iterator[Part]:
    """Measures one part of an audit of records after the other; see `audit_table` for the arguments.

    Raises:
      ValueError: for an invalid scenario, or a table with too few records.
      ImportError: without scikit-learn.
    """
    first, store = next(iter(settings[0].attackers.values())), folder and Store(folder)
    table, shape = load_table(first.table), (first.targets, first.num_examples)
    own = rows_of_clients(first, table)[: shape[0] * shape[1]].reshape(shape)
    without_steps = None
    for setting in settings:
        for attacker, config in setting.attackers.items():
            begin = time.perf_counter()
            task = records.prepare_records(config, own, table=table)
            preparing = time.perf_counter() - begin
            clients = clients_with_records(config, task, table.dataset.labels[own])
            one = (clients.key, clients.observation(0))
            if without_steps is None:
                compiling, without_steps = _measured(starts_of(task, config), *one)
                missing = _missing(store, prior_of(config), ("prior only",))
                yield Part("prior only", (compiling if missing else 0.0) + missing * without_steps)
            steps = min(config.steps, _MEASURED_STEPS)
            few = jax.jit(tableak(task.problem, num_members=config.members, num_steps=steps))
            compiling, running = _measured(few, *one)
            each = running + (config.steps - steps) * max(0.0, running - without_steps) / max(1, steps)
            missing = _missing(store, clients.fields, _ATTACKS)
            total = preparing + (compiling if missing else 0.0) + missing * each
            yield Part(f"{setting.name}, {attacker}: attack and random update", total)


def forecast_text(settings: Sequence[Scenario[TextConfig]], *, folder: Path | None = None) -> Iterator[Part]:
    """Measures the attack of an audit of text; see `audit_text` for the arguments."""
    store = folder and Store(folder)
    for setting in settings:
        for attacker, config in setting.attackers.items():
            clients = clients_with_text(config)
            compiling, running = _measured(clients.solve, clients.key, clients.observation(0))
            missing = _missing(store, clients.fields, _ATTACKS)
            total = (compiling if missing else 0.0) + missing * running
            yield Part(f"{setting.name}, {attacker}: attack and random update", total)


def _measured(solve: SolveFn, key: Key, observation: Observation) -> tuple[float, float]:
    """Seconds of the compilation, and of one run."""
    times = []
    for _ in range(1 + _MEASURED_RUNS):
        begin = time.perf_counter()
        jax.block_until_ready(solve(key, observation))
        times.append(time.perf_counter() - begin)
    running = min(times[1:])
    return max(0.0, times[0] - running), running


def _missing(store: Store | None, fields: Mapping[str, Any], whats: Sequence[str]) -> int:
    """Number of attacks on single clients that are not kept."""
    parts = [part_of(what, client) for what in whats for client in range(fields["targets"])]
    return sum(store is None or not store.has(job_of(fields), part) for part in parts)
