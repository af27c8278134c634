"""The attacks that `experiments.gias` compares: with a generator, and on pixels; all of one client's setting."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxinvert import attacks
from jaxinvert.attacks.matching import gradient_matching
from jaxinvert.attacks.schedules import cosine_decay
from jaxinvert.attacks.transformations import scale_by_rates
from jaxinvert.priors import generators, regularizers
from jaxinvert.priors.generators import Prior
from jaxinvert.priors.parametrizations import per_channel, stay
from jaxinvert.types import (
    Array,
    ArrayTree,
    Attack,
    Batch,
    ClientUpdateFn,
    Key,
    Objective,
    Parametrization,
    Params,
    Scalar,
)

MakeAttack = Callable[[Scalar], Attack]
"""From the number of steps that the schedule is laid out for."""


class Arena(NamedTuple):
    """What an attack is made of, whichever it is.

    Attributes:
      client_update: the attacker's simulation of the client.
      images: `batch_shape`, `mean` and `std`.
      objective: distance of updates.
      sent_statistics: the attacker's simulation of the running statistics that the client sends, if it does.
      untrained_key: of networks as they are before training.
    """

    client_update: ClientUpdateFn
    images: dict[str, Any]
    objective: Objective
    sent_statistics: Callable[[Params, Batch], ArrayTree] | None
    untrained_key: Key

    @property
    def of_generator(self) -> dict[str, Any]:
        """What attacks with a generator have in common."""
        common = {"objective": self.objective, "sent_statistics": self.sent_statistics}
        return {**common, **{name: self.images[name] for name in ("batch_shape", "std")}}


def latents(arena: Arena, prior: Prior) -> MakeAttack:
    """GI-z only."""
    return lambda horizon: attacks.latent_search(arena.client_update, prior, horizon=horizon, **arena.of_generator)


def latents_then_weights(arena: Arena, prior: Prior) -> MakeAttack:
    """GIAS."""
    return lambda horizon: attacks.latents_then_weights(
        arena.client_update, prior, horizon=horizon, **arena.of_generator
    )


def weights(arena: Arena, prior: Prior) -> MakeAttack:
    """GI-w only, from latents that were not searched."""
    return lambda horizon: attacks.weight_search(arena.client_update, prior, horizon=horizon, **arena.of_generator)


def untrained_latents(arena: Arena, prior: Prior) -> MakeAttack:
    """GI-z with the network before training: what a generator is worth that has learned nothing."""
    return latents(arena, untrained(prior.generator, arena.untrained_key))


def deep_image_prior(arena: Arena) -> MakeAttack:
    """GI-w with an untrained convolutional network."""
    network = generators.convolutional(output_shape=arena.images["batch_shape"][1:])
    prior = untrained(network, arena.untrained_key)
    return lambda horizon: attacks.weight_search(
        arena.client_update, prior, horizon=horizon, learning_rate=1e-2, tv=0.25, **arena.of_generator
    )


def untrained(network: generators.Generator, key: Key) -> Prior:
    """A generator as it is before training."""
    return Prior(network, jax.jit(network.init)(key))


def published(arena: Arena) -> MakeAttack:
    """Inverting Gradients with the paper's settings."""
    return lambda horizon: attacks.inverting_gradients(
        arena.client_update, horizon=horizon, objective=arena.objective, **arena.images
    )


def coarse_to_fine(arena: Arena, *, tv: float = 2e-3) -> MakeAttack:
    """Pixels without sign and with cosine decay, as the sum of images of 8, 16 and 32 pixels that begin in turn."""
    batch_shape = arena.images["batch_shape"]
    mean, std = (per_channel(name, arena.images[name], batch_shape) for name in ("mean", "std"))
    shapes = [(batch_shape[0], *(max(1, side // part) for side in batch_shape[1:3]), 3) for part in (4, 2, 1)]

    def init(key: Key) -> tuple[Array, ...]:
        return (0.1 * jax.random.normal(key, shapes[0]), *(jnp.zeros(shape) for shape in shapes[1:]))

    def decode(levels: tuple[Array, ...]) -> Array:
        return mean + std * sum(jax.image.resize(level, batch_shape, "bilinear") for level in levels)

    def make(horizon: Scalar) -> Attack:
        rates = tuple(cosine_decay(0.1, horizon, begin=share * horizon) for share in (0.0, 0.2, 0.45))
        return gradient_matching(
            arena.client_update,
            objective=arena.objective,
            regularizer=regularizers.weighted((tv, lambda x: regularizers.total_variation(x / std))),
            optimizer=optax.chain(optax.scale_by_adam(), scale_by_rates(rates)),
            parametrization=Parametrization(init, decode, stay),
        )

    return make


def spectral(arena: Arena) -> MakeAttack:
    """The descent of this library's own attack (`docs/spectral.md`), from gray noise, with the others' objective."""
    return lambda horizon: attacks.spectral(
        arena.client_update,
        batch_shape=arena.images["batch_shape"],
        horizon=horizon,
        objective=arena.objective,
        sent_statistics=arena.sent_statistics,
    )


WITH_GENERATOR: dict[str, Callable[[Arena, Prior], MakeAttack]] = {
    "GI-z": latents,
    "GIAS": latents_then_weights,
    "GI-w": weights,
    "GI-z, untrained": untrained_latents,
}
ALONE: dict[str, Callable[[Arena], MakeAttack]] = {
    "deep image prior": deep_image_prior,
    "pixels, published": published,
    "pixels, coarse to fine": coarse_to_fine,
    "pixels, spectral": spectral,
}
NAMES = (*WITH_GENERATOR, *ALONE)
"""In the order of the tables; the first sets the time that all have."""
FIRST = NAMES[0]
PUBLISHED = "pixels, published"
PIXELS = tuple(name for name in ALONE if name.startswith("pixels"))
NO_GENERATOR = "-"


def entered(
    arena: Arena, priors: Mapping[str, Prior], names: Sequence[str]
) -> dict[tuple[str, str], Callable[[], MakeAttack]]:
    """Attacks of some names, each with every generator that is given if it takes one: by its name and that of it.

    Args:
      arena: the setting.
      priors: generators by name.
      names: of attacks, from `NAMES`.
    """
    found: dict[tuple[str, str], Callable[[], MakeAttack]] = {}
    for generator, prior in priors.items():
        for name in WITH_GENERATOR:
            if name in names:
                found[name, generator] = partial(WITH_GENERATOR[name], arena, prior)
    return found | {(name, NO_GENERATOR): partial(ALONE[name], arena) for name in ALONE if name in names}
