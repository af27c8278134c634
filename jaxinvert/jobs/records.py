"""Jobs on tabular data: attacks clients' records by TabLeak and compares with guesses from the population.

`prepare_records` simulates the clients, `attack_records` reads only the observations, `measure_records` compares the
reconstructions with the truth.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxinvert import models
from jaxinvert.attacks import adaptive, objectives
from jaxinvert.attacks.optimization.tableak import tableak
from jaxinvert.attacks.problem import Problem
from jaxinvert.attacks.registry import entry_of
from jaxinvert.data.tabular import Table, load_table
from jaxinvert.defenses.registry import extended
from jaxinvert.jobs import checks, environment
from jaxinvert.jobs.assumptions import defense_in_words, knowledge, training_in_words
from jaxinvert.jobs.deployment import Deployment, secret_order
from jaxinvert.jobs.groups import ClientConfig, DefenseConfig
from jaxinvert.jobs.limits import MAX_DEPTH, MAX_EXAMPLES, MAX_SEED, MAX_STEPS, MAX_WIDTH, at_most, between
from jaxinvert.jobs.realism import Fact, as_dict, of_defense, of_examples, of_parameters, of_training, realism_of
from jaxinvert.jobs.streams import Stream, stream
from jaxinvert.jobs.yaml_fields import flatten
from jaxinvert.metrics import records
from jaxinvert.metrics.records import RecordQuality
from jaxinvert.observation import threat_models
from jaxinvert.observation.observe import observe_targets
from jaxinvert.observation.threat_models import MEANINGS
from jaxinvert.schema import decode
from jaxinvert.search import check_targets, num_targets, split_shared
from jaxinvert.types import Batch, Key, Observation, Reconstruction, SolveFn

_GRANTED = threat_models.LADDER["C"]._replace(labels=True, earlier_params=False, earlier_updates=False)


@dataclass(frozen=True)
class RecordsConfig:
    """The configuration of a job on tabular data.

    Attributes:
      table: data set of records, `diabetes` or `wine`; needs scikit-learn, `pip install 'jaxinvert[tabular]'`.
      widths: widths of the hidden layers of the clients' perceptron, which is untrained.
      num_examples: number of records in each client's batch, drawn without replacement.
      targets: number of clients to attack.
      members: number of searches from different starts, whose results are pooled.
      steps: number of optimizer steps of every search.
      seed: random seed; determines the network, the batches, the starts and everything else that is random.
      client: how one client trains.
      defense: the clients' defense.
      adaptive: whether the attacker knows the defense and adapts its simulation of the client and its objective.
    """

    table: str = "wine"
    widths: tuple[int, ...] = (100, 100)
    num_examples: int = 4
    targets: int = 4
    members: int = 30
    steps: int = 1500
    seed: int = 0
    client: ClientConfig = field(default_factory=ClientConfig)
    defense: DefenseConfig = field(default_factory=DefenseConfig)
    adaptive: bool = False

    def __post_init__(self) -> None:
        """Checks the fields and their combinations."""
        between(1, MAX_EXAMPLES, num_examples=self.num_examples, targets=self.targets, members=self.members)
        between(0, MAX_STEPS, steps=self.steps)
        between(0, MAX_SEED, seed=self.seed)
        at_most(MAX_DEPTH, number_of_widths=len(self.widths))
        for width in self.widths:
            between(1, MAX_WIDTH, width=width)
        self.client.check()
        self.defense.check()
        checks.check_batches(self.client, self.num_examples)
        checks.check_defense(self.defense, self.client, self.num_examples)
        if self.adaptive:
            checks.check_adaptive(self.defense, entry_of(tableak))

    @property
    def granted(self) -> threat_models.ThreatModel:
        """What the attacker is granted."""
        return _GRANTED


class RecordsTask(NamedTuple):
    """A prepared job with the truth, which is not passed to the attack.

    Attributes:
      table: the table from which the clients' records are drawn.
      problem: the problem that the attack was built for.
      solve: the attack on one client.
      observations: of all clients, leading axis `T`.
      population: all records, `[N, columns]`.
      truth: `[T, B, columns]`.
      chosen: `[T, B]` indices of the clients' records in the population.
    """

    table: Table
    problem: Problem
    solve: SolveFn
    observations: Observation
    population: np.ndarray
    truth: np.ndarray
    chosen: np.ndarray


def prepare_records(
    config: RecordsConfig, chosen: np.ndarray | None = None, *, table: Table | None = None
) -> RecordsTask:
    """Draws the batches, initializes the network and simulates the clients.

    Args:
      config: the configuration.
      chosen: `[T, B]` indices of the clients' records in the table; by default drawn for each client independently.
      table: the job's table, if it is loaded already.

    Raises:
      ValueError: for an unknown table, too many records, or updates that are not finite.
      ImportError: without scikit-learn.
    """
    table = load_table(config.table) if table is None else table
    dataset, schema = table.dataset, table.schema
    if config.num_examples >= len(dataset.images):
        raise ValueError(
            f"num_examples is {config.num_examples}, expected fewer than the {len(dataset.images)} of {config.table}"
        )
    if chosen is None:
        chosen = _drawn_rows(config, _generator(config), len(dataset.images))
    population = decode(schema, dataset.images)
    model = extended(
        config.defense.chain,
        models.create("mlp", features=config.widths, like=dataset),
    )
    parameters = config.defense.parameters
    deployment = Deployment(config.client, model, config.num_examples, config.defense.chain)
    batches = Batch(jnp.asarray(dataset.images[chosen]), jnp.asarray(dataset.labels[chosen]))
    model_key, _ = random_keys(config)
    observations = observe_targets(
        deployment.sent_update(parameters, secret_order(config.client, config.seed)),
        model.init(model_key),
        batches,
        threat_model=_GRANTED,
        defense_parameters=parameters,
        client_key=stream(config.seed, Stream.CLIENTS),
        local_training=config.client.local_training(config.num_examples),
    )
    check_targets(observations)
    problem = Problem(deployment.simulated_update(), model, config.num_examples, schema=schema)
    if config.adaptive:
        simulated, objective = adaptive.adapt(
            deployment.defenses, deployment.facts(), parameters, problem.client_update, objectives.cosine
        )
        problem = problem._replace(client_update=simulated, objective=objective)
    solve = tableak(problem, num_members=config.members, num_steps=config.steps)
    return RecordsTask(table, problem, solve, observations, population, population[chosen], chosen)


def guess_records(config: RecordsConfig, task: RecordsTask) -> dict[str, np.ndarray]:
    """Baselines without an update, by name, `[T, B, columns]`.

    "drawn" samples every column from its marginal distribution in the rest of the population, "typical" uses its mean
    or most frequent category.
    """
    rng, size = _generator(config), config.num_examples
    _drawn_rows(config, rng, len(task.population))  # the draws of the batches come first
    others = [np.delete(task.population, own, axis=0) for own in task.chosen]
    typical = [records.typical_record(task.table.schema, rest) for rest in others]
    return {
        "drawn": np.stack([records.drawn_records(rng, rest, size) for rest in others]),
        "typical": np.stack([np.tile(record, (size, 1)) for record in typical]),
    }


def _generator(config: RecordsConfig) -> np.random.Generator:
    return np.random.default_rng((config.seed, config.num_examples))


def _drawn_rows(config: RecordsConfig, rng: np.random.Generator, total: int) -> np.ndarray:
    """`[T, B]`: rows of the table, drawn for each client independently."""
    return np.stack([rng.choice(total, config.num_examples, replace=False) for _ in range(config.targets)])


def random_keys(config: RecordsConfig) -> tuple[Key, Key]:
    """The keys of the network and of the attack."""
    model_key, attack_key = jax.random.split(jax.random.key(config.seed))
    return model_key, attack_key


def attack_records(
    key: Key, solve: SolveFn, observations: Observation, *, on_progress: Callable[[int], None] = lambda done: None
) -> Reconstruction:
    """Attacks one client after the other; after an interrupt, returns the finished ones.

    Args:
      key: the attack's key.
      solve: the attack on one client; compiled here.
      observations: everything the attacker sees.
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
    """The quality of records `[T, B, columns]`, which may be of the first clients only."""
    tolerance = records.tolerances(task.table.schema, task.population)
    return [records.evaluate_records(*pair, tolerance) for pair in zip(found, task.truth)]


