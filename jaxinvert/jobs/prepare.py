"""Prepares a job for its attack: loads the private images, builds the network and simulates the clients."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxinvert import data, models
from jaxinvert.jobs.attacker import Program
from jaxinvert.jobs.config import JobConfig
from jaxinvert.jobs.deployment import (
    Clients,
    deployment_of,
    earlier_rounds,
    network,
    secret_order,
    surrogate_images,
)
from jaxinvert.jobs.limits import check_parameters
from jaxinvert.jobs.streams import Stream, stream
from jaxinvert.observation import threat_models
from jaxinvert.observation.observe import check_batch, observe_targets
from jaxinvert.search import check_targets
from jaxinvert.types import Batch, Observation, Params


class Setup(NamedTuple):
    """Data and compiled functions shared by jobs with one `compiled_form`, which differ only in numeric fields.

    Attributes:
      dataset: the private images.
      clients: the clients' network and compiled functions.
      program: the attack's compiled functions.
      trained: the checkpoint's parameters; without one, every job draws its own.
      surrogate: `[N, H, W, C]` the attacker's public images, if the attack or the label rule reads them.
    """

    dataset: data.Dataset
    clients: Clients
    program: Program
    trained: Params | None
    surrogate: jax.Array | None


class Task(NamedTuple):
    """A prepared job: compiled functions, observations, and the truth, which is not passed to attacks.

    Attributes:
      program: the attack's compiled functions.
      observations: one per client, leading axis `T`.
      truth: the private batches, `inputs [T, B, H, W, C]`, `labels [T, B]`.
      class_names: names of the classes, by label.
      captured: whether the updates are captured ones, not those of simulated clients.
    """

    program: Program
    observations: Observation
    truth: Batch
    class_names: tuple[str, ...]
    captured: bool = False

    @property
    def model(self) -> models.Model:
        """The clients' network."""
        return self.program.model


def set_up(config: JobConfig) -> Setup:
    """Loads the private images and builds the network.

    Raises:
      ValueError: for unknown names, too few examples, or examples that do not fit the model.
    """
    threat_models.check_needs(config.granted, config.needs, attack=config.attacker.attack)
    threat_models.check_needs(config.granted, config.rule_needs, attack=f"label rule {config.chosen_label_rule}")
    dataset = data.load(config.data.name, split=config.data.split, size=config.data.size)
    victims, wanted = config.data, config.data.targets * config.num_private
    if len(dataset.images) < wanted:
        raise ValueError(
            f"{victims.targets} targets of {config.num_private} examples need {wanted} images, but {victims.name!r} "
            f"split {victims.split!r} has {len(dataset.images)}"
        )
    surrogate = surrogate_images(config) if "surrogate" in (*config.needs, *config.rule_needs) else None
    return _with_network(config, dataset, surrogate)


def adjusted(setup: Setup, config: JobConfig) -> Setup:
    """The setup of a job with the same data and another defense or attack; the defense may change the network."""
    return _with_network(config, setup.dataset, setup.surrogate)


def _with_network(config: JobConfig, dataset: data.Dataset, surrogate: jax.Array | None) -> Setup:
    model, trained = network(config.model, config.defense.chain, dataset)
    return Setup(dataset, Clients(deployment_of(config, model)), Program(config, model), trained, surrogate)


def prepare(config: JobConfig, setup: Setup | None = None) -> Task:
    """Initializes the parameters and simulates the clients.

    Args:
      config: the job.
      setup: the setup of a job with the same `compiled_form`; by default a new one.

    Raises:
      ValueError: see `set_up`; also for updates that are not finite.
    """
    dataset, clients, program, trained, surrogate = setup or set_up(config)
    model, wanted = program.model, config.data.targets * config.num_private
    check_parameters(jax.eval_shape(clients.init, jax.random.key(0)), model=model.name)
    params = trained or clients.init(stream(config.seed, Stream.PARAMETERS))
    flat = Batch(jnp.asarray(dataset.images[:wanted]), jnp.asarray(dataset.labels[:wanted]))
    check_batch(flat, input_shape=model.input_shape, num_classes=models.num_labels(model), task=model.task)
    truth = jax.tree.map(lambda leaf: leaf.reshape(config.data.targets, config.num_private, *leaf.shape[1:]), flat)
    parameters, order_key = config.defense.parameters, secret_order(config.client, config.seed)
    client = partial(clients.send, order_key, parameters)
    key, *earlier_keys = jax.random.split(stream(config.seed, Stream.CLIENTS), config.observation.rounds)
    earlier_params, earlier_updates, params = earlier_rounds(
        client, params, truth, earlier_keys, server_rate=config.server_rate
    )
    observations = observe_targets(
        client,
        params,
        truth,
        threat_model=config.granted,
        defense_parameters=parameters,
        client_key=key,
        local_training=config.local_training,
        running_statistics=partial(clients.send_statistics, order_key) if config.granted.batch_stats else None,
        statistics_key=key if clients.deployment.draws else None,
        surrogate=surrogate,
        earlier_params=earlier_params,
        earlier_updates=earlier_updates,
    )
    check_targets(observations)
    return Task(program, observations, truth, dataset.class_names)
