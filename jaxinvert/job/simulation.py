"""The clients of a job as functions: how they train, what they defend, and what an attacker simulates instead."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import optax

from jaxinvert import models, running_statistics
from jaxinvert.clients import (
    AnyClientUpdateFn,
    AnyLossFn,
    fedavg,
    fedsgd,
    local_batch_statistics,
    securely_aggregated,
)
from jaxinvert.defenses import registry as defenses
from jaxinvert.job.config import JobConfig
from jaxinvert.types import ArrayTree, Batch, ClientUpdateFn, Key, Params


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
