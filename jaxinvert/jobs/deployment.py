"""The clients of a job as functions: names of the configuration become objects here, once.

`Deployment` is what server and clients agreed on: network, local training, defenses. Its methods make what a client
sends, and what an attacker simulates instead.
"""

from collections.abc import Callable, Sequence
from functools import cached_property, partial
from typing import Any, NamedTuple

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
from jaxinvert.defenses.recipe import ClientFacts, Parameters
from jaxinvert.defenses.registry import Chain, defended, extended
from jaxinvert.jobs.config import JobConfig
from jaxinvert.jobs.groups import ClientConfig, ModelConfig
from jaxinvert.jobs.streams import Stream, stream
from jaxinvert.types import ArrayTree, Batch, ClientUpdateFn, Key, Params, Update


class Deployment(NamedTuple):
    """What server and clients agreed on.

    Attributes:
      client: how one client trains.
      model: the clients' network, with what their defenses add to it.
      num_examples: in each client's batch.
      defenses: what the clients do to their updates.
      aggregate: clients whose mean is all that the server sees of them.
    """

    client: ClientConfig
    model: models.Model
    num_examples: int
    defenses: Chain
    aggregate: int = 1

    def facts(self, order_key: Key | None = None) -> ClientFacts:
        """What defenses, and the attacker who adapts to them, are built for."""
        train = partial(self._train, order_key=order_key)
        return ClientFacts(self.model, self.num_examples, self.client.gradient_chunk, train)

    def sent_update(self, parameters: Parameters, order_key: Key | None = None) -> AnyClientUpdateFn:
        """What the server sees, `(params, batch, key) -> update`: every client defends its own, then they are summed.

        Args:
          parameters: of the defenses, under their full names.
          order_key: of the local order, if that is a secret.
        """
        facts = self.facts(order_key)
        return self._of_all(defended(self.defenses, facts, parameters, facts.train(self.model.loss)))

    def simulated_update(self) -> ClientUpdateFn:
        """What an attacker who ignores defenses simulates, the order of the examples as they stand in the batch."""
        return self._of_all(self._train(self.model.loss))

    def sent_statistics(self, order_key: Key | None = None) -> Callable[[Params, Batch], ArrayTree]:
        """The running statistics that clients in train mode send beside their updates."""
        measure = local_batch_statistics(
            self.model.loss, self.model.batch_statistics, order_key=order_key, **self._local_training()
        )

        def sent(params: Params, batch: Batch) -> ArrayTree:
            return running_statistics.advance(
                params["batch_stats"], measure(params, batch), momentum=models.BATCH_NORM_MOMENTUM
            )

        return self._of_all(sent)

    def _of_all(self, one_client: AnyClientUpdateFn) -> AnyClientUpdateFn:
        return one_client if self.aggregate == 1 else securely_aggregated(one_client, num_clients=self.aggregate)

    def _train(
        self,
        loss_fn: AnyLossFn,
        *,
        order_key: Key | None = None,
        dropout_key: Key | None = None,
        change: optax.GradientTransformation | None = None,
    ) -> ClientUpdateFn:
        """How one client trains; `change` is what it does to every local gradient before its optimizer."""
        options: dict[str, Any] = {"dropout_key": dropout_key, "chunk_size": self.client.gradient_chunk}
        if self.client.kind == "fedsgd":
            return fedsgd(loss_fn, change=change, **options)
        training = self._local_training()
        if change is not None:
            training["optimizer"] = optax.chain(change, training["optimizer"])
        return fedavg(loss_fn, order_key=order_key, **options, **training)

    def _local_training(self) -> dict[str, Any]:
        """The local training; of FedSGD clients, one step over all examples."""
        client = self.client
        make = {
            "sgd": optax.sgd,
            "momentum": partial(optax.sgd, momentum=0.9),
            # The attacker differentiates through the square root, which eps_root keeps from zero.
            "adam": partial(optax.adam, eps_root=1e-12),
        }[client.local_optimizer]
        optimizer = make(client.local_lr)
        if client.local_weight_decay:
            decay = optax.add_decayed_weights(-client.local_lr * client.local_weight_decay)
            optimizer = optax.chain(optimizer, decay)
        return {
            "optimizer": optimizer,
            "batch_size": client.num_examples_per_step(self.num_examples),
            "num_epochs": client.local_epochs if client.kind == "fedavg" else 1,
        }


def deployment_of(config: JobConfig, model: models.Model) -> Deployment:
    """The deployment of a job; `model` has what its defenses add."""
    return Deployment(
        config.client, model, config.data.num_examples, config.defense.chain, config.observation.aggregate
    )


