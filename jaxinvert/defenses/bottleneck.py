"""PRECODE: a variational bottleneck before the head, so that a client's gradient depends on random noise.

The input features `h` of the head pass through

    (m, r) = h E + e,    z = m + softplus(r) n,    n ~ N(0, I),    h' = z D + d,

the head's input is `h'`, and the clients minimize their loss plus `beta KL(N(m, softplus(r)^2) | N(0, I))`. Without
noise (when accuracy is measured, or when a non-adaptive attacker simulates the network), `z = m`.

References:
  Scheliga, Mäder, Seeland: PRECODE - a generic model extension to prevent deep gradient leakage. WACV 2022,
  arXiv:2108.04725.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen

from jaxinvert.models import Model
from jaxinvert.models.losses import DrawnLossFn, LossOf, with_tree
from jaxinvert.nn import draws
from jaxinvert.trees import leaves_by_path
from jaxinvert.types import Array, Batch, Key, Params

BOTTLENECK = "bottleneck"
"""Name of the bottleneck's parameters among those that clients train, `params["params"]`."""


def with_bottleneck(model: Model, *, num_units: int = 256, beta: float = 1e-3) -> Model:
    """Inserts a variational bottleneck before the model's head; the defaults are the authors'.

    Args:
      model: a model whose head is a Flax dense layer.
      num_units: width of the bottleneck.
      beta: weight of the divergence, which is in nats and averaged over the batch.

    Returns:
      A model whose `apply` uses no noise and whose `drawn_loss_fn` is the clients' training loss. Tracing it raises
      ValueError if the network has no such layer.
    """

    def init(key: Key) -> Params:
        own_key, bottleneck_key = key, jax.random.fold_in(key, 2**31 - 1)  # same initial network as without
        params = model.init(own_key)
        bottleneck = _init(bottleneck_key, _num_features(model, params), num_units)
        return {**params, "params": {**params["params"], BOTTLENECK: bottleneck}}

    def through(function: Callable[..., Any], params: Params, *arguments: Any) -> Any:
        with _inserted(model, params["params"][BOTTLENECK], None):
            return function(_network(params), *arguments)

    def drawn_loss_of(loss_of: LossOf) -> DrawnLossFn:
        def drawn_loss(params: Params, batch: Batch, key: Key) -> Array:
            network = model
            if model.loss_fn is None:  # else it is traced with the bottleneck in the layers that it calls
                network = model._replace(loss_of=with_tree(loss_of, params, _network))
            with _inserted(model, params["params"][BOTTLENECK], key) as divergences:
                if (drawn := network.drawn_loss_fn) is None:
                    loss = network.loss(_network(params), batch)
                else:
                    loss = drawn(_network(params), batch, jax.random.fold_in(key, 1))
            return loss + beta * jnp.mean(divergences[-1])

        return drawn_loss

    return model._replace(
        name=f"{model.name} with a bottleneck",
        init=init,
        apply=partial(through, model.apply),
        loss_fn=None if model.loss_fn is None else partial(through, model.loss_fn),
        drawn_loss_of=drawn_loss_of,
        batch_statistics=partial(through, model.batch_statistics),
    )


@contextmanager
def _inserted(model: Model, weights: Params, key: Key | None) -> Iterator[list[Array]]:
    """Inserts the bottleneck into calls traced in this context; yields their divergences, one `[B]` per call."""
    divergences: list[Array] = []
    head = tuple(model.head.split("/")[1:])

    def intercept(layer: Callable, arguments: tuple, options: dict, context: Any) -> Any:
        if context.module.path != head or context.method_name != "__call__":
            return layer(*arguments, **options)
        decoded, divergence = _pass(weights, arguments[0], key)
        divergences.append(divergence)
        return layer(decoded, *arguments[1:], **options)

    with linen.intercept_methods(intercept):
        yield divergences
    if not divergences:
        raise _no_flax_head(model)


def _no_flax_head(model: Model) -> ValueError:
    return ValueError(f"a bottleneck needs a Flax layer after it, but {model.name} calls none at {model.head!r}")


def _pass(weights: Params, features: Array, key: Key | None) -> tuple[Array, Array]:
    """Returns the bottleneck's output `[B, D]` for features `[B, D]`, and every example's divergence `[B]`."""
    encoded = features @ weights["encoder"]["kernel"] + weights["encoder"]["bias"][None]
    mean, raw = jnp.split(encoded, 2, axis=-1)
    spread = jax.nn.softplus(raw)
    code = mean if key is None else mean + spread * draws.normal(key, mean.shape, mean.dtype)
    divergence = 0.5 * jnp.sum(jnp.square(mean) + jnp.square(spread) - 1 - 2 * jnp.log(spread), axis=-1)
    return code @ weights["decoder"]["kernel"] + weights["decoder"]["bias"][None], divergence


def _init(key: Key, num_features: int, num_units: int) -> Params:
    """Initializes the dense layers like PyTorch."""
    sizes = {"encoder": (num_features, 2 * num_units), "decoder": (num_units, num_features)}

    def layer(layer_key: Key, shape: tuple[int, int]) -> Params:
        bound = 1 / math.sqrt(shape[0])
        keys = jax.random.split(layer_key)
        return {
            "kernel": draws.uniform(keys[0], shape, minval=-bound, maxval=bound),
            "bias": draws.uniform(keys[1], shape[1:], minval=-bound, maxval=bound),
        }

    return {name: layer(one, sizes[name]) for name, one in zip(sizes, jax.random.split(key))}


def _num_features(model: Model, params: Params) -> int:
    if "params" not in params:
        raise _no_flax_head(model)
    kernel = leaves_by_path(params).get(f"{model.head}/kernel")
    if kernel is not None:
        return kernel.shape[0]
    raise ValueError(f"a bottleneck comes before the head, but {model.name} has no parameters {model.head}/kernel")


def _network(params: Params) -> Params:
    layers = {name: layer for name, layer in params["params"].items() if name != BOTTLENECK}
    return {**params, "params": layers}
