"""Federated averaging as two pure functions: initialization and one round.

In each round, clients drawn without replacement compute an update on some of their examples, apply their defense and
send the result. The server averages the updates and takes an optimizer step,

    w_(r+1) = w_r + optimizer(sum_c n_c d_c(u_c) / sum_c n_c),

with the clients' numbers of examples `n_c`, updates `u_c` (pseudo-gradients) and defenses `d_c`. With `optax.sgd(1)`
at the server this is FederatedAveraging; with other optimizers it is FedOpt (Reddi et al.). Secure aggregation would
reveal only the sum to the server and does not change the training.

References:
  McMahan, Moore, Ramage, Hampson, Aguera y Arcas: Communication-efficient learning of deep networks from
  decentralized data. AISTATS 2017, arXiv:1602.05629.
  Reddi, Charles, Zaheer, Garrett, Rush, Konecny, Kumar, McMahan: Adaptive federated optimization. ICLR 2021,
  arXiv:2003.00295.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import optax
from jax import lax

from jaxinvert.clients import AnyClientUpdateFn, aggregate, only_trained
from jaxinvert.defenses import identity
from jaxinvert.federation.population import Population
from jaxinvert.parallel.lanes import lanes_at_once
from jaxinvert.trees import tree_norm
from jaxinvert.types import Array, ArrayTree, Batch, Defense, Key, Params

_PLAIN_AVERAGING = optax.sgd(1.0)


class FederationState(NamedTuple):
    """The server's state between two rounds.

    Attributes:
      round: `[]` rounds done.
      params: parameters sent to the clients of the next round.
      opt_state: state of the server's optimizer.
    """

    round: Array
    params: Params
    opt_state: ArrayTree


class Federation(NamedTuple):
    """Federated training as two pure functions.

    Attributes:
      init: `params -> FederationState`.
      round: `(key, state, population) -> (FederationState, update norm [])`: one round, and the norm of its average
        update. Pass the same key in every round; `state.round` is folded into it.
    """

    init: Callable[[Params], FederationState]
    round: Callable[[Key, FederationState, Population], tuple[FederationState, Array]]


def federated_averaging(
    client_update: AnyClientUpdateFn,
    *,
    clients_per_round: int,
    examples_per_client: int,
    client_draws: bool = False,
    defense: Defense = identity,
    server_optimizer: optax.GradientTransformation = _PLAIN_AVERAGING,
    running_statistics: Callable[[Params, Batch], ArrayTree] | None = None,
    clients_at_once: int | None = None,
) -> Federation:
    """Builds a federated training in which every client computes `client_update` and applies `defense`.

    The clients of a round run under vmap in chunks that fit in memory; their updates are accumulated. Each client
    shuffles its examples and takes the first `examples_per_client`, so that shapes do not depend on the client. A
    client with fewer examples repeats them, so that some examples may count more often than others.

    | case                     | behavior                                                                           |
    |--------------------------|------------------------------------------------------------------------------------|
    | FedSGD clients           | the update is a gradient: `server_optimizer` sets the learning rate                |
    | noise, clipping          | each client defends its own update, before the average                             |
    | DP-SGD clients           | a `client_update` that clips every example; the noise is a `defense`               |
    | `params["batch_stats"]`  | average of those sent (undefended, as in `observe`), or kept; never optimized      |

    Args:
      client_update: `(params, batch) -> update`, such as `clients.fedsgd` or `clients.fedavg`.
      clients_per_round: drawn without replacement; at most the population's `N`.
      examples_per_client: examples per update.
      client_draws: whether `client_update` takes a key as third argument, because it draws random numbers or applies
        a defense inside its own computation.
      defense: applied to every client's update, with a new key for every client and round.
      server_optimizer: treats the average update as a gradient; `optax.sgd(1.0)` averages the clients' models.
      running_statistics: `(params, batch) -> statistics` that clients of a model with BatchNorm send with their
        update; `None` = nothing.
      clients_at_once: a divisor of `clients_per_round`; by default chosen by the size of an update.

    Returns:
      The federation. Its `round` raises ValueError when traced with fewer than `clients_per_round` clients. Not
      jitted.

    Raises:
      ValueError: for a number below 1, or a `clients_at_once` that does not divide `clients_per_round`.
    """
    for name, value in (("clients_per_round", clients_per_round), ("examples_per_client", examples_per_client)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    if clients_at_once is not None and (clients_at_once < 1 or clients_per_round % clients_at_once):
        raise ValueError(f"clients_at_once must divide clients_per_round {clients_per_round}, got {clients_at_once}")
    optimizer = only_trained(server_optimizer)

    def init(params: Params) -> FederationState:
        return FederationState(jnp.zeros((), jnp.int32), params, optimizer.init(params))

    def one_client(params: Params, population: Population, client: Array, key: Key) -> tuple[ArrayTree, ArrayTree]:
        draw_key, defense_key = jax.random.split(key)
        drawn = _draw(draw_key, population.members[client], population.sizes[client], examples_per_client)
        batch = jax.tree.map(lambda leaf: leaf[drawn], population.examples)
        statistics = None if running_statistics is None else running_statistics(params, batch)
        if client_draws:
            client_key, defense_key = jax.random.split(defense_key)
            return defense(defense_key, client_update(params, batch, client_key)), statistics
        return defense(defense_key, client_update(params, batch)), statistics

    def round_(key: Key, state: FederationState, population: Population) -> tuple[FederationState, Array]:
        num_clients = len(population.sizes)
        if num_clients < clients_per_round:
            raise ValueError(f"clients_per_round is {clients_per_round}, but there are {num_clients} clients")
        choice_key, clients_key = jax.random.split(jax.random.fold_in(key, state.round))
        chosen = jax.random.choice(choice_key, num_clients, (clients_per_round,), replace=False)
        keys = jax.random.split(clients_key, clients_per_round)
        update, statistics = _sum_of_clients(
            lambda client, client_key: one_client(state.params, population, client, client_key),
            (chosen, keys),
            population.sizes[chosen],
            clients_at_once or lanes_at_once(state.params, clients_per_round),
        )

        change, opt_state = optimizer.update(update, state.opt_state, state.params)
        params = cast(Any, optax.apply_updates(state.params, change))
        if statistics is not None:
            params = {**params, "batch_stats": statistics}
        return FederationState(state.round + 1, params, opt_state), tree_norm(update)

    return Federation(init, round_)


def _sum_of_clients(
    one_client: Callable[..., ArrayTree], clients: tuple[Array, Key], weights: Array, at_once: int
) -> ArrayTree:
    """Aggregates the clients' updates in chunks of at most `at_once` clients, to save memory."""
    size = max(size for size in range(1, at_once + 1) if len(weights) % size == 0)

    def of_chunk(total: ArrayTree, chunk: tuple[tuple[Array, Key], Array]) -> tuple[ArrayTree, None]:
        of_clients, chunk_weights = chunk
        mean = aggregate(jax.vmap(one_client)(*of_clients), chunk_weights)
        share = jnp.sum(chunk_weights) / jnp.sum(weights)
        return jax.tree.map(lambda old, new: old + share.astype(new.dtype) * new, total, mean), None

    chunks = jax.tree.map(lambda leaf: leaf.reshape(-1, size, *leaf.shape[1:]), (clients, weights))
    like = jax.eval_shape(one_client, *jax.tree.map(lambda leaf: leaf[0], clients))
    nothing = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), like)
    return lax.scan(of_chunk, nothing, chunks)[0]


def _draw(key: Key, members: Array, size: Array, count: int) -> Array:
    """Draws `count` of the first `size` members in random order; if `count > size`, the order repeats."""
    rank = jax.random.uniform(key, members.shape)
    order = jnp.argsort(jnp.where(jnp.arange(len(members)) < size, rank, jnp.inf))
    return members[order[jnp.arange(count) % size]]
