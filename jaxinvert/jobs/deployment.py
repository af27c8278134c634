"""`Deployment`: builds the client functions of a job from its configuration.

A deployment holds what server and clients have agreed on: network, local training and defenses. Its methods return
the function that a client runs and the one that an attacker simulates.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property, partial
from typing import NamedTuple

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
    sending,
)
from jaxinvert.defenses.recipe import ClientFacts, Parameters
from jaxinvert.defenses.registry import Chain, defended, extended
from jaxinvert.jobs.config import JobConfig
from jaxinvert.jobs.groups import ClientConfig, ModelConfig
from jaxinvert.jobs.streams import Stream, stream
from jaxinvert.nn import Precision, at_precision
from jaxinvert.trees import moved
from jaxinvert.types import ArrayTree, Batch, ClientUpdateFn, Key, Params, Update

NUM_DRAWS = 4
"""Draws of random layers over which an attacker averages the update of a simulated client."""


class _LocalSteps(NamedTuple):
    """The arguments of `clients.fedavg` that define local training."""

    optimizer: optax.GradientTransformation
    batch_size: int
    num_epochs: int


class Deployment(NamedTuple):
    """The network, local training and defenses that server and clients have agreed on.

    Attributes:
      client: how one client trains.
      model: the clients' network, with the layers that their defenses add.
      num_examples: number of examples in each client's batch.
      defenses: the clients' defenses.
      aggregate: number of clients whose mean update is all that the server sees.
      draws: whether the clients' random layers draw; the attacker simulates them by draws of its own.
      precision: of the clients' matrix products and convolutions on accelerators.
    """

    client: ClientConfig
    model: models.Model
    num_examples: int
    defenses: Chain
    aggregate: int = 1
    draws: bool = False
    precision: Precision = "highest"

    def facts(self, order_key: Key | None = None) -> ClientFacts:
        """The facts about a client from which defenses and adaptive attackers are built."""
        train = partial(self._train, order_key=order_key)
        return ClientFacts(self.model, self.num_examples, self.client.gradient_chunk, train)

    def sent_update(self, parameters: Parameters, order_key: Key | None = None) -> AnyClientUpdateFn:
        """The update that the server sees, `(params, batch, key) -> update`: clients defend first, then aggregate.

        Args:
          parameters: of the defenses, under their full names.
          order_key: key of the local order, if the order is secret.
        """
        facts = self.facts(order_key)
        if self.draws:
            sent = self._of_all(lambda params, batch, key: self._drawn(key, order_key)(params, batch))
        else:
            sent = self._of_all(defended(self.defenses, facts, parameters, facts.train(self.model.loss)))
        return at_precision(sent, self.precision)

    def simulated_update(self) -> ClientUpdateFn:
        """The client that a non-adaptive attacker simulates: without defenses, examples in the order of the batch."""
        if not self.draws:
            return self._of_all(self._train(self.model.loss))
        return self._of_all(_mean_of_draws(self._drawn))

    def simulated_epoch(self) -> ClientUpdateFn | None:
        """One pass of `simulated_update`, with a new optimizer; `None` for one pass, many clients or random draws."""
        if self.client.kind == "fedsgd" or self.client.local_epochs == 1 or self.draws or self.aggregate > 1:
            return None
        return self._replace(client=replace(self.client, local_epochs=1))._train(self.model.loss)

    def _drawn(self, key: Key, order_key: Key | None = None) -> ClientUpdateFn:
        """One client's training with random layers that draw."""
        return self._train(self._drawn_loss_fn, order_key=order_key, dropout_key=key)

    @property
    def _drawn_loss_fn(self) -> AnyLossFn:
        if self.model.drawn_loss_fn is None:
            raise ValueError(f"dropout is 'train', but model {self.model.name} has no random layers that could draw")
        return self.model.drawn_loss_fn

    def sent_statistics(self, order_key: Key | None = None) -> AnyClientUpdateFn:
        """The running statistics that clients with BatchNorm in train mode send with their updates.

        `(params, batch) -> statistics`, or, if the clients' random layers draw, `(params, batch, key) -> statistics`
        with the draws of the update of the same key.
        """
        return self._of_all(lambda params, batch, key=None: self._statistics(key, order_key)(params, batch))

    def simulated_statistics(self) -> AnyClientUpdateFn:
        """The running statistics of the client that a non-adaptive attacker simulates, see `simulated_update`."""
        return self._of_all(_mean_of_draws(self._statistics)) if self.draws else self.sent_statistics()

    def _statistics(self, key: Key | None, order_key: Key | None = None) -> Callable[[Params, Batch], ArrayTree]:
        """The running statistics of one client after its training, with the draws of `key`."""
        model, keys = self.model, (key,) if self.draws else ()

        def of_one_step(params: Params, batch: Batch) -> ArrayTree:
            return jax.tree.map(lambda leaf: leaf[None], model.batch_statistics(params, batch.inputs, *keys))

        of_all_steps = local_batch_statistics(
            self._drawn_loss_fn if self.draws else model.loss,
            model.batch_statistics,
            order_key=order_key,
            dropout_key=key if self.draws else None,
            frozen=model.frozen,
            **self._local_steps()._asdict(),
        )

        def sent(params: Params, batch: Batch) -> ArrayTree:
            # The loss of a fedsgd client is given the key itself, not a key of its one step.
            measured = (of_one_step if self.client.kind == "fedsgd" else of_all_steps)(params, batch)
            if "batch_stats" not in params:
                raise ValueError(
                    f"model {model.name} has no running statistics of BatchNorm layers that clients could send: "
                    "choose batch_norm='eval', or a threat model that does not grant batch_stats"
                )
            return running_statistics.advance(params["batch_stats"], measured, momentum=models.BATCH_NORM_MOMENTUM)

        return sent

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
        """One client's training; `change` transforms every local gradient before the client's optimizer."""
        chunk_size, model = self.client.gradient_chunk, self.model
        if self.client.kind == "fedsgd":
            train = fedsgd(loss_fn, change=change, dropout_key=dropout_key, chunk_size=chunk_size)
        else:
            steps = self._local_steps()
            train = fedavg(
                loss_fn,
                optimizer=steps.optimizer if change is None else optax.chain(change, steps.optimizer),
                batch_size=steps.batch_size,
                num_epochs=steps.num_epochs,
                order_key=order_key,
                dropout_key=dropout_key,
                chunk_size=chunk_size,
                frozen=model.frozen,
            )
        return sending(train, frozen=model.frozen, personal=model.personal)

    def _local_steps(self) -> _LocalSteps:
        """The arguments of local training; for FedSGD clients, one step over all examples."""
        client = self.client
        make = {
            "sgd": optax.sgd,
            "momentum": partial(optax.sgd, momentum=client.local_momentum),
            # The attacker differentiates through the square root; eps_root keeps its argument above zero.
            "adam": partial(optax.adam, eps_root=1e-12),
        }[client.local_optimizer]
        optimizer = make(client.local_lr)
        if client.local_weight_decay:
            decay = optax.add_decayed_weights(-client.local_lr * client.local_weight_decay)
            optimizer = optax.chain(optimizer, decay)
        return _LocalSteps(
            optimizer,
            batch_size=client.num_examples_per_step(self.num_examples),
            num_epochs=client.local_epochs if client.kind == "fedavg" else 1,
        )


