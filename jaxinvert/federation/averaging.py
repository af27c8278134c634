"""One round of federated averaging, as a pure function.

A few clients, drawn without replacement, compute an update on some of their examples, defend it and send it; the
server averages and steps,

    w_(r+1) = w_r + optimizer(sum_c n_c d_c(u_c) / sum_c n_c),

with the clients' numbers of examples `n_c`, their updates `u_c` (pseudo-gradients) and defenses `d_c`. With
`optax.sgd(1)` at the server this is FederatedAveraging; other optimizers make it what Reddi et al. call FedOpt.
Secure aggregation shows the server the sum alone and changes nothing here.

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
    """The server between two rounds.

    Attributes:
      round: `[]` rounds done.
      params: what it sends to the clients of the next round.
      opt_state: of its optimizer.
    """

    round: Array
    params: Params
    opt_state: ArrayTree


class Federation(NamedTuple):
    """Federated training as two pure functions.

    Attributes:
      init: `params -> FederationState`.
      round: `(key, state, population) -> (FederationState, update norm [])`: one round, with the norm of the average
        that the server saw. The key is the whole training's; rounds differ by `state.round`.
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
    """Returns the training in which every client computes `client_update` and defends what it sends.

    The clients of a round run side by side under vmap, as many as there is room for, and are summed up as they come.
    Each draws a new order of its examples and takes the first `examples_per_client`, so that shapes do not depend on
    who is drawn; one that has fewer begins anew, and then some examples weigh more than others.

    | what                     | behavior                                                                           |
    |--------------------------|------------------------------------------------------------------------------------|
    | FedSGD clients           | their update is a gradient: `server_optimizer` has the learning rate               |
    | noise, clipping          | each client defends its own update, before the average                             |
    | DP-SGD clients           | a `client_update` that clips every example; the noise is a `defense`               |
    | `params["batch_stats"]`  | average of those sent (undefended, as in `observe`), or kept; never optimized      |

    Args:
      client_update: `(params, batch) -> update`, of `clients.fedsgd`, `clients.fedavg` or one's own.
      clients_per_round: drawn without replacement; at most the population's `N`.
      examples_per_client: behind one update.
      client_draws: whether `client_update` takes a key of its own as third argument, as a client does that draws
        random numbers or defends itself what it computes.
      defense: what every client does to its update, with a key of its own in every round.
      server_optimizer: steps on the average update as on a gradient; `optax.sgd(1.0)` averages the clients' models.
      running_statistics: what clients of a model with BatchNorm send beside their update, `(params, batch) ->
        statistics`; `None` = nothing.
      clients_at_once: a divisor of `clients_per_round`; by default chosen by the size of an update.

    Returns:
      The federation. Its `round` raises ValueError when traced with fewer than `clients_per_round` clients. Not
      jitted.

    Raises:
      ValueError: for a number below 1.
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
    """`aggregate` of what the clients send, of whom only `at_once` are in memory side by side."""
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
    """`count` of the first `size` members, each equally often as far as that goes, in random order."""
    rank = jax.random.uniform(key, members.shape)
    order = jnp.argsort(jnp.where(jnp.arange(len(members)) < size, rank, jnp.inf))
    return members[order[jnp.arange(count) % size]]
