"""Before the attack: the victims' images, the network, and what the server sees of the clients."""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxinvert import data, metrics, models, threat_models
from jaxinvert.clients import AnyClientUpdateFn
from jaxinvert.defenses.registry import extended
from jaxinvert.job.config import JobConfig
from jaxinvert.job.program import Program
from jaxinvert.job.simulation import secret_order
from jaxinvert.observe import check_batch, observe_targets
from jaxinvert.search import check_targets
from jaxinvert.types import Batch, Key, Observation, Params, Update


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
    model, trained = _network(config, dataset)
    surrogate = _surrogate(config) if "surrogate" in (*config.needs, *config.rule_needs) else None
    return Setup(dataset, Program(config, model), trained, surrogate)


def adjusted(setup: Setup, config: JobConfig) -> Setup:
    """The setup for a job on the same data that differs in defense and attack, which may change the network."""
    model, trained = _network(config, setup.dataset)
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
    earlier_params, earlier_updates, params = _earlier_rounds(config, client, params, truth, earlier_keys)
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


def _earlier_rounds(
    config: JobConfig,
    client: AnyClientUpdateFn,
    params: Params,
    batches: Batch,
    keys: Sequence[Key],
) -> tuple[Params | None, Update | None, Params]:
    """Parameters `[N, ...]` and updates `[T, N, ...]` of all rounds but the last, whose parameters follow.

    `keys` are those of the clients' defense, one for each of these rounds.
    """
    if not keys:
        return None, None, params
    sent, received = [], []
    for key in keys:
        own_keys = jax.random.split(key, config.targets)
        updates = jax.vmap(client, in_axes=(None, 0, 0))(params, batches, own_keys)
        sent.append(params)
        received.append(updates)
        params = jax.tree.map(lambda p, u: p - config.server_rate * u.mean(axis=0), params, updates)
    earlier_params = jax.tree.map(lambda *leaves: jnp.stack(leaves), *sent)
    earlier_updates = jax.tree.map(lambda *leaves: jnp.stack(leaves, axis=1), *received)
    return earlier_params, earlier_updates, params


_MAX_SURROGATES = 2048


def _surrogate(config: JobConfig) -> jax.Array:
    """The attacker's public images: the beginning of the split "train" of the victims' data set."""
    if "train" in config.split or config.split == "all":
        raise ValueError(f"split {config.split!r} may hold the surrogate images, which come from 'train'")
    try:
        return jnp.asarray(data.load(config.data, split="train", size=config.size).images[:_MAX_SURROGATES])
    except ValueError as error:
        raise ValueError(f"threat model {config.threat_model} grants surrogate images: {error}") from error


def _network(config: JobConfig, dataset: data.Dataset) -> tuple[models.Model, Params | None]:
    """The clients' network, with trained parameters and their normalization if there is a checkpoint."""
    facts = {} if config.checkpoint is None else models.read_facts(config.checkpoint)
    if (trained := facts.get("model", config.model)) != config.model:
        raise ValueError(f"{config.checkpoint} holds a {trained}, not a {config.model}: name it as the model")
    if not config.normalized and "mean" in facts:
        raise ValueError(f"normalized is False, but {config.checkpoint} was trained on normalized images")
    architecture: dict[str, Any] = {} if config.batch_norm == "eval" else {"batch_norm": config.batch_norm}
    model = models.create(
        config.model,
        input_shape=dataset.images.shape[1:],
        num_classes=facts.get("num_classes", dataset.num_classes),
        mean=facts.get("mean", dataset.mean if config.normalized else None),
        std=facts.get("std", dataset.std if config.normalized else None),
        **architecture,
    )
    if config.batch_norm == "eval" and models.is_external(config.model):
        models.check_eval_mode(model)
    model = extended(config.defense, model)
    if config.checkpoint is None:
        return model, None
    return model, models.load_checkpoint(config.checkpoint, jax.eval_shape(model.init, jax.random.key(0)))