def deployment_of(config: JobConfig, model: models.Model) -> Deployment:
    """The deployment of a job; `model` includes the layers that its defenses add."""
    return Deployment(
        config.client,
        model,
        config.data.num_examples,
        config.defense.chain,
        config.observation.aggregate,
        draws=config.model.dropout == "train",
        precision=config.search.precision,
    )


class Clients:
    """The compiled functions of a deployment's clients; each compiles once, at its first call."""

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
    def send_statistics(self) -> Callable[..., ArrayTree]:
        """`(key of a secret order, params, batch) -> running statistics`, also of a key if the clients draw."""
        return jax.jit(
            lambda order_key, params, batch, *key: self.deployment.sent_statistics(order_key)(params, batch, *key)
        )


def _mean_of_draws(drawn: Callable[[Key], Callable[[Params, Batch], ArrayTree]]) -> AnyClientUpdateFn:
    """The mean over `NUM_DRAWS` draws of the attacker's own."""
    keys = jax.random.split(jax.random.key(0), NUM_DRAWS)

    def mean(params: Params, batch: Batch) -> ArrayTree:
        trees = jax.vmap(lambda key: drawn(key)(params, batch))(keys)
        return jax.tree.map(lambda leaf: jnp.mean(leaf, axis=0), trees)

    return mean


