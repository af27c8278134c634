"""Jobs on clients with tables: what TabLeak reads of their records, beside what guesses from the population get.

`prepare_records` simulates the clients, `attack_records` sees the observations alone, `measure_records` compares.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxinvert import models
from jaxinvert.attacks import adaptive, objectives
from jaxinvert.attacks.optimization.tableak import tableak
from jaxinvert.data.tabular import Table, load_table
from jaxinvert.defenses import registry as defenses
from jaxinvert.jobs import deployment, environment
from jaxinvert.jobs.assumptions import assumptions
from jaxinvert.jobs.config import JobConfig
from jaxinvert.metrics import records
from jaxinvert.metrics.records import RecordQuality
from jaxinvert.observation.observe import observe_targets
from jaxinvert.schema import decode
from jaxinvert.search import check_targets, num_targets, split_shared
from jaxinvert.types import Batch, ClientUpdateFn, Key, Objective, Observation, Reconstruction, SolveFn


@dataclass(frozen=True)
class RecordsConfig:
    """Which clients with tables there are, and how their records are searched for.

    Attributes:
      table: `diabetes` or `wine`; needs scikit-learn, `pip install 'jaxinvert[tabular]'`.
      widths: of the hidden layers of the clients' perceptron, which is untrained.
      num_examples: records in each client's batch, drawn without replacement.
      targets: clients to attack.
      members: searches from different starts, whose results are pooled.
      steps: of every search.
      seed: determines the network, the batches, the starts and all else that is random.
      client: "fedsgd" sends one gradient, "fedavg" what local training by plain gradient descent changed.
      local_lr: learning rate of a fedavg client.
      local_epochs: passes of a fedavg client over its records.
      local_batch_size: records per local step of a fedavg client; by default all.
      defense: what the clients do to their updates, see `jaxinvert list`; several in their order, joined by "+".
      defense_settings: its numbers, such as `keep 0.1`.
      adaptive: whether the attacker knows of the defense, and adapts what it simulates and how it compares.
    """

    table: str = "wine"
    widths: tuple[int, ...] = (100, 100)
    num_examples: int = 4
    targets: int = 4
    members: int = 30
    steps: int = 1500
    seed: int = 0
    client: Literal["fedsgd", "fedavg"] = "fedsgd"
    local_lr: float = 0.01
    local_epochs: int = 1
    local_batch_size: int | None = None
    defense: str = defenses.NONE
    defense_settings: dict[str, float] = field(default_factory=dict)
    adaptive: bool = False

    def __post_init__(self) -> None:
        """Refuses what no such job can mean."""
        if self.members < 1:
            raise ValueError(f"members is {self.members}, expected at least 1")
        _ = self.clients

    @property
    def clients(self) -> JobConfig:
        """The job on images whose clients train, and defend themselves, in the same way."""
        shared = {item.name for item in fields(JobConfig)} & {item.name for item in fields(RecordsConfig)}
        return JobConfig(model="mlp", **{name: getattr(self, name) for name in shared})


class RecordsTask(NamedTuple):
    """A prepared job, and the truth, which no attack is handed.

    Attributes:
      table: whose records the clients hold.
      client_update: the attacker's simulation of a client.
      solve: the attack on one client.
      observations: of all clients, leading axis `T`.
      population: `[N, columns]`, all records.
      truth: `[T, B, columns]`.
      guesses: by name, `[T, B, columns]`: what one gets who sees no update. "drawn" takes every column from its
        marginal distribution in the rest of the population, "typical" its mean or most frequent category.
    """

    table: Table
    client_update: ClientUpdateFn
    solve: SolveFn
    observations: Observation
    population: np.ndarray
    truth: np.ndarray
    guesses: dict[str, np.ndarray]


def prepare_records(config: RecordsConfig) -> RecordsTask:
    """Draws the batches and the network, and runs the clients.

    Raises:
      ValueError: for an unknown table, too many records, or updates that are not finite.
      ImportError: without scikit-learn.
    """
    table, clients = load_table(config.table), config.clients
    dataset, schema = table.dataset, table.schema
    if config.num_examples >= len(dataset.images):
        raise ValueError(
            f"num_examples is {config.num_examples}, expected fewer than the {len(dataset.images)} of {config.table}"
        )
    rng = np.random.default_rng((config.seed, config.num_examples))
    chosen = np.stack(
        [rng.choice(len(dataset.images), config.num_examples, replace=False) for _ in range(config.targets)]
    )
    population = decode(schema, dataset.images)
    others = [np.delete(population, own, axis=0) for own in chosen]
    typical = [records.typical_record(schema, rest) for rest in others]
    guesses = {
        "drawn": np.stack([records.drawn_records(rng, rest, config.num_examples) for rest in others]),
        "typical": np.stack([np.tile(record, (config.num_examples, 1)) for record in typical]),
    }
    model = defenses.extended(
        config.defense,
        models.create(
            "mlp",
            features=config.widths,
            input_shape=dataset.images.shape[1:],
            num_classes=dataset.num_classes,
            mean=dataset.mean,
            std=dataset.std,
        ),
    )
    numbers = clients.defense_numbers()
    batches = Batch(jnp.asarray(dataset.images[chosen]), jnp.asarray(dataset.labels[chosen]))
    model_key, _ = random_keys(config)
    observations = observe_targets(
        deployment.sent_update(clients, model, numbers),
        model.init(model_key),
        batches,
        threat_model=clients.granted,
        defense_parameters=numbers,
        client_key=jax.random.fold_in(jax.random.key(config.seed), 4),
        local_training=clients.local_training,
    )
    check_targets(observations)
    client_update: Callable = deployment.client_update(clients, model)
    objective: Objective = objectives.cosine
    if config.adaptive:
        setting = deployment.defense_setting(clients, model)
        client_update, objective = adaptive.adapt(config.defense, setting, numbers, client_update, objective)
    solve = tableak(
        client_update,
        schema=schema,
        batch_size=config.num_examples,
        mean=dataset.mean,
        std=dataset.std,
        num_members=config.members,
        num_steps=config.steps,
        objective=objective,
    )
    return RecordsTask(table, client_update, solve, observations, population, population[chosen], guesses)


def random_keys(config: RecordsConfig) -> tuple[Key, Key]:
    """Of the network, and of the attack."""
    model_key, attack_key = jax.random.split(jax.random.key(config.seed))
    return model_key, attack_key


def attack_records(
    key: Key, solve: SolveFn, observations: Observation, *, on_progress: Callable[[int], None] = lambda done: None
) -> Reconstruction:
    """Attacks one client after the other; an interrupt keeps those that are finished.

    Args:
      key: of the attack.
      solve: on one client; compiled here.
      observations: all that the attacker sees.
      on_progress: called with the number of finished clients.
    """
    compiled, found = jax.jit(solve), []
    shared, per_target = split_shared(observations)
    try:
        for target, own_key in enumerate(jax.random.split(key, num_targets(observations))):
            own = jax.tree.map(lambda leaf, target=target: leaf[target], per_target)
            found.append(jax.device_get(compiled(own_key, own._replace(**shared))))
            on_progress(len(found))
    except KeyboardInterrupt:
        if not found:
            raise
    return jax.tree.map(lambda *leaves: np.stack(leaves), *found)


def match_records(task: RecordsTask, found: np.ndarray) -> list[RecordQuality]:
    """The quality of the first clients' records `[T, B, columns]`."""
    tolerance = records.tolerances(task.table.schema, task.population)
    return [records.evaluate_records(*pair, tolerance) for pair in zip(found, task.truth)]