class Clients:
    """The compiled functions of a deployment's clients; each compiles when first called, and then no more."""

    def __init__(self, deployment: Deployment) -> None:
        self.deployment = deployment

    @cached_property
    def init(self) -> Callable[[Key], Params]:
        """`key -> params`."""
        return jax.jit(self.deployment.model.init)

    @cached_property
    def send(self) -> Callable[[Key | None, Parameters, Params, Batch, Key], Update]:
        """`(key of a secret order, parameters of the defenses, params, batch, key) -> update`."""
        return jax.jit(
            lambda order_key, parameters, params, batch, key: self.deployment.sent_update(parameters, order_key)(
                params, batch, key
            )
        )

    @cached_property
    def send_statistics(self) -> Callable[[Key | None, Params, Batch], ArrayTree]:
        """`(key of a secret order, params, batch) -> running statistics`."""
        return jax.jit(lambda order_key, params, batch: self.deployment.sent_statistics(order_key)(params, batch))


def secret_order(client: ClientConfig, seed: int) -> Key | None:
    """What the clients draw the order of their examples from, if it is a secret."""
    return stream(seed, Stream.LOCAL_ORDER) if client.local_order == "unknown" else None


def network(config: ModelConfig, defenses: Chain, dataset: data.Dataset) -> tuple[models.Model, Params | None]:
    """The clients' network, with trained parameters and their normalization if there is a checkpoint.

    Raises:
      ValueError: for a checkpoint of another network, or of other inputs.
    """
    facts = {} if config.checkpoint is None else models.read_facts(config.checkpoint)
    if (trained := facts.get("model", config.name)) != config.name:
        raise ValueError(f"{config.checkpoint} holds a {trained}, not a {config.name}: name it as the model")
    if not config.normalized and "mean" in facts:
        raise ValueError(f"normalized is False, but {config.checkpoint} was trained on normalized images")
    architecture: dict[str, Any] = {} if config.batch_norm == "eval" else {"batch_norm": config.batch_norm}
    model = models.create(
        config.name,
        input_shape=dataset.images.shape[1:],
        num_classes=facts.get("num_classes", dataset.num_classes),
        mean=facts.get("mean", dataset.mean if config.normalized else None),
        std=facts.get("std", dataset.std if config.normalized else None),
        **architecture,
    )
    if config.batch_norm == "eval" and models.is_external(config.name):
        models.check_eval_mode(model)
    model = extended(defenses, model)
    if config.checkpoint is None:
        return model, None
    return model, models.load_checkpoint(config.checkpoint, jax.eval_shape(model.init, jax.random.key(0)))


_MAX_SURROGATES = 2048


def surrogate_images(config: JobConfig) -> jax.Array:
    """The attacker's public images: the beginning of the split "train" of the victims' data set.

    Raises:
      ValueError: if the victims may be among them, or there is no such split.
    """
    if "train" in config.data.split or config.data.split == "all":
        raise ValueError(f"split {config.data.split!r} may hold the surrogate images, which come from 'train'")
    try:
        surrogates = data.load(config.data.name, split="train", size=config.data.size)
        return jnp.asarray(surrogates.images[:_MAX_SURROGATES])
    except ValueError as error:
        threat_model = config.observation.threat_model
        raise ValueError(f"threat model {threat_model} grants surrogate images: {error}") from error


def earlier_rounds(
    client: AnyClientUpdateFn, params: Params, batches: Batch, keys: Sequence[Key], *, server_rate: float
) -> tuple[Params | None, Update | None, Params]:
    """Parameters `[N, ...]` and updates `[T, N, ...]` of all rounds but the last, whose parameters follow.

    Args:
      client: what every client sends, `(params, batch, key) -> update`.
      params: of the first round.
      batches: private batches with a leading axis `T`.
      keys: one for each of these rounds, of what the clients draw.
      server_rate: factor of the mean update that the server subtracts.
    """
    if not keys:
        return None, None, params
    num_targets, sent, received = len(batches.inputs), [], []
    for key in keys:
        own_keys = jax.random.split(key, num_targets)
        updates = jax.vmap(client, in_axes=(None, 0, 0))(params, batches, own_keys)
        sent.append(params)
        received.append(updates)
        params = jax.tree.map(lambda p, u: p - server_rate * u.mean(axis=0), params, updates)
    earlier_params = jax.tree.map(lambda *leaves: jnp.stack(leaves), *sent)
    earlier_updates = jax.tree.map(lambda *leaves: jnp.stack(leaves, axis=1), *received)
    return earlier_params, earlier_updates, params