def secret_order(client: ClientConfig, seed: int) -> Key | None:
    """The key of the clients' example order, `None` if the attacker knows the order."""
    return stream(seed, Stream.LOCAL_ORDER) if client.local_order == "unknown" else None


def network(config: ModelConfig, defenses: Chain, dataset: data.Dataset) -> tuple[models.Model, Params | None]:
    """The clients' network and its trained parameters; a checkpoint also sets the normalization.

    Raises:
      ValueError: for a checkpoint of another network, or with another normalization.
    """
    facts = {} if config.checkpoint is None else models.read_facts(config.checkpoint)
    if (trained := facts.get("model", config.name)) != config.name:
        raise ValueError(f"{config.checkpoint} is of model {trained}, but model is {config.name}")
    if not config.normalized and "mean" in facts:
        raise ValueError(f"normalized is False, but {config.checkpoint} was trained on normalized images")
    model = models.create(
        config.name,
        input_shape=dataset.images.shape[1:],
        num_classes=facts.get("num_classes", dataset.num_classes),
        mean=facts.get("mean", dataset.mean if config.normalized else None),
        std=facts.get("std", dataset.std if config.normalized else None),
        **config.options,
    )
    if config.batch_norm == "eval" and models.is_external(config.name):
        models.check_eval_mode(model)
    plain, model = model, models.with_task(extended(defenses, config.with_roles(model)), dataset.labels)
    if config.checkpoint is None:
        return model, None
    if config.lora_rank is None:
        return model, models.load_checkpoint(config.checkpoint, jax.eval_shape(model.init, jax.random.key(0)))
    # A checkpoint is of the network without adapters, which start on it.
    trained = models.load_checkpoint(config.checkpoint, jax.eval_shape(plain.init, jax.random.key(0)))
    adapted = models.adapted_layers(trained, config.lora_layers, model=config.name)
    return model, models.with_adapters(jax.random.key(0), trained, adapted, rank=config.lora_rank)


_MAX_SURROGATES = 2048


def surrogate_images(config: JobConfig) -> jax.Array:
    """The attacker's public images: the first images of the split "train" of the clients' data set.

    For private tiles of the embedded photos, they are the tiles of other photographs, the split "public".

    Raises:
      ValueError: if the private images may be among them, or if there is no such split.
    """
    split = "public" if config.data.holds_private_tiles else "train"
    if config.data.holds_training and not config.data.holds_private_tiles:
        raise ValueError(f"split {config.data.split!r} may hold the surrogate images, which are from {split!r}")
    try:
        surrogates = data.load(config.data.name, split=split, size=config.data.size)
        return jnp.asarray(surrogates.images[:_MAX_SURROGATES])
    except ValueError as error:
        threat_model = config.observation.threat_model
        raise ValueError(f"threat model {threat_model} grants surrogate images: {error}") from error


def earlier_rounds(
    client: AnyClientUpdateFn, params: Params, batches: Batch, keys: Sequence[Key], *, server_rate: float
) -> tuple[Params | None, Update | None, Params]:
    """Runs all rounds but the last; returns their parameters `[N, ...]`, updates `[T, N, ...]` and the last params.

    Args:
      client: a client's update, `(params, batch, key) -> update`.
      params: parameters of the first round.
      batches: private batches with a leading axis `T`.
      keys: the clients' keys, one per round.
      server_rate: the server's learning rate, the factor of the mean update.
    """
    if not keys:
        return None, None, params
    num_targets, sent, received = len(batches.inputs), [], []
    for key in keys:
        own_keys = jax.random.split(key, num_targets)
        updates = jax.vmap(client, in_axes=(None, 0, 0))(params, batches, own_keys)
        sent.append(params)
        received.append(updates)
        params = moved(params, jax.tree.map(lambda u: u.mean(axis=0), updates), server_rate)
    earlier_params = jax.tree.map(lambda *leaves: jnp.stack(leaves), *sent)
    earlier_updates = jax.tree.map(lambda *leaves: jnp.stack(leaves, axis=1), *received)
    return earlier_params, earlier_updates, params
