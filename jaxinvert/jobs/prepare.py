"""Before the attack: the victims' images, the network, and what the server sees of the clients."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxinvert import data, metrics, models
from jaxinvert.jobs.attacker import Program
from jaxinvert.jobs.config import JobConfig
from jaxinvert.jobs.deployment import earlier_rounds, network, secret_order, surrogate_images
from jaxinvert.observation import threat_models
from jaxinvert.observation.observe import check_batch, observe_targets
from jaxinvert.search import check_targets
from jaxinvert.types import Batch, Observation, Params


class Setup(NamedTuple):
    """What jobs share that differ only in numbers (`compiled_form`).

    Attributes:
      dataset: the victims' images.
      program: network and compiled functions.
      trained: the checkpoint's parameters; without one every job draws its own.
      surrogate: `[N, H, W, C]` the attacker's public images, if the attack or the label rule reads any.
    """

    dataset: data.Dataset
    program: Program
    trained: Params | None
    surrogate: jax.Array | None


class Task(NamedTuple):
    """A prepared job: what is compiled, what the server sees, and the truth, which no attack is handed.

    Attributes:
      program: the clients' network and what is compiled for it.
      observations: one per client, leading axis `T`.
      truth: the private batches, `inputs [T, B, H, W, C]`, `labels [T, B]`.
      class_names: of the labels.
    """

    program: Program
    observations: Observation
    truth: Batch
    class_names: tuple[str, ...]

    @property
    def model(self) -> models.Model:
        """The clients' network."""
        return self.program.model


def set_up(config: JobConfig) -> Setup:
    """Loads the victims and chooses the network.

    Raises:
      ValueError: for unknown names, too few examples, or examples that do not fit the model.
    """
    threat_models.check_needs(config.granted, config.needs, attack=config.attack)
    threat_models.check_needs(config.granted, config.rule_needs, attack=f"label rule {config.chosen_label_rule}")
    dataset = data.load(config.data, split=config.split, size=config.size)
    if min(dataset.images.shape[1:3]) < metrics.SSIM_WINDOW:
        height, width = dataset.images.shape[1:3]
        raise ValueError(
            f"images of {height}x{width} pixels cannot be measured: SSIM needs at least {metrics.SSIM_WINDOW}"
        )
    wanted = config.targets * config.num_private
    if len(dataset.images) < wanted:
        raise ValueError(
            f"{config.targets} targets of {config.num_private} examples need {wanted} images, but {config.data!r} "
            f"split {config.split!r} has {len(dataset.images)}"
        )
    model, trained = network(config, dataset)
    surrogate = surrogate_images(config) if "surrogate" in (*config.needs, *config.rule_needs) else None
    return Setup(dataset, Program(config, model), trained, surrogate)


def adjusted(setup: Setup, config: JobConfig) -> Setup:
    """The setup for a job on the same data that differs in defense and attack, which may change the network."""
    model, trained = network(config, setup.dataset)
    return setup._replace(program=Program(config, model), trained=trained)


def prepare(config: JobConfig, setup: Setup | None = None) -> Task:
    """Draws the parameters and runs the clients.

    Args:
      config: the job.
      setup: of a job with the same `compiled_form`; by default its own.

    Raises:
      ValueError: as `set_up`, or for updates that are not finite.
    """
    dataset, program, trained, surrogate = setup or set_up(config)
    model, wanted = program.model, config.targets * config.num_private
    params = trained or program.init(jax.random.fold_in(jax.random.key(config.seed), 0))
    flat = Batch(jnp.asarray(dataset.images[:wanted]), jnp.asarray(dataset.labels[:wanted]))
    check_batch(flat, input_shape=model.input_shape, num_classes=model.num_classes)
    truth = jax.tree.map(lambda leaf: leaf.reshape(config.targets, config.num_private, *leaf.shape[1:]), flat)
    numbers = config.defense_numbers()
    client = partial(program.send, secret_order(config), numbers)
    key, *earlier_keys = jax.random.split(jax.random.fold_in(jax.random.key(config.seed), 4), config.rounds)
    earlier_params, earlier_updates, params = earlier_rounds(config, client, params, truth, earlier_keys)
    observations = observe_targets(
        client,
        params,
        truth,
        threat_model=config.granted,
        defense_parameters=numbers,
        client_key=key,
        local_training=config.local_training,
        running_statistics=partial(program.sent_statistics, secret_order(config))
        if config.granted.batch_stats
        else None,
        surrogate=surrogate,
        earlier_params=earlier_params,
        earlier_updates=earlier_updates,
    )
    check_targets(observations)
    return Task(program, observations, truth, dataset.class_names)