def match_inputs(task: RecordsTask, inputs: np.ndarray) -> list[RecordQuality]:
    """The quality of encoded records `[T, B, 1, 1, F]`."""
    return match_records(task, np.stack([decode(task.table.schema, batch) for batch in inputs]))


def best_members(found: Reconstruction) -> np.ndarray:
    """The records of each client's member with the lowest attack loss, `[T, B, 1, 1, F]`."""
    best = np.asarray(found.info["member_losses"]).argmin(axis=1)
    return np.asarray(found.info["members"])[np.arange(len(best)), best]


def measure_records(config: RecordsConfig, task: RecordsTask, found: Reconstruction) -> dict[str, Any]:
    """The summary of the attacked clients, with baselines: the content of the file that the command writes."""
    pooled, num_done = match_inputs(task, np.asarray(found.inputs)), len(found.inputs)
    by_attack = {"tableak": pooled, "its best member": match_inputs(task, best_members(found))}
    by_guess = {
        f"guess: {name}": match_records(task, guess[:num_done]) for name, guess in guess_records(config, task).items()
    }
    return {
        "config": flatten(config, of=RecordsConfig),
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
        "assumptions": assumptions(config),
        "versions": environment.versions(),
        "device": environment.device_name(),
    }


def assumptions(config: RecordsConfig) -> dict[str, Any]:
    """What the attacker knows and does not know, and how the clients train, in words."""
    known, unknown = knowledge(_GRANTED, defended=bool(config.defense.chain.names))
    sentences = [
        training_in_words(config.client, config.num_examples),
        defense_in_words(config.defense, adaptive_attacker=config.adaptive),
    ]
    return {
        "known": [*map(MEANINGS.get, known), "columns, categories, bounds, means and deviations of the table"],
        "unknown": ["the records", *map(MEANINGS.get, unknown)],
        "client": "; ".join(sentences),
        "realism": as_dict(
            realism_of(
                of_examples(config.num_examples),
                of_training(config.client, config.num_examples),
                of_parameters(),
                Fact("labels", "granted", "attacker"),
                of_defense(config.defense, adaptive=config.adaptive),
            )
        ),
    }
