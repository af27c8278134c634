"""The clients of a job as functions: how they train, what they defend, and what an attacker simulates instead."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxinvert import data, models
from jaxinvert.clients import (
    AnyClientUpdateFn,
    AnyLossFn,
    fedavg,
    fedsgd,
    local_batch_statistics,
    running_statistics,
    securely_aggregated,
)
from jaxinvert.defenses import registry as defenses
from jaxinvert.defenses.registry import extended
from jaxinvert.jobs.config import JobConfig
from jaxinvert.types import ArrayTree, Batch, ClientUpdateFn, Key, Params, Update


def defense_setting(config: JobConfig, model: models.Model, *, order_key: Key | None = None) -> defenses.Setting:
    """What the clients' defense, and the attacker who adapts to it, are built for."""
    train = partial(_train, config, order_key=order_key)
    return defenses.Setting(model, config.num_examples, config.gradient_chunk, train)


def sent_update(
    config: JobConfig, model: models.Model, numbers: defenses.Numbers, *, order_key: Key | None = None
) -> AnyClientUpdateFn:
    """What the server sees, `(params, batch, key) -> update`: every client defends its own, then they are summed.

    Args:
      config: the job.
      model: the network, with what the defense adds to it.
      numbers: of the defense.
      order_key: of the local order, if that is a secret.
    """
    setting = defense_setting(config, model, order_key=order_key)
    plain = setting.train(models.training_loss(model))
    one_client = defenses.defended(config.defense, setting, numbers, plain)
    return one_client if config.aggregate == 1 else securely_aggregated(one_client, num_clients=config.aggregate)


def client_update(config: JobConfig, model: models.Model) -> ClientUpdateFn:
    """What an attacker who ignores defenses simulates, the order of the examples as they stand in the batch."""
    one_client = _train(config, models.training_loss(model))
    return one_client if config.aggregate == 1 else securely_aggregated(one_client, num_clients=config.aggregate)


def _train(
    config: JobConfig,
    loss_fn: AnyLossFn,
    *,
    order_key: Key | None = None,
    dropout_key: Key | None = None,
    change: optax.GradientTransformation | None = None,
) -> ClientUpdateFn:
    """How one client trains; `change` is what it does to every local gradient before its optimizer."""
    options: dict[str, Any] = {"dropout_key": dropout_key, "chunk_size": config.gradient_chunk}
    if config.client == "fedsgd":
        return fedsgd(loss_fn, change=change, **options)
    training = _local_training(config)
    if change is not None:
        training["optimizer"] = optax.chain(change, training["optimizer"])
    return fedavg(loss_fn, order_key=order_key, **options, **training)


def secret_order(config: JobConfig) -> Key | None:
    """What the clients draw the order of their examples from, if it is a secret."""
    return jax.random.fold_in(jax.random.key(config.seed), 3) if config.local_order == "unknown" else None


def sent_statistics(
    config: JobConfig, model: models.Model, *, order_key: Key | None = None
) -> Callable[[Params, Batch], ArrayTree]:
    """The running statistics that clients in train mode send beside their updates."""
    measure = local_batch_statistics(
        models.training_loss(model),
        model.batch_statistics,
        order_key=order_key,
        **_local_training(config),
    )

    def sent(params: Params, batch: Batch) -> ArrayTree:
        return running_statistics.advance(
            params["batch_stats"], measure(params, batch), momentum=models.BATCH_NORM_MOMENTUM
        )

    return sent if config.aggregate == 1 else securely_aggregated(sent, num_clients=config.aggregate)


def _local_training(config: JobConfig) -> dict[str, Any]:
    """The local training; of FedSGD clients, one step over all examples."""
    make = {
        "sgd": optax.sgd,
        "momentum": partial(optax.sgd, momentum=0.9),
        # The attacker differentiates through the square root, which eps_root keeps from zero.
        "adam": partial(optax.adam, eps_root=1e-12),
    }[config.local_optimizer]
    optimizer = make(config.local_lr)
    if config.local_weight_decay:
        decay = optax.add_decayed_weights(-config.local_lr * config.local_weight_decay)
        optimizer = optax.chain(optimizer, decay)
    return {
        "optimizer": optimizer,
        "batch_size": config.num_examples_per_step,
        "num_epochs": config.local_epochs if config.client == "fedavg" else 1,
    }


def earlier_rounds(
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


def surrogate_images(config: JobConfig) -> jax.Array:
    """The attacker's public images: the beginning of the split "train" of the victims' data set."""
    if "train" in config.split or config.split == "all":
        raise ValueError(f"split {config.split!r} may hold the surrogate images, which come from 'train'")
    try:
        return jnp.asarray(data.load(config.data, split="train", size=config.size).images[:_MAX_SURROGATES])
    except ValueError as error:
        raise ValueError(f"threat model {config.threat_model} grants surrogate images: {error}") from error


def network(config: JobConfig, dataset: data.Dataset) -> tuple[models.Model, Params | None]:
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
