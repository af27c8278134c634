"""The audit of clients with tabular data: TabLeak and its null controls.

The controls are those of `discrete.guesses`, and:

| control       | the "reconstruction" of a client's records                                          |
|---------------|--------------------------------------------------------------------------------------|
| prior only    | TabLeak's pooled starts, without steps and without access to the update             |
| random update | the same attack on normal noise with the norm of each tensor of the update          |
| other client  | the same attack on the next client's update                                         |
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxinvert import jobs
from jaxinvert.attacks.optimization.tableak import tableak
from jaxinvert.audit import controls
from jaxinvert.audit.clientwise import Clients, attack_and_score_clients, attack_clients
from jaxinvert.audit.discrete import DiscreteGround, DiscreteScores, Field, discrete_ground, guesses
from jaxinvert.audit.kept import Store
from jaxinvert.audit.measures import RECORDS
from jaxinvert.audit.plan import scenarios
from jaxinvert.audit.results import Audited, Scenario
from jaxinvert.audit.running import Show
from jaxinvert.audit.weighing import judged
from jaxinvert.data.tabular import Table, load_table
from jaxinvert.defenses.registry import NONE
from jaxinvert.jobs import records
from jaxinvert.jobs.groups import DefenseConfig
from jaxinvert.jobs.records import RecordsConfig, RecordsTask
from jaxinvert.metrics.records import tolerances
from jaxinvert.schema import Column, decode
from jaxinvert.search import split_shared
from jaxinvert.types import Observation, SolveFn


def table_settings(config: RecordsConfig, defenses: Sequence[str] = (NONE,)) -> list[Scenario[RecordsConfig]]:
    """One scenario for each defense, with a naive attacker and, where one exists, an adaptive attacker.

    Args:
      config: the clients and the attack, without a defense.
      defenses: written as in `plan`.

    Raises:
      ValueError: for an invalid defense, one that is named twice, or an empty list.
    """
    return scenarios(
        defenses,
        lambda name, numbers: replace(config, defense=DefenseConfig(name, numbers)),
        lambda naive: replace(naive, adaptive=True),
        plain=config.defense.name == NONE and not config.adaptive,
    )


def audit_table(
    settings: Sequence[Scenario[RecordsConfig]],
    *,
    num_candidates: int = 100,
    folder: Path | None = None,
    on_progress: Show = lambda what, progress: None,
) -> list[Audited[RecordsConfig, DiscreteScores, DiscreteGround]]:
    """Runs all attackers and null controls of every scenario, and judges the evidence.

    No two clients share a row of the table.

    Args:
      settings: the scenarios, see `table_settings`; they share everything except defense and attacker.
      num_candidates: number of records, private ones and others of the table, to match reconstructions with.
      folder: stores the reconstructions, so that the same audit resumes after an interrupt.
      on_progress: called repeatedly with the current step.

    Raises:
      ValueError: for an invalid scenario, or a table with too few records.
      ImportError: without scikit-learn.
    """
    on_progress("preparing", None)
    first = next(iter(settings[0].attackers.values()))
    table = load_table(first.table)
    order = rows_of_clients(first, table)
    shape = (first.targets, first.num_examples)
    own = order[: shape[0] * shape[1]].reshape(shape)
    rows = decode(table.schema, table.dataset.images)
    among = order[: max(num_candidates, own.size)]
    ground = discrete_ground(
        rows[among],
        table.dataset.labels[among],
        shape=shape,
        fields=fields_of(table),
        measure=RECORDS,
        rng=np.random.default_rng((first.seed, *shape)),
    )
    guessed = guesses(
        ground, rows, own, np.random.default_rng((first.seed, 1)), row_labels=np.asarray(table.dataset.labels)
    )
    audited, store = [], folder and Store(folder)
    for setting in settings:
        found = {}
        for attacker, config in setting.attackers.items():

            def show(what: str, _: Any) -> None:
                on_progress(f"{setting.name}, {attacker}: {what}", None)  # noqa: B023  only called in this iteration

            show("preparing", None)
            task = records.prepare_records(config, own, table=table)
            clients = clients_of(config, task, ground.true_labels)
            if "prior only" not in guessed:
                guessed["prior only"] = _of_prior(clients, task, store, show)
            found[attacker] = attack_and_score_clients(clients, guessed, ground, store, show)
        audited.append(judged(setting.name, ground, found)._replace(note=setting.note))
    return audited


def rows_of_clients(config: RecordsConfig, table: Table) -> np.ndarray:
    """`[N]`: random order of the table's rows; the first `T x B` are the clients', in order.

    Raises:
      ValueError: if the clients' records leave no other record.
    """
    needed, total = config.targets * config.num_examples, len(table.dataset.images)
    if needed >= total:
        raise ValueError(
            f"{config.targets} clients of {config.num_examples} records need {needed} different records, and others "
            f"to compare with, but {config.table} has {total}"
        )
    return np.random.default_rng(config.seed).permutation(total)


def fields_of(table: Table) -> tuple[Field, ...]:
    """The fields of a record, with tolerances and scales from the whole table."""
    rows = decode(table.schema, table.dataset.images)
    within = tolerances(table.schema, rows)
    return tuple(
        Field(column.name, float(tolerance), _scale(column, values), column.categories)
        for column, tolerance, values in zip(table.schema, within, rows.T)
    )


def _scale(column: Column, values: np.ndarray) -> float:
    return 0.0 if column.categories else float(values.std())


def clients_of(config: RecordsConfig, task: RecordsTask, labels: np.ndarray) -> Clients:
    """The clients of a job and TabLeak, which is granted their labels `[T, B]`: results are in their order."""
    shared, per_target = split_shared(task.observations)

    def observation(client: int) -> Observation:
        return jax.tree.map(lambda leaf: leaf[client], per_target)._replace(**shared)

    def rows(inputs: np.ndarray) -> np.ndarray:
        return np.stack([decode(task.table.schema, batch) for batch in inputs])

    fields, (_, key) = jobs.flatten(config, of=RecordsConfig), records.random_keys(config)
    solve, assumptions = jax.jit(task.solve), records.assumptions(config)
    return Clients(config, fields, key, solve, observation, rows, labels, assumptions)


def _of_prior(clients: Clients, task: RecordsTask, store: Store | None, on_progress: Show) -> np.ndarray:
    """`[T, B, F]`: records of the attack's starts alone, which are the same for all defenses and attackers."""
    fields, starts = prior_of(clients.config), starts_of(task, clients.config)
    found = attack_clients("prior only", fields, clients.key, starts, clients.observation, store, on_progress)
    return clients.rows(found.inputs)


def starts_of(task: RecordsTask, config: RecordsConfig) -> SolveFn:
    """TabLeak without steps, which reads nothing of the update."""
    blind = controls.blind(task.problem)._replace(objective=None)
    return jax.jit(tableak(blind, num_members=config.members, num_steps=0))


def prior_of(config: RecordsConfig) -> dict[str, Any]:
    """The fields that name the control "prior only", which is the same for all defenses and attackers."""
    return jobs.flatten(replace(config, defense=DefenseConfig(), adaptive=False), of=RecordsConfig)