def match_inputs(task: RecordsTask, inputs: np.ndarray) -> list[RecordQuality]:
    """The quality of encoded records `[T, B, 1, 1, F]`."""
    return match_records(task, np.stack([decode(task.table.schema, batch) for batch in inputs]))


def best_members(found: Reconstruction) -> np.ndarray:
    """`[T, B, 1, 1, F]`: of each client the member with the lowest attack loss."""
    best = np.asarray(found.info["member_losses"]).argmin(axis=1)
    return np.asarray(found.info["members"])[np.arange(len(best)), best]


def measure_records(config: RecordsConfig, task: RecordsTask, found: Reconstruction) -> dict[str, Any]:
    """What came out, of the clients that were attacked, beside guesses: all that is written to a file."""
    pooled, num_done = match_inputs(task, np.asarray(found.inputs)), len(found.inputs)
    by_attack = {"tableak": pooled, "its best member": match_inputs(task, best_members(found))}
    by_guess = {f"guess: {name}": match_records(task, guess[:num_done]) for name, guess in task.guesses.items()}
    known = assumptions(config.clients)
    return {
        "config": {item.name: getattr(config, item.name) for item in fields(RecordsConfig)},
        "rates": {
            name: records.rates(task.table.schema, matched) for name, matched in {**by_attack, **by_guess}.items()
        },
        "targets": [
            {
                "attack_loss": float(found.attack_loss[number]),
                "failed": not np.isfinite(found.attack_loss[number]),
                "records_right": int(quality.correct.all(axis=1).sum()),
                "found": decode(task.table.schema, found.inputs[number])[quality.permutation],
                "truth": task.truth[number],
            }
            for number, quality in enumerate(pooled)
        ],
        "columns": [column.name for column in task.table.schema],
        "interrupted": num_done < config.targets,
        "assumptions": {
            "known": [*known["known"], "the table's columns, categories, bounds, means and deviations"],
            "unknown": ["the records"],
            "client": known["client"],
        },
        "versions": environment.versions(),
        "device": environment.device_name(),
    }
